"""What float64 is computed with, for which there is no wider dtype: pairs of numbers, the result within 4 units.

A pair (high, low) stands for the exact sum of both. Sources: Knuth, TAOCP 2, 4.2.2 (two_sum); Dekker 1971 and the fused
multiplication and addition (two_product).
"""

from __future__ import annotations

import math
from typing import Any

from anynorm._kernels.cpu.kernels.units import in_unit, multiplier, product
from anynorm._kernels.cpu.kernels.values import TaskValues
from anynorm._kernels.cpu.language.arithmetic import fma, magnitude, number, power_of_two, root, splat, where
from anynorm._kernels.cpu.language.dtypes import FLOAT64, FLOOR, INSIDE, OUTSIDE, SCALE, Lanes, Number
from anynorm._kernels.cpu.language.flow import cell

Pair = tuple[Lanes, Lanes]

_LANES = FLOAT64.lanes
# Of sums of squares, and of eps where it is added to a root.
_LEAST_ENERGY, _LEAST_EPS = 2.0**-400, 2.0**-100


def two_sum(a: Lanes, b: Lanes) -> tuple[Lanes, Lanes]:
    """The rounded sum and what it rounds off, exactly; of lanes or of numbers."""
    high = a + b
    b_seen = high - a
    return high, (a - (high - b_seen)) + (b - b_seen)


def two_product(a: Lanes, b: Lanes) -> tuple[Lanes, Lanes]:
    """The rounded product and what it rounds off; exact while nothing underflows."""
    high = a * b
    return high, fma(a, b, -high)


def multiply_pairs(a: Pair, b: Pair) -> Pair:
    """The product of two pairs as a pair."""
    high, low = two_product(a[0], b[0])
    return renormalize(high, low + (a[0] * b[1] + a[1] * b[0]))


def renormalize(high: Lanes, low: Lanes) -> Pair:
    """The same sum with the high part rounded to nearest."""
    total = high + low
    return total, low - (total - high)


def sum_lane_pairs(high: Lanes, low: Lanes) -> tuple[Number, Number]:
    """The sum of all lanes of a pair as a pair; in halves, as `sum_lanes`."""
    while len(high) > 1:
        half = len(high) // 2
        high, error = two_sum(high[:half], high[half:])
        low = (low[:half] + low[half:]) + error
    return high[0], low[0]


class PairSum:
    """A sum that is a pair, of lanes or of numbers."""

    def __init__(self, zero: Lanes) -> None:
        self.high, self.low = cell(zero), cell(zero)

    def add(self, high: Lanes, low: Lanes) -> None:
        """Add a pair."""
        total, error = two_sum(self.high, high)
        self.high[...] = total
        self.low[...] = self.low + (error + low)


def add_elements(value: Lanes, shift: Lanes, centred: bool, sums: PairSum, squares: PairSum) -> None:
    """Add deviations from a shift and their squares; where rows are not centred, squares alone."""
    if centred:
        deviation, low = two_sum(value, -shift)
        sums.add(deviation, low)
        square, error = two_product(deviation, deviation)
        squares.add(square, fma(deviation + deviation, low, error))
    else:
        squares.add(*two_product(value, value))


def find_factors(
    task: TaskValues, shift: Number, of_sums: PairSum, of_squares: PairSum
) -> tuple[Number, Number, Number, Number]:
    """The mean and the factor as pairs; NaN for a factor that is out of the range in which apply is exact.

    Of a row, or of rows side by side, whose sums are lanes.
    """
    sums, sums_low, squares, squares_low = (
        one + 0.0 for one in (of_sums.high, of_sums.low, of_squares.high, of_squares.low)
    )
    count = number(task.features)
    # mean - shift = sums / count, and n times the variance = squares - sums * (mean - shift).
    between = sums / count
    product, error = two_product(between, count)
    between_low = (((sums - product) - error) + sums_low) / count
    mean, mean_low = two_sum(shift, between)
    mean_low = mean_low + between_low
    product, error = two_product(sums, between)
    energy, low = two_sum(squares, -product)
    low = low + ((squares_low - error) - (sums * between_low + sums_low * between))
    numerator = 1.0 if task.rule == SCALE else count
    if task.variant.eps_place == INSIDE:
        of_eps, of_eps_low = two_product(task.eps, count)
        energy, error = two_sum(energy, of_eps)
        low = low + (of_eps_low + error)
    else:
        # Where eps is added to the root, less energy than this is nothing beside it.
        least, least_low = two_product(task.eps, task.eps) if task.variant.eps_place == FLOOR else (_LEAST_ENERGY, 0.0)
        is_less = energy < least
        energy, low = where(is_less, least, energy), where(is_less, least_low, low)
    # One step of Newton from the rounded root, with the residual formed exactly.
    factor = 1.0 / root(energy / numerator)
    square, square_error = two_product(factor, factor)
    product, product_error = two_product(square, energy)
    residual = ((numerator - product) - product_error) - square_error * energy - square * low
    factor_low = factor * residual / (numerator + numerator)
    safe = energy > _LEAST_ENERGY
    if task.variant.eps_place == OUTSIDE:
        factor, factor_low = _with_eps_outside(factor, factor_low, task.eps)
        safe = (safe | (task.eps > _LEAST_EPS)) & (task.eps < 1.0 / _LEAST_ENERGY)
    safe = safe & (energy < 1.0 / _LEAST_ENERGY)
    if task.rule == SCALE:
        product, error = two_product(factor, task.scale)
        factor, factor_low = product, error + factor_low * task.scale
    if task.rule == SCALE or task.variant.eps_place == OUTSIDE:
        safe = safe & (magnitude(factor) > 2.0**-700) & (magnitude(factor) < 2.0**700)
    return mean, mean_low, where(safe, factor, math.nan), factor_low


