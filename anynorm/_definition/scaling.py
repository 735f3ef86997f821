"""Powers of two that keep rows in the range of a dtype that has no room to spare.

A row is multiplied by its unit before anything is squared, and eps by the square of that. Units come from a table, so
that eps is multiplied on the host, in float64: a compiler may gather the factors of ``eps * unit * unit``, and the
square of a unit alone is out of range.
"""

from __future__ import annotations

import math
from typing import Any

import numpy

from anynorm._definition.sums import at_least, at_most, largest

Array = Any

Level = tuple[float, float]

# For rows whose largest magnitude is below the first number, the unit is the second. Sums of squares are in range then,
# and no square that counts vanishes, not even of a deviation of one unit in the last place over the length. Units of
# float64 lie closer than that needs, for automatic differentiation forms the cubes of lengths.
_SMALL = {
    24: ((2.0**-72, 2.0**100), (2.0**-12, 2.0**60)),
    53: ((2.0**-738, 2.0**855), (2.0**-416, 2.0**690), (2.0**-48, 2.0**368)),
}
_ORDINARY_AND_LARGE = {
    24: ((2.0**52, 1.0), (math.inf, 2.0**-76)),
    53: ((2.0**320, 1.0), (2.0**688, 2.0**-368), (math.inf, 2.0**-704)),
}
# Rows of float32 longer than this have one level more.
_LONG = 1 << 14
_OF_LONG = ((2.0**48, 1.0), (2.0**108, 2.0**-60), (math.inf, 2.0**-80))

# Where eps, squared for scale_norm, is more than the first in some unit, smaller rows need no larger one: their squares
# vanish beside it, and may. In no unit may it be more than the second.
_ENOUGH, _TOO_MUCH = {24: 2.0**-80, 53: 2.0**-600}, {24: 2.0**100, 53: 2.0**960}

# Products of numbers between this and its reciprocal lose nothing on the way.
_FAR_FROM_ONE = {0: 2.0**-900, 24: 2.0**-100, 53: 2.0**-900}

# Less than the mean square of any row that has one, in its unit; its root can be cubed, as derivatives do.
LEAST_ENERGY = {0: 2.0**-340, 24: 2.0**-110, 53: 2.0**-480}
# The least length to divide by.
LEAST_LENGTH = {0: 2.0**-1000, 24: 2.0**-120, 53: 2.0**-1000}

# Here and below, comparisons are written as arithmetic. XLA fuses that with the sums before and after it, a comparison
# with neither: it takes ten times as long, and the temporaries the memory of x.


def exceeds(xp: Any, value: Array, bound: float, digits: int) -> Array:
    """1 where a number is more than a power of two, else 0; NaN for NaN."""
    return at_most(xp, at_least(xp, value * (1.0 / bound) - 1.0, 0.0) * 2.0 ** (digits or 53), 1.0)


def unit_of(xp: Any, magnitude: Array, digits: int, count: int, eps: float, squared: bool = True) -> Array:
    """The unit of rows of ``count`` elements whose largest magnitude is given."""
    levels = _levels(digits, count, eps, squared)
    unit: Any = levels[-1][1]
    step = 2.0**-digits
    for bound, one in reversed(levels[:-1]):
        # Below the bound it is one step or more, and the unit is exact; from there on it is 0 or less.
        reached = at_most(xp, 1.0 - magnitude * (1.0 / bound), step) * (one / step)
        unit = at_least(xp, reached, unit) if isinstance(unit, float) else xp.maximum(reached, unit)
    return unit if len(levels) > 1 else xp.full_like(magnitude, unit)


def units_of(xp: Any, values: Array, axes: tuple[int, ...], digits: int) -> Array:
    """The unit of each row of an array, or of each element where there are no axes; whose derivative is 0."""
    magnitude = largest(xp, values, axes) if axes else xp.abs(values)
    levels = _levels(digits, _LONG + 1, 0.0, True)
    unit = xp.full_like(magnitude, levels[-1][1])
    for bound, one in reversed(levels[:-1]):
        unit = xp.where(magnitude < bound, one, unit)
    return unit


