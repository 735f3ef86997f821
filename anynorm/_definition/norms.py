"""The three norms.

Each is the same three steps over the normalized axes, with n elements to a row:

    reduce   a row -> its statistics: count, mean, sum of squared deviations (of squares where nothing is centred)
    finish   statistics -> one shift and one factor; the only step in which the norms differ
    apply    (x - shift) * factor * weight + bias

float16, bfloat16 and float32 are computed in float64 where the library has it and is fast with it. No square overflows
or underflows there, and the 29 bits that it has beyond float32 absorb all rounding. Elsewhere (float64 itself; float32
and narrower in JAX) rows are first multiplied by a power of two, their unit, which keeps squares in range, and centred
twice: by the rounded mean, then by the mean of what is left. So a mean of a million standard deviations costs no
accuracy (Chan, Golub, LeVeque 1983, "Algorithms for computing the sample variance").
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from anynorm._definition.counting import divisor
from anynorm._definition.scaling import (
    LEAST_ENERGY,
    LEAST_LENGTH,
    eps_in_units,
    exceeds,
    reaches,
    scaled,
    unit_of,
    weighted,
)
from anynorm._definition.sums import (
    at_least,
    count_along,
    largest,
    lowest_and_highest,
    mean,
    of_rows,
    total,
    total_of_squares,
)

Array = Any


class Rule(NamedTuple):
    """What tells one norm from another."""

    name: str
    centred: bool  # subtract the mean
    averaged: bool  # divide by sqrt(mean square + eps); otherwise by max(norm, eps)


LAYER_NORM = Rule("layer_norm", centred=True, averaged=True)
RMS_NORM = Rule("rms_norm", centred=False, averaged=True)
SCALE_NORM = Rule("scale_norm", centred=False, averaged=False)


def as_it_is(array: Array) -> Array:
    """Return the array."""
    return array


class Precision(NamedTuple):
    """The dtype to compute in, and how much care it takes there."""

    dtype: Any
    digits: int = 0  # its significant bits; 0: float64 for narrower rows, of which no square leaves the range
    short: bool = False  # the result has so few bits that the rounding of a plain sum does not show in it
    stated: bool = False  # the derivative is stated (xla.py), so automatic differentiation does not see the operations
    constant: Callable[[Array], Array] = as_it_is  # keeps automatic differentiation out of an array


class Statistics(NamedTuple):
    """What step 1 finds of each row of x * unit; normalized axes are kept with length 1."""

    elements: Any  # in a row: an int, or an array of ints where rows have more and less of them (counting.py)
    mean: Array | None  # None: nothing was centred
    mean_low: Array | None  # the mean of what is left when `mean` is subtracted
    mean_rest: Array | None  # what both lack of the exact mean, after moments were merged
    squares: Array  # the sum of squared deviations from the mean
    squares_low: Array | None  # what that lacks of the exact sum, after moments were merged
    unit: Array | None  # the power of two that keeps squares in range; None: 1
    # 0 for a row without deviations, Inf or NaN for a row that holds those; None: see squares
    size: Array | None = None


class Step(NamedTuple):
    """What step 2 makes of them: a row becomes (x * unit - shift - shift_low) * factor."""

    shift: Array | None
    shift_low: Array | None
    factor: Array
    unit: Array | None
    size: Array  # as in the statistics; a constant of automatic differentiation
    root: Array  # sqrt(squares / n + eps), for scale_norm sqrt(squares), in the unit
    least_divisor: Array | float  # the factor is 1 / max(root, least_divisor), unless the row has no deviations


# scale_norm in float64 of narrower rows: none that is finite is as long as this eps.
_LARGE_LENGTH = 2.0**800


def reduce(xp: Any, x: Array, axes: tuple[int, ...], rule: Rule, precision: Precision, eps: float = 0.0) -> Statistics:
    """Step 1: the statistics of each row of ``x``, already of the precision's dtype; those for eps = 0 suit any eps."""
    if precision.digits:
        return _reduce_in_units(xp, x, axes, rule, precision, eps)
    shift = None
    if rule.centred:
        shift = mean(xp, x, axes)
        x = x - shift
    return Statistics(count_along(x, axes), shift, None, None, total(xp, x * x, axes), None, None)


