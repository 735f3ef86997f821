"""What is done to a chunk: up to CHUNK features of one row, in memory one after the other.

``other`` is the address of the residual's elements, or None; a chunk is then the sum of both, rounded to their dtype.
Elements are taken lanes_of(dtype) at a time. What is left of a chunk goes with the elements before it, so that it fills
lanes too; where a chunk is shorter than that, memory behind it is read, and has to be there. Every kernel keeps to that
order, whatever the layout, so that the bits of a row do not depend on it.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy

from anynorm._kernels.cpu.kernels.streaming import further, map_chunk, read
from anynorm._kernels.cpu.kernels.values import TaskValues
from anynorm._kernels.cpu.language.dtypes import (
    CHUNK,
    FLOAT64,
    LAYER,
    Address,
    Dtype,
    Lanes,
    Number,
    lanes_of,
)
from anynorm._kernels.cpu.language.lanes import (
    cell,
    combinations,
    fma,
    larger,
    load,
    loop,
    number,
    part,
    peek,
    size_of,
    splat,
    split,
    sum_lanes,
    weighted,
    where,
)


def chunks_of(task: TaskValues, step: int = CHUNK) -> Iterator[tuple[int, int]]:
    """Where each chunk of a row begins, and how long it is; none but that of a short row is shorter than lanes."""
    lanes = lanes_of(task.dtype)
    for start in loop(0, larger(task.features - lanes + 1, 1), step):
        left = task.features - start
        yield start, where(left < step + lanes, left, step)


def uses_pairs(dtype: Dtype, compute_dtype: Dtype) -> bool:
    """Whether rows of float32 are applied in float32, with factor and constant as pairs of numbers."""
    return type(dtype) is type(compute_dtype) is numpy.float32


def statistics_in(dtype: Dtype, compute_dtype: Dtype) -> Dtype:
    """What the sums of a row are formed in."""
    return FLOAT64 if uses_pairs(dtype, compute_dtype) else compute_dtype


def read_rest(dtype: Dtype, compute_dtype: Dtype, x: int, residual: Address, count: int, fill: Lanes) -> Lanes:
    """What is left of a chunk behind whole lanes, and ``fill`` in the other lanes."""
    lanes = lanes_of(dtype)
    start = larger(count - lanes, 0)
    return part(read(dtype, compute_dtype, x, residual, start), count - count % lanes - start, count - start, fill)


def sum_first(dtype: Dtype, compute_dtype: Dtype, x: int, residual: Address, count: int) -> Number:
    """The sum of the first elements of a row, as many as there are lanes."""
    zero = splat(0.0, compute_dtype, lanes_of(dtype))
    return sum_lanes(part(read(dtype, compute_dtype, x, residual, 0), 0, count, zero))


def squares_chunk(dtype: Dtype, compute_dtype: Dtype, x: int, residual: Address, count: int) -> Number:
    """The sum of squares of a chunk."""
    lanes = lanes_of(dtype)
    zero = splat(0.0, compute_dtype, lanes)
    squares = cell(zero)
    for i in loop(0, count - lanes + 1, lanes):
        value = read(dtype, compute_dtype, x, residual, i)
        squares[...] = fma(value, value, squares)
    for _ in loop(0, count % lanes, lanes):
        value = read_rest(dtype, compute_dtype, x, residual, count, zero)
        squares[...] = fma(value, value, squares)
    return sum_lanes(squares)


def moments_chunk(
    dtype: Dtype, compute_dtype: Dtype, x: int, residual: Address, count: int, shift: Number
) -> tuple[Number, Number]:
    """The sums of deviations from a shift and of their squares."""
    lanes = lanes_of(dtype)
    near = splat(shift, compute_dtype, lanes)
    sums, squares = cell(splat(0.0, compute_dtype, lanes)), cell(splat(0.0, compute_dtype, lanes))
    # A multiplication by 1 that the compiler does not see through: where additions, subtractions and conversions share
    # a unit and multiplications have their own, that saves a tenth of layer_norm in the first caches (EPYC 7003).
    one = splat(number(count) / number(count), compute_dtype, lanes)

    def add(value: Lanes) -> None:
        value = value - near
        sums[...] = fma(value, one, sums)
        squares[...] = fma(value, value, squares)

    for i in loop(0, count - lanes + 1, lanes):
        add(read(dtype, compute_dtype, x, residual, i))
    for _ in loop(0, count % lanes, lanes):
        add(read_rest(dtype, compute_dtype, x, residual, count, near))
    return sum_lanes(sums), sum_lanes(squares)


class Factors(NamedTuple):
    """What x is moved by and multiplied by; None where the formula has no such number."""

    factor: Lanes
    factor_low: Lanes | None  # what rounding to float32 leaves of it, where factor and constant are pairs
    constant: Lanes | None  # where rows are centred
    constant_low: Lanes | None
    shift: Lanes | None


def numbers_of(
    dtype: Dtype, compute_dtype: Dtype, centred: bool, shift: Lanes, factor: Lanes, constant: Lanes
) -> Factors:
    """Those of the formula, from float64 numbers or lanes."""
    paired = uses_pairs(dtype, compute_dtype)
    factor, factor_low = split(factor) if paired else (factor, None)
    constant, constant_low = split(constant) if paired else (constant, None)
    if not centred:
        return Factors(factor, factor_low, None, None, None)
    return Factors(factor, factor_low, constant, constant_low, None if paired else shift)


def apply_lanes(value: Lanes, row: Factors, weight: Lanes | None, bias: Lanes | None) -> Lanes:
    """``((x - shift) * factor + constant) * weight + bias``, rounded to the wide dtype."""
    if row.factor_low is not None:
        return _apply_paired(value, row, weight, bias)
    if row.constant is not None:
        value = fma(value - row.shift, row.factor, row.constant)
        if weight is not None:
            return value * weight if bias is None else fma(value, weight, bias)
        return value if bias is None else value + bias
    if weight is not None:
        return weighted(value, row.factor, weight, bias)
    return value * row.factor if bias is None else fma(value, row.factor, bias)


def _apply_paired(value: Lanes, row: Factors, weight: Lanes | None, bias: Lanes | None) -> Lanes:
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


def apply_chunk(
    task: TaskValues, parameter: Dtype, x: int, residual: Address, y: int, total: Address,
    weight: int, bias: int, count: int, shift: Number, factor: Number, constant: Number, ahead: int,
) -> None:  # fmt: skip
    """Step 3 of the definition, of lanes or more.

    ``weight`` and ``bias`` are where the parameters lie, in the dtype ``parameter``; 0 where there is none. ``total``
    is where the sum with the residual goes, and ``ahead`` how far behind x lies what will be read next.
    """
    # Each case is a loop of its own, without a branch in it.
    conditions = (task.rule == LAYER, weight != 0, bias != 0, task.streaming)
    for centred, has_weight, has_bias, streaming in combinations(*conditions):
        row = Factors(
            *(
                None if one is None else splat(one, task.compute_dtype, lanes_of(task.dtype))
                for one in numbers_of(task.dtype, task.compute_dtype, centred, shift, factor, constant)
            )
        )
        parameters = (weight if has_weight else None, bias if has_bias else None)

        def compute(i: int, value: Lanes, row: Factors = row, parameters: Any = parameters) -> Lanes:
            lanes, size = lanes_of(task.dtype), size_of(parameter)
            loaded = (
                None if one is None else load(one + i * size, None, parameter, task.compute_dtype, lanes)
                for one in parameters
            )
            return apply_lanes(value, row, *loaded)

        map_chunk(
            task.dtype,
            task.compute_dtype,
            x,
            residual,
            y,
            total,
            count,
            ahead,
            compute,
            task.scratch.open_line if streaming else None,
        )


def is_flat_chunk(dtype: Dtype, x: int, residual: Address, count: int, shift: Number) -> bool:
    """Whether all of a chunk is the same number as the shift."""
    flat = cell(True)
    for i in loop(0, count, 1):
        j = i * size_of(dtype)
        flat[...] = flat & (peek(x + j, further(residual, j), dtype) == shift)
    return flat
