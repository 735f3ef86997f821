"""Units: powers of two that keep the squares of a row in the range of a dtype that has no room to spare.

A row is multiplied by its unit before anything is squared, and eps by the square of the unit. There are only a few
units, from a table, so that eps is multiplied in Python, in float64, once for each. On the device a compiler may turn
``eps * unit * unit`` into ``eps * (unit * unit)``, where the square of a unit is out of range.

``digits`` is the number of significant bits of the dtype: 53 for float64, 24 for float32. ``squared`` says that eps is
added to squares (layer_norm, rms_norm), and not compared with lengths (scale_norm).
"""

from __future__ import annotations

import math
from typing import Any

import numpy

from anynorm._definition.sums import at_least, at_most, largest

Array = Any

Level = tuple[float, float]

# (bound, unit): a row whose largest magnitude is below the bound, and not below the one before, has this unit. Sums of
# squares are then in range, and no square that counts underflows, not even that of a deviation of one unit in the last
# place divided by the length of the row. Those of float64 lie closer than this needs: automatic differentiation forms
# the cubes of lengths.
_SMALL = {
    24: ((2.0**-72, 2.0**100), (2.0**-12, 2.0**60)),
    53: ((2.0**-738, 2.0**855), (2.0**-416, 2.0**690), (2.0**-48, 2.0**368)),
}
_ORDINARY_AND_LARGE = {
    24: ((2.0**52, 1.0), (math.inf, 2.0**-76)),
    53: ((2.0**320, 1.0), (2.0**688, 2.0**-368), (math.inf, 2.0**-704)),
}
# The sums of float32 rows with more elements than this need one level more.
_LONG = 1 << 14
_OF_LONG = ((2.0**48, 1.0), (2.0**108, 2.0**-60), (math.inf, 2.0**-80))

# Once eps (for scale_norm its square) is more than _ENOUGH in some unit, smaller rows need no larger unit: beside it
# their squares may underflow, or be less than LEAST_ENERGY below. In no unit may it be more than _TOO_MUCH.
_ENOUGH, _TOO_MUCH = {24: 2.0**-80, 53: 2.0**-440}, {24: 2.0**100, 53: 2.0**960}

# A product of two numbers between this and its reciprocal neither underflows nor overflows.
_FAR_FROM_ONE = {0: 2.0**-900, 24: 2.0**-100, 53: 2.0**-900}

# Less than the mean square of any row that is not all zeros, in its unit; derivatives can cube its root.
LEAST_ENERGY = {0: 2.0**-340, 24: 2.0**-110, 53: 2.0**-480}
# The least length to divide by.
LEAST_LENGTH = {0: 2.0**-1000, 24: 2.0**-120, 53: 2.0**-1000}

# In `exceeds`, `unit_of` and `eps_in_units` comparisons are written as arithmetic. XLA fuses arithmetic with the sums
# before and after it, but not comparisons: with those it took ten times as long, and temporaries as large as x.


def exceeds(xp: Any, value: Array, bound: float, digits: int) -> Array:
    """1 where a number is more than a power of two, else 0; NaN for NaN."""
    return at_most(xp, at_least(xp, value * (1.0 / bound) - 1.0, 0.0) * 2.0 ** (digits or 53), 1.0)


def reaches(xp: Any, value: Array, bound: float) -> Array:
    """1 where a number is a power of two or more, 0 for 0, its share of that between; NaN for NaN.

    The bound of 1 comes last: XLA takes a constant factor out of a product, and the rest of that may underflow. float32
    meets a bound out of its range only where there are no elements.
    """
    is_out = bound < 2.0**-126 and value.dtype != xp.float64
    return at_most(xp, value * (2.0**126 if is_out else 1.0 / bound), 1.0)


