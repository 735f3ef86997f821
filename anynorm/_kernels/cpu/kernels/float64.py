"""Rows of float64, for which there is no wider dtype: statistics in pairs of numbers, the result within 4 units.

A pair (high, low) stands for the exact sum of both. Sources: Knuth, TAOCP 2, 4.2.2 (two_sum); Dekker 1971 and the fused
multiplication and addition (two_product).
"""

from __future__ import annotations

import math

from anynorm._kernels.cpu.kernels.chunks import chunks_of, read_rest
from anynorm._kernels.cpu.kernels.parameters import fill_chunk, widen_parameters
from anynorm._kernels.cpu.kernels.scatter import RESIDUAL, TOTAL, X, Y, gather_both, is_gathered, place, scatter, target
from anynorm._kernels.cpu.kernels.streaming import flush, map_chunk, read, reset
from anynorm._kernels.cpu.kernels.task import Variant
from anynorm._kernels.cpu.kernels.values import TaskValues, load_task
from anynorm._kernels.cpu.language.dtypes import CHUNK, FLOAT64, LAYER, SCALE, Address, Lanes, Number, lanes_of
from anynorm._kernels.cpu.language.lanes import (
    alike,
    cases,
    cell,
    fence,
    fma,
    larger,
    load,
    loop,
    magnitude,
    number,
    peek,
    root,
    splat,
    store,
    sum_lane_pairs,
    sum_lanes,
    when,
    where,
    where_less,
)

_LANES = lanes_of(FLOAT64)


def two_sum(a: Lanes, b: Lanes) -> tuple[Lanes, Lanes]:
    """The rounded sum and what it rounds off, exactly; of lanes or of numbers."""
    high = a + b
    b_seen = high - a
    return high, (a - (high - b_seen)) + (b - b_seen)


def two_product(a: Lanes, b: Lanes) -> tuple[Lanes, Lanes]:
    """The rounded product and what it rounds off; exact while nothing underflows."""
    high = a * b
    return high, fma(a, b, alike(0.0, a) - high)


class _Sums:
    """Sums of deviations from a shift and of their squares, as pairs."""

    def __init__(self, like: Lanes) -> None:
        zero = alike(0.0, like)
        self.sums, self.sums_low, self.squares, self.squares_low = (cell(zero) for _ in range(4))

    def add(self, value: Lanes, shift: Lanes, centred: bool) -> None:
        """Add numbers that are to be centred, or squared as they are."""
        if centred:
            value, low = two_sum(value, -shift)
            sums, error = two_sum(self.sums, value)
            self.sums[...] = sums
            self.sums_low[...] = self.sums_low + (error + low)
            square, error = two_product(value, value)
            error = fma(value + value, low, error)
        else:
            square, error = two_product(value, value)
        squares, more = two_sum(self.squares, square)
        self.squares[...] = squares
        self.squares_low[...] = self.squares_low + (more + error)

    def merge(self, sums: tuple[Number, Number], squares: tuple[Number, Number]) -> None:
        """Add sums that have been formed."""
        high, error = two_sum(self.sums, sums[0])
        self.sums[...] = high
        self.sums_low[...] = self.sums_low + (sums[1] + error)
        high, error = two_sum(self.squares, squares[0])
        self.squares[...] = high
        self.squares_low[...] = self.squares_low + (squares[1] + error)


def reduce_row(task: TaskValues, x: int, residual: Address, centred: bool) -> tuple[Number, _Sums]:
    """The shift, and as pairs the sum of deviations from it and the sum of their squares."""
    # Any element will do for a shift: none is further from the mean than sqrt(features) standard deviations (Samuelson
    # 1968), and pairs have the bits to spare. A constant row has no deviations then.
    shift = peek(x, residual, FLOAT64) if centred else alike(0.0, task.eps)
    near = splat(shift, FLOAT64, _LANES)
    row = _Sums(shift)
    for start, count in chunks_of(task):
        a, b = gather_both(task, x, residual, start, count)
        chunk = _Sums(near)
        for i in loop(0, count - _LANES + 1, _LANES):
            chunk.add(read(FLOAT64, FLOAT64, a, b, i), near, centred)
        for _ in loop(0, count % _LANES, _LANES):
            chunk.add(read_rest(FLOAT64, FLOAT64, a, b, count, near), near, centred)
        row.merge(sum_lane_pairs(chunk.sums, chunk.sums_low), sum_lane_pairs(chunk.squares, chunk.squares_low))
    return shift, row


