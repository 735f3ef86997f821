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

from anynorm._kernels.cpu.kernels.sweep import further, read, sweep
from anynorm._kernels.cpu.kernels.values import TaskValues
from anynorm._kernels.cpu.language.dtypes import (
    CHUNK,
    LAYER,
    WIDE64,
    Address,
    Lanes,
    Number,
    Tag,
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
    total,
    weighted,
    where,
)


def chunks_of(task: TaskValues, tag: Tag, step: int = CHUNK) -> Iterator[tuple[int, int]]:
    """Where each chunk of a row begins, and how long it is; none but that of a short row is shorter than lanes."""
    lanes = lanes_of(tag)
    for start in loop(0, larger(task.features - lanes + 1, 1), step):
        left = task.features - start
        yield start, where(left < step + lanes, left, step)


def uses_pairs(tag: Tag, wide: Tag) -> bool:
    """Whether rows of float32 are applied in float32, with factor and constant as pairs of numbers."""
    return type(tag) is type(wide) is numpy.float32


def statistics_in(tag: Tag, wide: Tag) -> Tag:
    """What the sums of a row are formed in."""
    return WIDE64 if uses_pairs(tag, wide) else wide


def read_rest(tag: Tag, wide: Tag, x: int, other: Address, count: int, fill: Lanes) -> Lanes:
    """What is left of a chunk behind whole lanes, and ``fill`` in the other lanes."""
    lanes = lanes_of(tag)
    start = larger(count - lanes, 0)
    return part(read(tag, wide, x, other, start), count - count % lanes - start, count - start, fill)


def sum_first(tag: Tag, wide: Tag, x: int, other: Address, count: int) -> Number:
    """The sum of the first elements of a row, as many as there are lanes."""
    zero = splat(0.0, wide, lanes_of(tag))
    return total(part(read(tag, wide, x, other, 0), 0, count, zero))


def squares_chunk(tag: Tag, wide: Tag, x: int, other: Address, count: int) -> Number:
    """The sum of squares of a chunk."""
    lanes = lanes_of(tag)
    zero = splat(0.0, wide, lanes)
    squares = cell(zero)
    for i in loop(0, count - lanes + 1, lanes):
        value = read(tag, wide, x, other, i)
        squares[...] = fma(value, value, squares)
    for _ in loop(0, count % lanes, lanes):
        value = read_rest(tag, wide, x, other, count, zero)
        squares[...] = fma(value, value, squares)
    return total(squares)


def moments_chunk(tag: Tag, wide: Tag, x: int, other: Address, count: int, shift: Number) -> tuple[Number, Number]:
    """The sums of deviations from a shift and of their squares."""
    lanes = lanes_of(tag)
    near = splat(shift, wide, lanes)
    sums, squares = cell(splat(0.0, wide, lanes)), cell(splat(0.0, wide, lanes))
    # A multiplication by 1 that the compiler does not see through: where additions, subtractions and conversions share
    # a unit and multiplications have their own, that saves a tenth of layer_norm in the first caches (EPYC 7003).
    one = splat(number(count) / number(count), wide, lanes)

    def add(value: Lanes) -> None:
        value = value - near
        sums[...] = fma(value, one, sums)
        squares[...] = fma(value, value, squares)

    for i in loop(0, count - lanes + 1, lanes):
        add(read(tag, wide, x, other, i))
    for _ in loop(0, count % lanes, lanes):
        add(read_rest(tag, wide, x, other, count, near))
    return total(sums), total(squares)


class Factors(NamedTuple):
    """What x is moved by and multiplied by; None where the formula has no such number."""

    factor: Lanes
    factor_low: Lanes | None  # what rounding to float32 leaves of it, where factor and constant are pairs
    constant: Lanes | None  # where rows are centred
    constant_low: Lanes | None
    shift: Lanes | None


def numbers_of(tag: Tag, wide: Tag, centred: bool, shift: Lanes, factor: Lanes, constant: Lanes) -> Factors:
    """Those of the formula, from float64 numbers or lanes."""
    paired = uses_pairs(tag, wide)
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
    task: TaskValues, tag: Tag, wide: Tag, parameter: Tag, x: int, other: Address, y: int, added: Address,
    weight: int, bias: int, count: int, shift: Number, factor: Number, constant: Number, ahead: int, carry: int,
) -> None:  # fmt: skip
    """Step 3 of the definition, of lanes or more.

    ``weight`` and ``bias`` are where the parameters lie, in the dtype ``parameter``; 0 where there is none. ``added``
    is where the sum with the residual goes, ``ahead`` how far behind x lies what will be read next, and ``carry`` the
    room of `sweep`.
    """
    # Each case is a loop of its own, without a branch in it.
    conditions = (task.rule == LAYER, weight != 0, bias != 0, task.streaming)
    for centred, has_weight, has_bias, streaming in combinations(*conditions):
        row = Factors(
            *(
                None if one is None else splat(one, wide, lanes_of(tag))
                for one in numbers_of(tag, wide, centred, shift, factor, constant)
            )
        )
        parameters = (weight if has_weight else None, bias if has_bias else None)

        def compute(i: int, value: Lanes, row: Factors = row, parameters: Any = parameters) -> Lanes:
            lanes, size = lanes_of(tag), size_of(parameter)
            loaded = (None if one is None else load(one + i * size, None, parameter, wide, lanes) for one in parameters)
            return apply_lanes(value, row, *loaded)

        sweep(tag, wide, x, other, y, added, count, ahead, compute, carry if streaming else None)


def is_flat_chunk(tag: Tag, x: int, other: Address, count: int, shift: Number) -> bool:
    """Whether all of a chunk is the same number as the shift."""
    flat = cell(True)
    for i in loop(0, count, 1):
        j = i * size_of(tag)
        flat[...] = flat & (peek(x + j, further(other, j), tag) == shift)
    return flat
