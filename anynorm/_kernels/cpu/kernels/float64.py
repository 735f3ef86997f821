"""Rows of float64, for which there is no wider dtype: statistics in pairs of numbers, the result within 4 units.

A pair (high, low) stands for the exact sum of both. Sources: Knuth, TAOCP 2, 4.2.2 (two_sum); Dekker 1971 and the fused
multiplication and addition (two_product).
"""

from __future__ import annotations

import math

from anynorm._kernels.cpu.kernels.chunks import chunks_of, elements_of
from anynorm._kernels.cpu.kernels.parameters import are_near_one, widen_parameters
from anynorm._kernels.cpu.kernels.scatter import X, gather, is_gathered, numbers_address, row_address, row_of, scatter
from anynorm._kernels.cpu.kernels.streaming import map_chunk, writing
from anynorm._kernels.cpu.kernels.task import Variant
from anynorm._kernels.cpu.kernels.values import Arrays, TaskValues, load_task
from anynorm._kernels.cpu.language.arithmetic import fma, is_false, larger, magnitude, number, root, splat, where
from anynorm._kernels.cpu.language.dtypes import CHUNK, FINISHED, FLOAT64, LAYER, SCALE, Lanes, Number
from anynorm._kernels.cpu.language.flow import cases, cell, loop, when
from anynorm._kernels.cpu.language.memory import load, peek, real, store_real

_LANES = FLOAT64.lanes


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


def reduce_row(task: TaskValues, row: Arrays, centred: bool) -> tuple[Number, PairSum, PairSum]:
    """The shift, the sum of deviations from it and the sum of their squares."""
    # Any element will do for a shift: none is further from the mean than sqrt(features) standard deviations (Samuelson
    # 1968), and pairs have the bits to spare. A constant row has no deviations then.
    shift = peek(row.x, FLOAT64, row.residual) if centred else 0.0
    near, zero = splat(shift, FLOAT64, _LANES), splat(0.0, FLOAT64, _LANES)
    sums, squares = PairSum(0.0), PairSum(0.0)
    for start, count in chunks_of(task):
        chunk = gather(task, row, start, count)
        chunk_sums, chunk_squares = PairSum(zero), PairSum(zero)
        for value in elements_of(task, chunk, count, FLOAT64, near):
            add_elements(value, near, centred, chunk_sums, chunk_squares)
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
    task: TaskValues, shift: Number, of_sums: PairSum, of_squares: PairSum, is_scale: bool
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
    numerator = 1.0 if is_scale else count
    if is_scale:
        of_eps, of_eps_low = two_product(task.eps, task.eps)
        is_empty = energy < of_eps
        energy, low = where(is_empty, of_eps, energy), where(is_empty, of_eps_low, low)
    else:
        of_eps, of_eps_low = two_product(task.eps, count)
        energy, error = two_sum(energy, of_eps)
        low = low + (of_eps_low + error)
    # One step of Newton from the rounded root, with the residual formed exactly.
    factor = 1.0 / root(energy / numerator)
    square, square_error = two_product(factor, factor)
    product, product_error = two_product(square, energy)
    residual = ((numerator - product) - product_error) - square_error * energy - square * low
    factor_low = factor * residual / (numerator + numerator)
    safe = (energy > 2.0**-400) & (energy < 2.0**400)
    if is_scale:
        product, error = two_product(factor, task.scale)
        factor, factor_low = product, error + factor_low * task.scale
        safe = safe & (magnitude(factor) > 2.0**-700) & (magnitude(factor) < 2.0**700)
    return mean, mean_low, where(safe, factor, math.nan), factor_low


class PairFactors:
    """What a row, or rows side by side, are moved by and multiplied by, as pairs, in lanes."""

    def __init__(self, centred: bool, *numbers: Lanes) -> None:
        self.centred = centred
        self.mean, self.mean_low, self.factor, self.factor_low = numbers


def apply_pairs(value: Lanes, row: PairFactors, weight: Lanes | None, low: Lanes | None, bias: Lanes | None) -> Lanes:
    """``(x - mean) * factor * weight + bias``; ``low`` is what rounding the weight left behind."""
    if row.centred:
        value = (value - row.mean) - row.mean_low
        value = fma(value, row.factor, value * row.factor_low)
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


