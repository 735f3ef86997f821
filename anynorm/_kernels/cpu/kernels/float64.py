"""Rows of float64, for which there is no wider dtype: statistics in pairs of numbers, the result within 4 units.

A pair (high, low) stands for the exact sum of both. Sources: Knuth, TAOCP 2, 4.2.2 (two_sum); Dekker 1971 and the fused
multiplication and addition (two_product).
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

from anynorm._kernels.cpu.kernels.chunks import chunks_of, elements_of
from anynorm._kernels.cpu.kernels.parameters import are_near_one, widen_parameters
from anynorm._kernels.cpu.kernels.scatter import X, gather, is_gathered, numbers_address, row_address, row_of, scatter
from anynorm._kernels.cpu.kernels.streaming import map_chunk, writing
from anynorm._kernels.cpu.kernels.task import Variant
from anynorm._kernels.cpu.kernels.turns import of_turn
from anynorm._kernels.cpu.kernels.units import find_in_units, in_unit, multiplier, product, size_of, unit_of
from anynorm._kernels.cpu.kernels.values import Arrays, TaskValues, load_task
from anynorm._kernels.cpu.language.arithmetic import (
    fma,
    is_false,
    larger,
    magnitude,
    number,
    power_of_two,
    root,
    smaller,
    splat,
    where,
)
from anynorm._kernels.cpu.language.dtypes import (
    CHUNK,
    FINISHED,
    FLOAT64,
    FLOOR,
    INSIDE,
    LAYER,
    OUTSIDE,
    SCALE,
    Lanes,
    Number,
)
from anynorm._kernels.cpu.language.flow import cases, cell, loop, when
from anynorm._kernels.cpu.language.memory import load, peek, real, store_real

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


def reduce_row(task: TaskValues, row: Arrays, unit: Number) -> tuple[Number, PairSum, PairSum]:
    """The shift, the sum of deviations from it and the sum of their squares, of a row times its unit."""
    # Any element will do for a shift: none is further from the mean than sqrt(features) standard deviations (Samuelson
    # 1968), and pairs have the bits to spare. A constant row has no deviations then.
    centred = task.rule == LAYER
    shift = peek(row.x, FLOAT64, row.residual) if centred else 0.0
    fill, zero = splat(shift, FLOAT64, _LANES), splat(0.0, FLOAT64, _LANES)
    shift = shift * unit
    near = splat(shift, FLOAT64, _LANES)
    sums, squares = PairSum(0.0), PairSum(0.0)
    for start, count in chunks_of(task):
        chunk = gather(task, row, start, count)
        chunk_sums, chunk_squares = PairSum(zero), PairSum(zero)
        for value in elements_of(task, chunk, 0, count, FLOAT64, fill):
            add_elements(value * unit, near, centred, chunk_sums, chunk_squares)
        sums.add(*sum_lane_pairs(chunk_sums.high, chunk_sums.low))
        squares.add(*sum_lane_pairs(chunk_squares.high, chunk_squares.low))
    return shift, sums, squares


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


def widen_in_pairs(task: TaskValues, start: int, count: int) -> None:
    """A chunk of weight + weight_offset as pairs, and of bias."""
    widen_parameters(task, start, count, task.weight_offset if task.variant.rounds_weight else 0.0)
    for _ in when(task.has_lows):
        offset = splat(task.weight_offset, FLOAT64, _LANES)
        for i in loop(0, count * 8, _LANES * 8):
            high, low = two_sum(load(task.scratch.weights + i, FLOAT64), offset)
            store_real(task.scratch.weights + i, high)
            store_real(task.scratch.lows + i, low)


def prepare_parameters(task: TaskValues) -> bool:
    """Widen parameters that take no more than a chunk; whether products with the weights and factors are in range."""
    safe = cell(True)
    for _ in when(task.widened):
        for i in loop(0, smaller(task.features, CHUNK) + _LANES, _LANES):
            store_real(task.scratch.weights + i * 8, splat(1.0, FLOAT64, _LANES))
            # 0.0 would turn a result of -0.0 into 0.0.
            store_real(task.scratch.biases + i * 8, splat(-0.0, FLOAT64, _LANES))
        for start, count in chunks_of(task):
            widen_in_pairs(task, start, count)
            # Where rows are centred, the weights are multiplied with x_hat itself.
            if task.rule != LAYER:
                safe[...] = safe & are_near_one(FLOAT64, task.scratch.weights, count, 2.0**500)
    return safe


def _normalize_row(task: TaskValues, row: int, given: bool, safe_weights: bool) -> None:
    """Normalize a row, by given factors or by its own."""
    addresses, centred = row_of(task, row), task.rule == LAYER
    numbers, unit = [cell(0.0) for _ in range(4)], cell(0.0)
    if given:
        at = numbers_address(task, row, FINISHED)
        for i, one in enumerate(numbers[:3]):
            one[...] = real(at + 8 * i)
        unit[...] = real(at + 24)
    else:

        def find(unit: Number) -> bool:
            _set(numbers, find_factors_in_unit(task, unit, *reduce_row(task, addresses, multiplier(unit))))
            return numbers[2] == numbers[2]

        find_in_units(unit, find, lambda: unit_of(task, size_of(task, addresses)))
    for _ in when(is_false(safe_weights) & (unit == 0.0)):
        unit[...] = 1.0
    for has_unit in cases(unit != 0.0):
        power = number(1)
        if has_unit and not centred:  # the factor is near 1 then
            power = power_of_two(numbers[2])
            _set(numbers[2:], [one / power for one in numbers[2:]])
        in_lanes: list[Any] = [splat(one, FLOAT64, _LANES) for one in numbers]
        if has_unit and given and centred:
            in_lanes[3] = None  # it is 0, and an element of other rows than the moments may be Inf in the unit
        _apply_row(task, row, addresses, PairFactors(centred, *in_lanes), (unit, power) if has_unit else None)


def _set(numbers: list[Number], values: Iterable[Number]) -> None:
    for one, value in zip(numbers, values, strict=True):
        one[...] = value


def _apply_row(
    task: TaskValues, row: int, addresses: Arrays, factors: PairFactors, unit: tuple[Number, Number] | None
) -> None:
    """Step 3 of the definition, with mean and factor as pairs; times the unit of a row, and a power, if it has them."""
    scratch, ahead = task.scratch, where(is_gathered(task), 0, row_address(task, X, row + 1) - addresses.x)
    for start, count in chunks_of(task):
        for _ in when(task.widened & (count != task.features)):
            widen_in_pairs(task, start, count)
        chunk = gather(task, addresses, start, count)
        for widened in cases(task.widened):
            for has_offset in cases(task.has_lows) if widened else (False,):
                # Rows that have a unit are few, and a line that is open from the row before is closed by the next one.
                for streaming in cases(task.streaming) if unit is None else (False,):

                    def compute(i: int, value: Lanes, widened: bool = widened, has_offset: bool = has_offset) -> Lanes:
                        needed = (scratch.weights, widened), (scratch.lows, has_offset), (scratch.biases, widened)
                        weight, low, bias = (load(numbers + i * 8, FLOAT64) if one else None for numbers, one in needed)
                        if unit is None:
                            return apply_pairs(value, factors, weight, low, bias)
                        return apply_in_unit(value, factors, *unit, task.scale, weight, low, bias)

                    map_chunk(task, chunk, larger(count, _LANES), ahead, streaming, compute)
        scatter(task, addresses, start, count)


def normalize_all(task: TaskValues, first: int, last: int, given: bool = False) -> int:
    """Normalize rows, by given factors or by their own; return the last."""
    # Chunks in buffers are copied from there.
    task = task._replace(streaming=task.streaming & is_false(is_gathered(task)))
    safe_weights, taken, of_row = cell(prepare_parameters(task)), cell(-1), task
    with writing(task):
        for row in loop(first, last, 1):
            if task.takes_turns:
                turn, of_row = of_turn(task, row)
                for _ in when(is_false(turn == taken)):
                    safe_weights[...] = prepare_parameters(of_row)
                taken[...] = turn
            _normalize_row(of_row, row, given, safe_weights)
    return last


def normalize_float64(variant: Variant, address: int, first: int, last: int) -> int:
    """Normalize rows first to last, of whatever magnitude; return the last."""
    return normalize_all(load_task(address, variant), first, last)