def unit_of(xp: Any, magnitude: Array, digits: int, count: int, eps: float, squared: bool = True) -> Array:
    """The unit of rows of ``count`` elements whose largest magnitude is given."""
    levels = _levels(digits, count, eps, squared)
    if isinstance(magnitude, numpy.ndarray) and magnitude.size:
        least, most, below = magnitude.min(), magnitude.max(), 0.0
        for bound, one in levels:  # most often all have the same
            if below <= least and most < bound:
                return xp.full_like(magnitude, one)
            below = bound
    unit: Any = levels[-1][1]
    step = 2.0**-digits
    for bound, one in reversed(levels[:-1]):
        # The difference is at least one step below the bound, and at most 0 from there on.
        candidate = at_most(xp, 1.0 - magnitude * (1.0 / bound), step) * (one / step)
        unit = at_least(xp, candidate, unit) if isinstance(unit, float) else xp.maximum(candidate, unit)
    return unit if len(levels) > 1 else xp.full_like(magnitude, unit)


def units_of(xp: Any, values: Array, axes: tuple[int, ...], digits: int) -> Array:
    """The unit of each row over ``axes``, or of each element where there are none; its derivative is 0."""
    magnitude = largest(xp, values, axes) if axes else xp.abs(values)
    levels = _levels(digits, _LONG + 1, 0.0, True)
    unit = xp.full_like(magnitude, levels[-1][1])
    for bound, one in reversed(levels[:-1]):
        unit = xp.where(magnitude < bound, one, unit)
    return unit


def scaled(x: Array, unit: Array) -> Array:
    """The product x * unit; x itself where each unit is 1, as usual."""
    return x if are_one(unit) else x * unit


def are_one(unit: Array) -> bool:
    """Whether each unit is 1, of NumPy's, whose values can be read."""
    return isinstance(unit, numpy.ndarray) and bool((unit == 1.0).all())


def largest_unit(digits: int, eps: float, squared: bool) -> float:
    """The largest unit in which eps is in range."""
    return _levels(digits, _LONG, eps, squared)[0][1]


def eps_in_units(xp: Any, unit: Array, digits: int, eps: float, squared: bool) -> tuple[Array | float, Array | float]:
    """Eps times the square of each row's unit, and as a length times the unit; the square may be out of range."""
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
    """The levels (bound, unit) that rows of ``count`` elements need with this eps, smallest rows first."""
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
    """The product of a number and factors; it leaves the range only where the result does."""
    left: list[Array] = []
    for factor in factors:
        # A factor above 1 is multiplied with one below 1, until all that are left lie on the same side of 1.
        for i, other in enumerate(left):
            opposite = (xp.abs(factor) > 1.0) != (xp.abs(other) > 1.0)
            both, one = factor * other, xp.ones_like(other)
            left[i], factor = xp.where(opposite, one, other), xp.where(opposite, both, factor)
        left.append(factor)
    for factor in left:
        value = value * factor
    return value


def weighted(xp: Any, x: Array, unit: Array, factor: Array, weight: Array | float, digits: int) -> Array:
    """The product x * unit * factor * weight; it leaves the range only where the result does.

    Without centring an element may be so small beside its row that x * unit * factor underflows, where the product with
    a large weight would not.
    """
    if _are_ordinary(unit, weight):
        return scaled(x, unit) * (factor * weight)
    both, in_unit, least = factor * weight, x * unit, _FAR_FROM_ONE[digits]
    size, is_exact = xp.abs(both), (unit >= 1.0) | (xp.abs(in_unit) > least)
    # Chosen element by element: the bits of a row must not depend on other rows.
    is_plain = is_exact & (size > least) & (size < 1.0 / least)
    weight = weight + xp.zeros_like(factor)
    return xp.where(is_plain, in_unit * both, product(xp, x, [unit, factor, weight]))


def _are_ordinary(unit: Array, weight: Array | float) -> bool:
    """Whether ``x * unit * (factor * weight)`` stays in range; False where values cannot be read, as under a tracer."""
    if not isinstance(unit, numpy.ndarray):
        return False
    size = numpy.abs(weight)
    ordinary = (size > 2.0**-400) & (size < 2.0**400) | (size == 0.0)
    return bool((unit >= 1.0).all() and ordinary.all())