def _finish(task: TaskValues, shift: Number, row: _Sums, is_scale: bool) -> tuple[Number, Number, Number, Number]:
    """The mean and the factor as pairs; NaN for a factor that is out of the range in which apply is exact."""
    sums, sums_low, squares, squares_low = (one + 0.0 for one in (row.sums, row.sums_low, row.squares, row.squares_low))
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
    eps, numerator = alike(task.eps, count), alike(1.0, count) if is_scale else count
    if is_scale:
        of_eps, of_eps_low = two_product(eps, eps)
        is_empty = energy < of_eps
        energy, low = where(is_empty, of_eps, energy), where(is_empty, of_eps_low, low)
    else:
        of_eps, of_eps_low = two_product(eps, count)
        energy, error = two_sum(energy, of_eps)
        low = low + (of_eps_low + error)
    # One step of Newton from the rounded root, with the residual formed exactly.
    factor = alike(1.0, count) / root(energy / numerator)
    square, square_error = two_product(factor, factor)
    product, product_error = two_product(square, energy)
    residual = ((numerator - product) - product_error) - square_error * energy - square * low
    factor_low = factor * residual / (numerator + numerator)
    safe = (energy > 2.0**-400) & (energy < 2.0**400)
    if is_scale:
        scale = alike(task.scale, count)
        product, error = two_product(factor, scale)
        factor, factor_low = product, error + factor_low * scale
        safe = safe & (magnitude(factor) > 2.0**-700) & (magnitude(factor) < 2.0**700)
    return mean, mean_low, where(safe, factor, math.nan), factor_low


class PairedFactors:
    """What a row is moved by and multiplied by, in all lanes."""

    def __init__(self, centred: bool, *numbers: Number) -> None:
        self.centred = centred
        self.mean, self.mean_low, self.factor, self.factor_low = (splat(one, FLOAT64, _LANES) for one in numbers)


def _apply_lanes(
    value: Lanes, row: PairedFactors, weight: Lanes | None, low: Lanes | None, bias: Lanes | None
) -> Lanes:
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


def _apply_chunk(
    task: TaskValues, x: int, residual: Address, y: int, total: Address, count: int, row: PairedFactors,
    ahead: int, has_parameters: bool, has_offset: bool, streaming: bool,
) -> None:  # fmt: skip
    """Step 3 of the definition, with mean and factor as pairs; as `chunks.apply_chunk`."""

    def compute(i: int, value: Lanes) -> Lanes:
        needed = (
            (task.scratch.weights, has_parameters),
            (task.scratch.lows, has_offset),
            (task.scratch.biases, has_parameters),
        )
        parameters = (load(room + i * 8, None, FLOAT64, FLOAT64) if one else None for room, one in needed)
        return _apply_lanes(value, row, *parameters)

    map_chunk(
        FLOAT64, FLOAT64, x, residual, y, total, count, ahead, compute, task.scratch.open_line if streaming else None
    )


def _widen_parameters(task: TaskValues, start: int, count: int) -> None:
    """A chunk of weight + weight_offset as pairs, and of bias."""
    widen_parameters(task, start, count, alike(0.0, task.eps))
    for _ in when(task.weight_offset != 0.0):
        offset = splat(task.weight_offset, FLOAT64, _LANES)
        for i in loop(0, count * 8, _LANES * 8):
            high, low = two_sum(load(task.scratch.weights + i, None, FLOAT64, FLOAT64), offset)
            store(task.scratch.weights + i, FLOAT64, high)
            store(task.scratch.lows + i, FLOAT64, low)