def _with_eps_outside(factor: Lanes, low: Lanes, eps: Number) -> tuple[Lanes, Lanes]:
    """1 / (root + eps) as a pair, of 1 / root as a pair: that by 1 + eps / root."""
    product, error = two_product(factor, eps)
    divisor, rest = two_sum(1.0, product)
    rest = rest + (error + low * eps)
    quotient = factor / divisor
    return quotient, (fma(0.0 - quotient, divisor, factor) + (low - quotient * rest)) / divisor


def find_factors_in_unit(
    task: TaskValues, unit: Lanes, shift: Lanes, of_sums: PairSum, of_squares: PairSum
) -> tuple[Lanes, Lanes, Lanes, Lanes]:
    """The same of what was reduced in a unit, without a scale; a unit of 0 stands for none, and changes nothing."""
    has_unit = unit != 0.0
    in_its_unit = in_unit(task, multiplier(unit))._replace(scale=where(has_unit, 1.0, task.scale))
    mean, mean_low, factor, factor_low = find_factors(in_its_unit, shift, of_sums, of_squares)
    # Such a row has no deviations, and eps may have vanished beside its mean.
    is_known, is_empty = factor == factor, has_unit & (of_squares.high + 0.0 == 0.0)
    factor, factor_low = (where(is_known, one, where(is_empty, 0.0, math.nan)) for one in (factor, factor_low))
    # All NaN of a row are the same, so that its bits do not depend on which one an instruction takes.
    mean, mean_low = (where(is_known | is_empty, one, 0.0) for one in (mean, mean_low))
    return mean, mean_low, factor, factor_low


class PairFactors:
    """What a row, or rows side by side, are moved by and multiplied by, as pairs, in lanes."""

    def __init__(self, centred: bool, *numbers: Any) -> None:
        self.centred = centred
        self.mean, self.mean_low, self.factor, self.factor_low = numbers


def apply_pairs(value: Lanes, row: PairFactors, weight: Lanes | None, low: Lanes | None, bias: Lanes | None) -> Lanes:
    """``(x - mean) * factor * weight + bias``; ``low`` is what rounding the weight left behind."""
    if row.centred:
        value = (value - row.mean) - row.mean_low
        value = value * row.factor if row.factor_low is None else fma(value, row.factor, value * row.factor_low)
        if weight is None:
            return value
        return fma(value, weight, bias if low is None else fma(value, low, bias))
    if weight is None:
        return fma(value, row.factor, value * row.factor_low)
    # The factor and the weight first: neither their product nor that with the element leaves its range.
    rest = weight * row.factor_low
    if low is not None:
        rest = fma(low, row.factor, rest)
    return fma(value, fma(weight, row.factor, rest), bias)


def apply_in_unit(
    value: Lanes, row: PairFactors, unit: Lanes, power: Lanes, scale: Number,
    weight: Lanes | None, low: Lanes | None, bias: Lanes | None,
) -> Lanes:  # fmt: skip
    """The same of a row that is multiplied by a unit first; without centring by a power too, and any weights."""
    if row.centred:
        return apply_pairs(value * unit, row, weight, low, bias)
    weight = splat(scale, FLOAT64, _LANES) if weight is None else weight
    of_weight = power_of_two(weight)
    inverse = 1.0 / of_weight
    near_one = weight * inverse
    rest = near_one * row.factor_low
    if low is not None:
        rest = fma(low * inverse, row.factor, rest)
    factor, value = fma(near_one, row.factor, rest), product(value, [unit, power, of_weight])
    return value * factor if bias is None else fma(value, factor, bias)
