"""What is done to a chunk: up to CHUNK features of one row, in memory one after the other.

Where there is a residual, a chunk is the sum with it, rounded to their dtype. Elements are taken as many at a time as
there are lanes. What is left of a chunk goes with the elements before it, so that it fills lanes too; where a chunk is
shorter than that, memory behind it is read, and has to be there. Every kernel keeps to that order, whatever the layout,
so that the bits of a row do not depend on it.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

from anynorm._kernels.cpu.kernels.scatter import gather
from anynorm._kernels.cpu.kernels.streaming import further, map_chunk, read
from anynorm._kernels.cpu.kernels.values import Arrays, TaskValues
from anynorm._kernels.cpu.language.arithmetic import (
    fma,
    in_order,
    larger,
    number,
    part,
    root,
    rounded,
    smaller,
    splat,
    split,
    sum_lanes,
    where,
)
from anynorm._kernels.cpu.language.dtypes import (
    CHUNK,
    EACH,
    FLOAT32,
    FLOAT64,
    LAYER,
    NUMBERS,
    ONCE,
    SCALE,
    Dtype,
    Lanes,
    Number,
)
from anynorm._kernels.cpu.language.flow import cell, combinations, loop, when
from anynorm._kernels.cpu.language.memory import load, peek, real, store_real


def chunks_of(task: TaskValues, step: int = CHUNK) -> Iterator[tuple[int, int]]:
    """Where each chunk of a row begins, and how long it is; none but that of a short row is shorter than lanes."""
    for start in loop(0, larger(task.features - task.lanes + 1, 1), step):
        left = task.features - start
        yield start, where(left < step + task.lanes, left, step)


def parts_of(count: int, lanes: int) -> tuple[tuple[int, int, int], ...]:
    """Lanes, first element and end: of what fills lanes, and of the rest one by one, behind which nothing is read."""
    whole = count - count % lanes
    return (lanes, 0, whole), (1, whole, count)


def elements_of(task: TaskValues, chunk: Arrays, first: int, count: int, dtype: Dtype, fill: Lanes) -> Iterator[Lanes]:
    """The elements of a chunk from the first on, a multiple of the lanes, in a dtype, lanes at a time.

    In the last lanes stands what is left, and beside it ``fill``.
    """
    for i in loop(first, count - task.lanes + 1, task.lanes):
        yield read(task, chunk, i, dtype)
    yield from _last_of(task, chunk, count, dtype, fill)


def _last_of(task: TaskValues, chunk: Arrays, count: int, dtype: Dtype, fill: Lanes) -> Iterator[Lanes]:
    """What is left of a chunk where it does not fill lanes."""
    for _ in loop(0, count % task.lanes, task.lanes):
        start = larger(count - task.lanes, 0)
        yield part(read(task, chunk, start, dtype), count - count % task.lanes - start, count - start, fill)


def mean_of_first(task: TaskValues, row: Arrays, dtype: Dtype) -> Number:
    """The mean of the first elements of a row, as many as there are lanes, rounded; the sum is formed in a dtype."""
    count = smaller(task.features, task.lanes)
    first = read(task, gather(task, row, 0, count), 0, dtype)
    return rounded(sum_lanes(part(first, 0, count, splat(0.0, dtype, task.lanes))) / number(count), task.dtype)


class Sums:
    """The sums of deviations from a shift and of their squares, in lanes; where there is none, of squares alone."""

    def __init__(self, task: TaskValues, shift: Lanes | None) -> None:
        self.task, self.is_centred = task, shift is not None
        zero = splat(0.0, task.statistics_dtype, task.lanes)
        self.near = zero if shift is None else shift
        self.parts = [cell(zero), cell(zero)]
        self.sums, self.squares = self.parts

    def add(self, value: Lanes) -> None:
        """Add one more element to each lane."""
        if self.is_centred:
            value = value - self.near
            self.sums[...] = self.sums + value
        self.squares[...] = fma(value, value, self.squares)

    def add_chunk(self, chunk: Arrays, first: int, count: int) -> None:
        """Add the elements of a chunk from the first on, before which lanes are full, and end the sums.

        Until then elements come by parity, in which order of lanes none of their sums is another one.
        """
        task, dtype = self.task, self.task.statistics_dtype
        for i in loop(first, count - task.lanes + 1, task.lanes):
            self.add(read(task, chunk, i, dtype, by_parity=True))
        for one in self.parts:
            one[...] = in_order(one, task.dtype)
        for value in _last_of(task, chunk, count, dtype, self.near):
            self.add(value)

    def total(self) -> tuple[Number, Number]:
        """The sums of all lanes; 0 for that of deviations where there is no shift."""
        return sum_lanes(self.sums) if self.is_centred else 0.0, sum_lanes(self.squares)

    @staticmethod
    def joined(a: list[Lanes], b: list[Lanes]) -> list[Lanes]:
        """The sums of two, for rows side by side."""
        return [one + other for one, other in zip(a, b, strict=True)]


class Factors(NamedTuple):
    """What x is moved by and multiplied by; None where the formula has no such number."""

    factor: Lanes
    factor_low: Lanes | None  # what float32 does not hold of it, where factor and constant are split
    constant: Lanes | None  # where rows are centred
    constant_low: Lanes | None
    shift: Lanes | None


def factors_of(task: TaskValues, centred: bool, shift: Lanes, factor: Lanes, constant: Lanes) -> Factors:
    """Those of the formula, from float64 numbers or lanes."""
    if not task.splits_factors:
        return Factors(factor, None, constant, None, shift) if centred else Factors(factor, None, None, None, None)
    factor, factor_low = split(factor)
    constant, constant_low = split(constant) if centred else (None, None)
    return Factors(factor, factor_low, constant, constant_low, None)


def apply_lanes(task: TaskValues, value: Lanes, row: Factors, weight: Lanes | None, bias: Lanes | None) -> Lanes:
    """Step 3 of the definition, in the dtype that is computed in; what comes last is rounded as it is stored."""
    if task.variant.rounding == ONCE:
        return _apply_once(task.compute_dtype, value, row, weight, bias)
    y, factor = _apply_once(task.compute_dtype, value, row, None, None), _factor_of_unit_vectors(task)
    # x / root is the middle between two numbers of x's dtype only where rows are centred: the product of such a number
    # with one of few bits has more bits than x. So either will do, and what takes fewer instructions is
    # taken: rms_norm of bfloat16, 512 x 1024, 1.17 of its time without roundings and 1.5 to even (EPYC 9005).
    to_even = task.compute_dtype is FLOAT64
    if factor is not None:
        y, to_even = _times(task, rounded(y, task.dtype, to_even), factor), True
    if weight is None:
        return y if bias is None else rounded(y, task.dtype, to_even) + bias
    y = rounded(y, task.dtype, to_even)
    if bias is None:
        return y * weight
    return rounded(y * weight, task.dtype) + bias if task.variant.rounding == EACH else fma(y, weight, bias)


def _factor_of_unit_vectors(task: TaskValues) -> Number | None:
    """What rows are multiplied by once they are rounded, where they are unit vectors until then."""
    if task.rule == SCALE:
        return task.scale
    return root(number(task.features)) if task.variant.makes_unit_vectors else None


def _times(task: TaskValues, value: Lanes, factor: Number) -> Lanes:
    """The product with a number, of which float32 may not hold all."""
    if not task.splits_factors:
        return value * splat(factor, task.compute_dtype, task.lanes)
    high, low = (splat(one, task.compute_dtype, task.lanes) for one in split(factor))
    return fma(value, high, value * low)


def _apply_once(dtype: Dtype, value: Lanes, row: Factors, weight: Lanes | None, bias: Lanes | None) -> Lanes:
    """``((x - shift) * factor + constant) * weight + bias``, rounded to the dtype that is computed in.

    Where rows are not centred, the first two factors are such that nothing leaves the range of that dtype. In float64
    they are x and factor: both come from narrower data. In float32 factor and weight: both are known to be near 1, as a
    subnormal x need not be.
    """
    if row.factor_low is not None:
        return _apply_split(value, row, weight, bias)
    if row.constant is not None:
        value = fma(value - row.shift, row.factor, row.constant)
        if weight is not None:
            return value * weight if bias is None else fma(value, weight, bias)
        return value if bias is None else value + bias
    factor = row.factor
    if weight is not None:
        value, factor = (value * factor, weight) if dtype is FLOAT64 else (weight * factor, value)
    return value * factor if bias is None else fma(value, factor, bias)


def _apply_split(value: Lanes, row: Factors, weight: Lanes | None, bias: Lanes | None) -> Lanes:
    """The same in float32, where all that is rounded off is to stay below 2 units.

    Centred, x_hat is a rounded number and a rest of a sixteenth of a unit or less. Both are multiplied by the weight,
    so what is rounded is x_hat, the rest with the bias, and the result: 1 + 0.5 + 0.5 units. Otherwise factor * weight
    is rounded, and the result: 1 + 0.5 units. Another 2 operations would spare the first of these, and take 0.28 ns an
    element in the first caches in place of 0.21 (EPYC 7003, one core).
    """
    if row.constant is not None:
        hat, rest = fma(value, row.factor, row.constant), fma(value, row.factor_low, row.constant_low)
        if weight is not None:
            return fma(hat, weight, rest * weight if bias is None else fma(rest, weight, bias))
        return hat + (rest if bias is None else rest + bias)
    if weight is not None:
        factor = fma(row.factor, weight, row.factor_low * weight)
        return value * factor if bias is None else fma(value, factor, bias)
    return fma(value, row.factor, value * row.factor_low if bias is None else fma(value, row.factor_low, bias))


class Beside(NamedTuple):
    """A chunk of another row, which is reduced in the loop that applies one of the same length."""

    is_there: bool
    chunk: Arrays
    shift: int  # the address of it; and of the sums that those of the chunk are added to:
    sums: int
    squares: int


def adds_offset(task: TaskValues) -> bool:
    """Whether weights that are read where they lie get their offset there, as their dtype rounds the sum.

    Float32 rounds it to that as float64 does, of a weight and an offset that it holds. Rows of float32 that are not
    centred are left out: it is asked beforehand whether their weights are safe.
    """
    return task.variant.rounds_weight and task.rule == LAYER and task.compute_dtype is FLOAT32


def apply_chunk(
    task: TaskValues, chunk: Arrays, count: int, factors: list[Number],
    parameter_dtype: Dtype, weight: int, bias: int, ahead: int, beside: Beside,
) -> None:  # fmt: skip
    """Step 3 of the definition, of lanes or more; with shift, factor and constant. And step 1 of what is beside it.

    ``weight`` and ``bias`` are where the parameters lie, 0 where there is none; ``ahead`` is as for `map_chunk`.
    """
    centred = task.rule == LAYER
    sums = Sums(task, splat(real(beside.shift), task.statistics_dtype, task.lanes) if centred else None)
    summed = cell(0)

    def add(i: int) -> None:
        sums.add(read(task, beside.chunk, i, task.statistics_dtype, by_parity=True))

    # Each case is a loop of its own, without a branch in it.
    for has_weight, has_bias, streaming in combinations(weight != 0, bias != 0, task.streaming):
        row = Factors(
            *(
                None if one is None else splat(one, task.compute_dtype, task.lanes)
                for one in factors_of(task, centred, *factors)
            )
        )
        given = [weight if has_weight else None, bias if has_bias else None]
        numbers = _numbers(task, given, parameter_dtype) if task.variant.parameters == NUMBERS else None
        offset = None
        if has_weight and adds_offset(task) and parameter_dtype is task.dtype:
            # Of float32 one loop does both; -0.0 leaves a weight as it is.
            in_place = where(task.direct, where(task.weight_offset == 0.0, -0.0, task.weight_offset), -0.0)
            offset = splat(in_place, FLOAT32, task.lanes)

        def compute(
            i: int, value: Lanes, row: Factors = row, given: Any = given, numbers: Any = numbers,
            offset: Lanes | None = offset,
        ) -> Lanes:  # fmt: skip
            weight, bias = numbers or [
                None
                if one is None
                else load(one + i * parameter_dtype.itemsize, parameter_dtype, task.compute_dtype, task.lanes)
                for one in given
            ]
            if offset is not None:
                weight = rounded(weight + offset, task.dtype)
            return apply_lanes(task, value, row, weight, bias)

        summed[...] = map_chunk(task, chunk, count, ahead, streaming, compute, beside.is_there, add)
    for _ in when(beside.is_there):
        sums.add_chunk(beside.chunk, summed, count)
        for address, more in zip((beside.sums, beside.squares), sums.total(), strict=True):
            store_real(address, real(address) + more)


def _numbers(task: TaskValues, addresses: list[int | None], dtype: Dtype) -> list[Lanes | None]:
    """The number that lies at each address, in lanes."""
    return [None if one is None else splat(peek(one, dtype), task.compute_dtype, task.lanes) for one in addresses]


def is_flat_chunk(task: TaskValues, chunk: Arrays, count: int, shift: Number) -> bool:
    """Whether all of a chunk is the same number as the shift."""
    flat = cell(True)
    for i in loop(0, count, 1):
        offset = i * task.itemsize
        flat[...] = flat & (peek(chunk.x + offset, task.dtype, further(chunk.residual, offset)) == shift)
    return flat