def _are_weights_safe(task: TaskValues) -> bool:
    """Whether all weights lie within 2**-500 and 2**500 or are 0; the last chunk of parameters is left in scratch."""
    zero, one, least, most = (splat(value, FLOAT64, 1) for value in (0.0, 1.0, 2.0**-500, 2.0**500))
    outside = cell(zero)
    for start, count in chunks_of(task):
        _widen_parameters(task, start, count)
        for i in loop(0, count * 8, 8):
            size = magnitude(load(task.scratch.weights + i, None, FLOAT64, FLOAT64, 1))
            small = where_less(size, least, where_less(zero, size, one, zero), zero)
            outside[...] = outside + where_less(size, most, small, one)
    return sum_lanes(outside) == 0.0


def prepare_parameters(task: TaskValues) -> bool:
    """Widen parameters that take no more than a chunk; whether all weights are safe."""
    safe = cell(True)
    for _ in when(task.widened):
        fill_chunk(FLOAT64, 1.0, CHUNK + _LANES, task.scratch.weights)
        fill_chunk(FLOAT64, -0.0, CHUNK + _LANES, task.scratch.biases)  # 0.0 would turn a result of -0.0 into 0.0
        safe[...] = _are_weights_safe(task)
    return safe


def _normalize_row(task: TaskValues, row: int) -> bool:
    """Normalize a row; whether that was safe."""
    x, residual, y, total = (place(task, which, row) for which in (X, RESIDUAL, Y, TOTAL))
    safe = cell(True)
    for centred in cases(task.rule == LAYER):
        shift, sums = reduce_row(task, x, residual, centred)
        numbers = [cell(shift) for _ in range(4)]
        for is_scale in (False,) if centred else cases(task.rule == SCALE):
            for one, found in zip(numbers, _finish(task, shift, sums, is_scale), strict=True):
                one[...] = found
        safe[...] = numbers[2] == numbers[2]
        for _ in when(safe):
            apply_row(task, row, x, residual, y, total, PairedFactors(centred, *numbers))
    return safe


def apply_row(
    task: TaskValues, row: int, x: int, residual: Address, y: int, total: Address, numbers: PairedFactors
) -> None:
    ahead = where(is_gathered(task), 0, place(task, X, row + 1) - x)
    for start, count in chunks_of(task):
        for _ in when(task.widened & (count != task.features)):
            _widen_parameters(task, start, count)
        a, b = gather_both(task, x, residual, start, count)
        to, sum_to = (
            target(task, array, start, room) for array, room in ((y, task.scratch.y), (total, task.scratch.total))
        )
        for widened in cases(task.widened):
            for has_offset in cases(task.weight_offset != 0.0) if widened else (False,):
                for streaming in cases(task.streaming):
                    _apply_chunk(
                        task, a, b, to, sum_to, larger(count, _LANES), numbers, ahead, widened, has_offset,
                        streaming,
                    )  # fmt: skip
        scatter(task, Y, y, start, count, task.scratch.y)
        scatter(task, TOTAL, total, start, count, task.scratch.total)


def normalize_float64(variant: Variant, address: int, first: int, last: int) -> int:
    """Normalize rows first to last, or up to one of extreme magnitude; return which is the next.

    That is -1 where weights are extreme.
    """
    task = load_task(address, variant)
    # Shorter rows are put together in buffers.
    task = task._replace(streaming=task.streaming & (task.features >= _LANES))
    following = cell(-1)
    safe = prepare_parameters(task)
    for _ in when(safe):
        reset(task.scratch.open_line)
        following[...], ended = last, cell(False)
        for row in loop(first, last, 1, ended):
            for _ in when(_normalize_row(task, row) == False):  # noqa: E712
                following[...], ended[...] = row, True
        for _ in when(task.streaming):
            flush(FLOAT64, task.scratch.open_line)
            fence()
    return following