def scaled(x: Array, unit: Array) -> Array:
    """The product x * unit; of NumPy arrays, which can be looked at, x itself where each unit is 1, as most are."""
    if isinstance(unit, numpy.ndarray) and (unit == 1.0).all():
        return x
    return x * unit


def largest_unit(digits: int, eps: float, squared: bool) -> float:
    """The largest unit that suits an eps."""
    return _levels(digits, _LONG, eps, squared)[0][1]


def eps_in_units(xp: Any, unit: Array, digits: int, eps: float, squared: bool) -> tuple[Array | float, Array | float]:
    """Eps in the unit of each row: in the square of that, and as a length, whose square may be out of range."""
    root, most = math.sqrt(eps) if squared else eps, largest_unit(digits, eps, squared)
    if most == 1.0:
        length = root * unit
        return (eps * unit * unit if squared else length * length), length
    tables = (*_SMALL[digits], *_ORDINARY_AND_LARGE[digits], *(_OF_LONG if digits == 24 else ()))
    square = length = xp.zeros_like(unit)
    for one in sorted({one for _, one in tables if one <= most}):
        is_reached, term = at_most(xp, (unit - 0.5 * one) * (2.0 / one), 1.0), max(root * one, LEAST_LENGTH[digits])
        square = xp.maximum(is_reached * (eps * one * one if squared else term * term), square)
        length = xp.maximum(is_reached * term, length)
    return square, length


def _levels(digits: int, count: int, eps: float, squared: bool) -> list[Level]:
    """The levels that are of use for rows of so many elements beside an eps."""
    ordinary = _OF_LONG if digits == 24 and count > _LONG else _ORDINARY_AND_LARGE[digits]
    levels: list[Level] = []
    beside = 0.0
    for bound, unit in reversed((*_SMALL[digits], *ordinary)):
        term = eps * unit
        term = term * unit if squared else term * term
        if levels and ((unit > 1.0 and beside > _ENOUGH[digits]) or term > _TOO_MUCH[digits]):
            break
        levels.insert(0, (bound, unit))
        beside = term
    return levels


def product(xp: Any, value: Array, factors: list[Array]) -> Array:
    """The product of a number and factors, out of range only where all of them together lead there."""
    left: list[Array] = []
    for factor in factors:
        # What leads up and what leads down become one, so that all that is left goes the same way.
        for i, other in enumerate(left):
            opposite = (xp.abs(factor) > 1.0) != (xp.abs(other) > 1.0)
            both, one = factor * other, xp.ones_like(other)
            left[i], factor = xp.where(opposite, one, other), xp.where(opposite, both, factor)
        left.append(factor)
    for factor in left:
        value = value * factor
    return value


def weighted(xp: Any, x: Array, unit: Array, factor: Array, weight: Array | float, digits: int) -> Array:
    """The product x * unit * factor * weight, out of range only where the result is.

    Without centring an element may be so much smaller than its row that it is nothing beside it, and a weight bring it
    back.
    """
    if are_ordinary(unit, weight):
        return scaled(x, unit) * (factor * weight)
    both, in_unit, least = factor * weight, x * unit, _FAR_FROM_ONE[digits]
    size, is_exact = xp.abs(both), (unit >= 1.0) | (xp.abs(in_unit) > least)
    # No row is to have other bits for what rows are beside it.
    is_plain = is_exact & (size > least) & (size < 1.0 / least)
    weight = weight + xp.zeros_like(factor)
    return xp.where(is_plain, in_unit * both, product(xp, x, [unit, factor, weight]))


def are_ordinary(unit: Array, weight: Array | float) -> bool:
    """Whether ``x * unit * (factor * weight)`` stays in range; False for arrays that cannot be looked at."""
    if not isinstance(unit, numpy.ndarray):
        return False
    size = numpy.abs(weight)
    ordinary = (size > 2.0**-400) & (size < 2.0**400) | (size == 0.0)
    return bool((unit >= 1.0).all() and ordinary.all())