def widen_in_pairs(task: TaskValues, start: int, count: int) -> None:
    """A chunk of weight + weight_offset as pairs, and of bias."""
    widen_parameters(task, start, count, 0.0)
    for _ in when(task.weight_offset != 0.0):
        offset = splat(task.weight_offset, FLOAT64, _LANES)
        for i in loop(0, count * 8, _LANES * 8):
            high, low = two_sum(load(task.scratch.weights + i, FLOAT64), offset)
            store_real(task.scratch.weights + i, high)
            store_real(task.scratch.lows + i, low)


def prepare_parameters(task: TaskValues) -> bool:
    """Widen parameters that take no more than a chunk; whether all weights lie within 2**-500 and 2**500 or are 0."""
    safe = cell(True)
    for _ in when(task.widened):
        for i in loop(0, CHUNK + _LANES, _LANES):
            store_real(task.scratch.weights + i * 8, splat(1.0, FLOAT64, _LANES))
            # 0.0 would turn a result of -0.0 into 0.0.
            store_real(task.scratch.biases + i * 8, splat(-0.0, FLOAT64, _LANES))
        for start, count in chunks_of(task):
            widen_in_pairs(task, start, count)
            safe[...] = safe & are_near_one(FLOAT64, task.scratch.weights, count, 2.0**500)
    return safe


def _normalize_row(task: TaskValues, row: int, given: bool) -> bool:
    """Normalize a row, by given factors or by its own; whether that was safe."""
    addresses, safe = row_of(task, row), cell(True)
    for centred in cases(task.rule == LAYER):
        if given:
            at = numbers_address(task, row, FINISHED)
            numbers = [real(at + 8 * i) for i in range(FINISHED)]
        else:
            shift, sums, squares = reduce_row(task, addresses, centred)
            numbers = [cell(shift) for _ in range(4)]
            for is_scale in (False,) if centred else cases(task.rule == SCALE):
                found = find_factors(task, shift, sums, squares, is_scale)
                for one, value in zip(numbers, found, strict=True):
                    one[...] = value
            safe[...] = numbers[2] == numbers[2]
        for _ in when(safe):
            in_lanes = (splat(one, FLOAT64, _LANES) for one in numbers)
            _apply_row(task, row, addresses, PairFactors(centred, *in_lanes))
    return safe


def _apply_row(task: TaskValues, row: int, addresses: Arrays, factors: PairFactors) -> None:
    """Step 3 of the definition, with mean and factor as pairs."""
    scratch, ahead = task.scratch, where(is_gathered(task), 0, row_address(task, X, row + 1) - addresses.x)
    for start, count in chunks_of(task):
        for _ in when(task.widened & (count != task.features)):
            widen_in_pairs(task, start, count)
        chunk = gather(task, addresses, start, count)
        for widened in cases(task.widened):
            for has_offset in cases(task.weight_offset != 0.0) if widened else (False,):
                for streaming in cases(task.streaming):

                    def compute(i: int, value: Lanes, widened: bool = widened, has_offset: bool = has_offset) -> Lanes:
                        needed = (scratch.weights, widened), (scratch.lows, has_offset), (scratch.biases, widened)
                        parameters = (load(numbers + i * 8, FLOAT64) if one else None for numbers, one in needed)
                        return apply_pairs(value, factors, *parameters)

                    map_chunk(task, chunk, larger(count, _LANES), ahead, streaming, compute)
        scatter(task, addresses, start, count)


def normalize_all(task: TaskValues, first: int, last: int, given: bool = False) -> int:
    """Normalize rows, by given factors or by their own; return which is the next, or -1."""
    # Shorter rows are put together in buffers.
    task = task._replace(streaming=task.streaming & (task.features >= _LANES))
    following, ended = cell(-1), cell(False)
    for _ in when(prepare_parameters(task)):
        following[...] = last
        with writing(task):
            for row in loop(first, last, 1, ended):
                for _ in when(is_false(_normalize_row(task, row, given))):
                    following[...], ended[...] = row, True
    return following


def normalize_float64(variant: Variant, address: int, first: int, last: int) -> int:
    """Normalize rows first to last, or up to one of extreme magnitude; return which is the next.

    That is -1 where weights are extreme.
    """
    return normalize_all(load_task(address, variant), first, last)