def finish(xp: Any, found: Statistics, rule: Rule, eps: float, precision: Precision) -> Step:
    """Step 2: the shift and the factor, 1 / sqrt(squares / n + eps), for scale_norm 1 / max(sqrt(squares), eps)."""
    squares, unit, digits = found.squares, found.unit, precision.digits
    # XLA fuses a sum with what follows only where it is used once; so `size` and not `squares` tells zeros and NaN.
    size = precision.constant(squares if found.size is None else found.size)
    if unit is None and not rule.averaged and eps > _LARGE_LENGTH:
        unit, eps = xp.full_like(squares, 2.0**-500), eps * 2.0**-500
    added, least_divisor = eps, (0.0 if rule.averaged else max(eps, LEAST_LENGTH[digits]))
    if unit is not None and digits and eps:
        added, least_divisor = eps_in_units(xp, unit, digits, eps, rule.averaged)
    energy = squares / divisor(xp, found.elements, squares) + added if rule.averaged else squares
    if rule.averaged and not isinstance(least_divisor, float):
        # Only for rows without deviations, where what is added has vanished: any other root exceeds it. To given
        # statistics without deviations x may have some, which are to be divided by the root of eps itself.
        less: Any = 2.0 ** (2 - digits)
        if found.size is None:
            less = less * precision.constant(exceeds(xp, energy, LEAST_ENERGY[digits], digits))
        least_divisor = least_divisor * (1.0 - less)
    is_nothing = eps <= (LEAST_ENERGY[digits] if unit is None and rule.averaged else 0.0)
    root, factor = _root_and_factor(xp, energy, size, None if is_nothing else least_divisor, precision)
    if rule.centred:
        return Step(found.mean, found.mean_low, factor, unit, size, root, least_divisor)
    # A row that holds Inf is to be NaN; with centring Inf - Inf is.
    return Step(None, None, factor + 0.0 * size, unit, size, root, least_divisor)


def apply(
    xp: Any, x: Array, step: Step, weight: Array | float | None, bias: Array | None, precision: Precision
) -> Array:
    """Step 3: (x - shift) * factor * weight + bias, in the precision's dtype."""
    if step.unit is not None and step.shift is None:
        y = weighted(xp, x, step.unit, step.factor, 1.0 if weight is None else weight, precision.digits)
    else:
        y = deviations(x, step) * step.factor
        y = y if weight is None else y * weight
    return y if bias is None else y + bias


def deviations(x: Array, step: Step) -> Array:
    """Return x * unit - shift."""
    if step.unit is not None:
        x = scaled(x, step.unit)
    if step.shift is not None:
        x = x - step.shift
    return x if step.shift_low is None else x - step.shift_low


def _reduce_in_units(
    xp: Any, x: Array, axes: tuple[int, ...], rule: Rule, precision: Precision, eps: float
) -> Statistics:
    """Step 1 where the dtype has no room to spare: rows are scaled, and centred twice."""
    digits, count = precision.digits, count_along(x, axes)
    shift = low = None
    if rule.centred:

        def in_units(lowest: Array, highest: Array) -> tuple[Array, ...]:
            unit = unit_of(xp, xp.maximum(highest, -lowest), digits, count, eps)
            return unit, lowest * unit, highest * unit, highest * unit - lowest * unit

        def between(middle: Array, lowest: Array, highest: Array) -> tuple[Array, ...]:
            return (xp.minimum(xp.maximum(middle, lowest), highest),)

        ends = lowest_and_highest(xp, precision.constant(x), axes)
        unit, lowest, highest, size = of_rows(xp, in_units, *ends)
        x = scaled(x, unit)
        # Between the two, so that the mean of a constant row is that constant.
        (shift,) = of_rows(xp, between, mean(xp, precision.constant(x), axes), lowest, highest)
        x = x - shift
        low = mean(xp, x, axes)
        x = x - low
    else:

        def in_unit(size: Array) -> tuple[Array, ...]:
            unit = unit_of(xp, size, digits, count, eps, rule.averaged)
            return unit, size * unit

        unit, size = of_rows(xp, in_unit, largest(xp, precision.constant(x), axes))
        x = scaled(x, unit)
    squares = total(xp, x * x, axes) if precision.short else total_of_squares(xp, x, axes, size, digits, rule.centred)
    return Statistics(count, shift, low, None, squares, None, unit, size)


def _root_and_factor(
    xp: Any, energy: Array, size: Array, least_divisor: Array | float | None, precision: Precision
) -> tuple[Array, Array]:
    """The root of the energy, and 1 / max(root, least_divisor); where that is None, 0 for rows without deviations.

    The reciprocal comes last: that of the energy may be out of range, its derivative even more so.
    """
    least = LEAST_ENERGY[precision.digits]
    root = xp.sqrt(at_least(xp, energy, least))
    if least_divisor is None:
        # In this order a derivative, which may be large, is multiplied by the 0 of such a row first.
        return root, reaches(xp, size, least) * (1.0 / root)
    if isinstance(least_divisor, float) and least_divisor == 0.0:  # eps is in the energy
        return root, 1.0 / root
    # Where nothing is left but eps, that may be less, in the row's unit, than the least root: this one goes down to 0.
    if precision.stated:
        root = left = at_least(xp, xp.sqrt(energy), LEAST_LENGTH[precision.digits])
    else:  # the derivative of a root is Inf at 0
        # That of this factor, 0 for all others, may be multiplied by more than the dtype holds.
        left = root * precision.constant(reaches(xp, energy, least))
    is_number = isinstance(least_divisor, float)
    return root, 1.0 / (at_least(xp, left, least_divisor) if is_number else xp.maximum(left, least_divisor))
