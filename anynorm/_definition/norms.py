"""The three norms.

Each is the same three steps over the normalized axes, with n elements to a row:

    reduce   a row -> its statistics: count, mean, sum of squared deviations (of squares where nothing is centred)
    finish   statistics -> one shift and one factor; the only step in which the norms differ
    apply    (x - shift) * factor * weight + bias

Conventions (`anynorm.Convention`) change where eps stands, in step 2, and what is rounded on the way, in
`apply_rounded`.

float16, bfloat16 and float32 are computed in float64 where the library has it and is fast with it. No square overflows
or underflows there, and the 29 bits that it has beyond float32 absorb all rounding. Elsewhere (float64 itself; float32
and narrower in JAX) rows are first multiplied by a power of two, their unit, which keeps squares in range, and centred
twice: by the rounded mean, then by the mean of what is left. So a mean of a million standard deviations costs no
accuracy (Chan, Golub, LeVeque 1983, "Algorithms for computing the sample variance").
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

from anynorm._definition.corrected import lack_of_factor
from anynorm._definition.counting import divisor
from anynorm._definition.rounding import rounded
from anynorm._definition.scaling import (
    LEAST_ENERGY,
    LEAST_LENGTH,
    are_one,
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
    """What tells one norm from another, and the conventions by which it is computed."""

    name: str
    centred: bool  # subtract the mean
    averaged: bool  # rows of root mean square 1; otherwise of length 1
    # "inside": sqrt(mean square + eps); "outside": sqrt(mean square) + eps, or length + eps where nothing is averaged;
    # "floor": max(length, eps), of the root mean square max(length, eps) / sqrt(n)
    eps_place: str = "inside"
    rounding: str = "once"  # "normalized": x_hat to x's dtype too; "each": that, and each product and sum
    statistics: str = "wide"  # "x": what x is divided by is rounded to x's dtype
    offset: str = "wide"  # "weight": weight + weight_offset is rounded to the dtype of the weight

    @property
    def formula(self) -> Rule:
        """The rule without roundings on the way, by which derivatives go."""
        if self.rounding == "once" and self.statistics == self.offset == "wide":
            return self
        return self._replace(rounding="once", statistics="wide", offset="wide")

    @property
    def is_plain(self) -> bool:
        """Whether there is no convention that changes anything."""
        return self in (LAYER_NORM, RMS_NORM, SCALE_NORM)


LAYER_NORM = Rule("layer_norm", centred=True, averaged=True)
RMS_NORM = Rule("rms_norm", centred=False, averaged=True)
SCALE_NORM = Rule("scale_norm", centred=False, averaged=False, eps_place="floor")


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
    narrow: str = ""  # the dtype of the rows, where that is narrower
    reduced: Callable[..., Array] | None = None  # rounds to fewer bits of exponent and mantissa; None: see rounding.py


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
    # The factor is 1 / max(root, least_divisor), for eps outside of the root 1 / (root + least_divisor), unless the row
    # has no deviations.
    least_divisor: Array | float
    spread: Array | float = 1.0  # by which the factor is more than that: sqrt(n), where x_hat is made of unit vectors


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
    is_inside, is_mean = rule.eps_place == "inside", rule.averaged and rule.eps_place != "floor"
    # XLA fuses a sum with what follows only where it is used once; so `size` and not `squares` tells zeros and NaN.
    size = precision.constant(squares if found.size is None else found.size)
    if unit is None and not is_inside and eps > _LARGE_LENGTH:
        unit, eps = xp.full_like(squares, 2.0**-500), eps * 2.0**-500
    added, least_divisor = eps, (0.0 if is_inside else max(eps, LEAST_LENGTH[digits]))
    if unit is not None and digits and eps and not are_one(unit):
        added, least_divisor = eps_in_units(xp, unit, digits, eps, is_inside)
    count = divisor(xp, found.elements, squares)
    energy = squares / count if is_mean else squares
    energy = energy + added if is_inside else energy
    if is_inside and not isinstance(least_divisor, float):
        # Only for rows without deviations, where what is added has vanished: any other root exceeds it. To given
        # statistics without deviations x may have some, which are to be divided by the root of eps itself.
        less: Any = 2.0 ** (2 - digits)
        if found.size is None:
            less = less * precision.constant(exceeds(xp, energy, LEAST_ENERGY[digits], digits))
        least_divisor = least_divisor * (1.0 - less)
    is_nothing = eps <= (LEAST_ENERGY[digits] if unit is None and is_inside else 0.0)
    root, factor = _root_and_factor(xp, energy, size, None if is_nothing else least_divisor, rule, unit, precision)
    spread: Any = 1.0
    if rule.averaged and not is_mean:
        spread = math.sqrt(count) if isinstance(count, int) else xp.sqrt(size * 0.0 + count)
        factor = factor * spread
    # Float32 in JAX is within its 4 units without; XLA would make more than one loop of what uses the squares twice.
    if digits > 24 and found.size is not None and isinstance(count, int) and rule.statistics == "wide":
        of_eps, beside = added if is_inside else 0.0, least_divisor if rule.eps_place == "outside" else 0.0
        n = count if rule.averaged else 1
        lack = lack_of_factor(xp, factor, root, squares, n, is_mean, of_eps, beside, digits)
        factor = factor + precision.constant(lack)
    if rule.centred:
        return Step(found.mean, found.mean_low, factor, unit, size, root, least_divisor, spread)
    # A row that holds Inf is to be NaN; with centring Inf - Inf is.
    return Step(None, None, factor + 0.0 * size, unit, size, root, least_divisor, spread)


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


def apply_rounded(
    xp: Any,
    x: Array,
    step: Step,
    weight: Array | float | None,
    bias: Array | None,
    rule: Rule,
    precision: Precision,
) -> Array:
    """Step 3 by a rule that rounds on the way, in the precision's dtype; the result is a number of x's own."""

    def narrowed(values: Array) -> Array:
        return rounded(xp, values, precision.narrow, precision)

    is_each, y, factor = rule.rounding == "each", deviations(x, step), step.factor
    if is_each and not (isinstance(step.spread, float) and step.spread == 1.0):
        y, factor = narrowed(y * (factor / step.spread)), step.spread
    y = y * factor
    if rule.rounding != "once":
        y = narrowed(y)
    if weight is not None:
        y = y * weight
        y = narrowed(y) if is_each else y
    return narrowed(y if bias is None else y + bias)


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
    digits, count, is_inside = precision.digits, count_along(x, axes), rule.eps_place == "inside"
    shift = low = None
    if rule.centred:

        def in_units(lowest: Array, highest: Array) -> tuple[Array, ...]:
            unit = unit_of(xp, xp.maximum(highest, -lowest), digits, count, eps, is_inside)
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
            unit = unit_of(xp, size, digits, count, eps, is_inside)
            return unit, size * unit

        unit, size = of_rows(xp, in_unit, largest(xp, precision.constant(x), axes))
        x = scaled(x, unit)
    squares = total(xp, x * x, axes) if precision.short else total_of_squares(xp, x, axes, size, digits)
    return Statistics(count, shift, low, None, squares, None, unit, size)


def _root_and_factor(
    xp: Any, energy: Array, size: Array, least_divisor: Array | float | None, rule: Rule, unit: Array | None,
    precision: Precision,
) -> tuple[Array, Array]:  # fmt: skip
    """The root of the energy, and 1 / max(root, least_divisor) or, with eps outside of the root, 1 / (root + it).

    Where that is None, 0 for rows without deviations. The reciprocal comes last: that of the energy may be out of
    range, its derivative even more so.
    """
    least = LEAST_ENERGY[precision.digits]
    root = xp.sqrt(at_least(xp, energy, least))
    if rule.statistics == "x":
        root = xp.where(size == 0.0, root, _in_x(xp, root, unit, precision))
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
    if rule.eps_place == "outside":
        return root, 1.0 / (left + least_divisor)
    is_number = isinstance(least_divisor, float)
    return root, 1.0 / (at_least(xp, left, least_divisor) if is_number else xp.maximum(left, least_divisor))


def _in_x(xp: Any, root: Array, unit: Array | None, precision: Precision) -> Array:
    """The roots of rows as x's dtype has them, still in the units of the rows."""
    if unit is None:
        return rounded(xp, root, precision.narrow, precision)
    return rounded(xp, root * (1.0 / unit), precision.narrow, precision) * unit
