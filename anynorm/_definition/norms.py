"""The three norms.

Each is the same three steps over the normalized axes, with n elements to a row:

    reduce   a row -> its statistics: count, mean, sum of squared deviations (of squares where nothing is centred)
    finish   statistics -> one shift and one factor; the only step in which the norms differ
    apply    (x - shift) * factor * weight + bias

float16, bfloat16 and float32 are computed in float64 where the library has that at a fair price. No square can overflow
or underflow there, and its 29 spare bits absorb the rounding of all else. Other dtypes are computed as they are: rows
are multiplied by a power of two that keeps squares in range, and centred twice, first by a mean that is rounded and
then by the mean of what that leaves, so that a mean of a million standard deviations costs no accuracy (Chan, Golub,
LeVeque 1983, "Algorithms for computing the sample variance").
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from anynorm._definition.scaling import LEAST_ENERGY, LEAST_LENGTH, eps_in_units, scaled, unit_of, weighted
from anynorm._definition.sums import (
    at_least,
    at_most,
    count_along,
    largest,
    lowest_and_highest,
    mean,
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
    """The array."""
    return array


class Precision(NamedTuple):
    """The dtype to compute in, and how much care it takes there."""

    dtype: Any
    digits: int = 0  # 0: the dtype has room to spare; else its significant bits
    short: bool = False  # the result has so few bits that it does not show what a sum is rounded by
    stated: bool = False  # derivatives are stated, and no operation is differentiated
    constant: Callable[[Array], Array] = as_it_is  # has automatic differentiation take an array for a constant


class Statistics(NamedTuple):
    """What step 1 finds of each row of x * unit; normalized axes are kept with length 1."""

    elements: int  # of a row
    mean: Array | None  # None: taken as zero
    mean_low: Array | None  # what the mean leaves when it is rounded
    mean_rest: Array | None  # and what both leave, of one that was merged
    squares: Array  # the sum of squared deviations from the mean
    squares_low: Array | None
    unit: Array | None  # the power of two that keeps squares in range; None: 1
    size: Array | None = None  # 0 for a row without deviations, Inf or NaN where it holds those; None: see squares


class Step(NamedTuple):
    """What step 2 makes of them: a row becomes (x * unit - shift - shift_low) * factor."""

    shift: Array | None
    shift_low: Array | None
    factor: Array
    unit: Array | None
    size: Array  # 0 for a row without deviations
    root: Array  # the length of a row, or the root of its mean square
    length: Array | float  # eps as such


# No finite row of float32 is as long.
_LARGE_LENGTH = 2.0**800


def reduce(xp: Any, x: Array, axes: tuple[int, ...], rule: Rule, precision: Precision, eps: float = 0.0) -> Statistics:
    """Step 1: the statistics of each row of ``x``, already of the precision's dtype; any eps will suit those for 0."""
    count, shift, low, unit, size = count_along(x, axes), None, None, None, None
    if not precision.digits:
        shift = mean(xp, x, axes) if rule.centred else None
    elif rule.centred:
        lowest, highest = lowest_and_highest(xp, precision.constant(x), axes)
        unit = unit_of(xp, xp.maximum(highest, -lowest), precision.digits, count, eps)
        lowest, highest, x = lowest * unit, highest * unit, scaled(x, unit)
        # Between both, so that the mean of a constant row is no other number.
        shift = xp.minimum(xp.maximum(mean(xp, precision.constant(x), axes), lowest), highest)
        size = highest - lowest
    else:
        size = largest(xp, precision.constant(x), axes)
        unit = unit_of(xp, size, precision.digits, count, eps, rule.averaged)
        size, x = size * unit, scaled(x, unit)
    if shift is not None:
        x = x - shift
    if shift is not None and precision.digits:
        low = mean(xp, x, axes)
        x = x - low
    squares = (
        total(xp, x * x, axes)
        if size is None or precision.short
        else total_of_squares(xp, x, axes, size, precision.digits)
    )
    return Statistics(count, shift, low, None, squares, None, unit, size)


def finish(xp: Any, found: Statistics, rule: Rule, eps: float, precision: Precision) -> Step:
    """Step 2: the shift and the factor."""
    unit, digits, shift, low = found.unit, precision.digits, found.mean, found.mean_low
    energy, least = found.squares, LEAST_ENERGY[digits]
    # XLA fuses sums with what comes of them where that is used once, so it is not they that tell what a row holds.
    size = precision.constant(energy if found.size is None else found.size)
    if unit is None and not rule.averaged and eps > _LARGE_LENGTH:
        unit, eps = xp.full_like(energy, 2.0**-500), eps * 2.0**-500
    square, length = eps, (0.0 if rule.averaged else max(eps, LEAST_LENGTH[digits]))
    if unit is not None and digits and eps:
        square, length = eps_in_units(xp, unit, digits, eps, rule.averaged)
        if rule.averaged:  # a row without deviations has this alone, its eps may have vanished; others exceed it
            length = length * (1.0 - 2.0 ** (2 - digits))
    if rule.averaged:
        energy = energy / max(found.elements, 1) + square
    # The reciprocal comes last: that of the energy may be out of range, and the derivative of it is sooner.
    root = xp.sqrt(at_least(xp, energy, least))
    if eps <= (least if unit is None and rule.averaged else 0.0):
        factor = at_most(xp, size, least) / least / root  # of a row of nothing it is 0
    elif isinstance(length, float) and length == 0.0:
        factor = 1.0 / root
    else:
        # Of a row without deviations nothing but eps is left, which may be less in its unit than the least root.
        if precision.stated:
            root = at_least(xp, xp.sqrt(energy), LEAST_LENGTH[digits])
        left = root if precision.stated else root * (at_most(xp, energy, least) / least)
        factor = 1.0 / (at_least(xp, left, length) if isinstance(length, float) else xp.maximum(left, length))
    if not rule.centred:
        factor = factor + 0.0 * size  # of a row that holds Inf it is NaN
        shift = low = None
    return Step(shift, low, factor, unit, size, root, length)


def apply(
    xp: Any, x: Array, step: Step, weight: Array | float | None, bias: Array | None, precision: Precision
) -> Array:
    """Step 3: (x - shift) * factor * weight + bias, in the precision's dtype."""
    if step.unit is not None and step.shift is None and weight is not None:
        y = weighted(xp, x, step.unit, step.factor, weight, precision.digits)
    elif weight is None:
        y = deviations(x if step.unit is None else scaled(x, step.unit), step) * step.factor
    else:
        y = deviations(x if step.unit is None else scaled(x, step.unit), step) * step.factor * weight
    return y if bias is None else y + bias


def deviations(x: Array, step: Step) -> Array:
    """X - shift; of x * unit."""
    if step.shift is not None:
        x = x - step.shift
    return x if step.shift_low is None else x - step.shift_low
