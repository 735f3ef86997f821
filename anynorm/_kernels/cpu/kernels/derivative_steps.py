"""The steps of the derivative of a group of rows: sums, what follows from them for each row, and the elements of dx.

With x_hat = (x - shift) * factor + constant and g = dy * weight::

    dx = factor * (g - mean(g) - x_hat * mean(g * x_hat))

Rows are computed in float32 as long as that costs no more than a few units of the gradient's own size, and in float64
otherwise. In float32 hardly a digit would be left of a gradient that lies along x_hat: that of sum(y**2), say, is
smaller than its terms by eps / var.

Where moments are given, dx is factor * g alone, and the sums are what the gradient of the moments is made of.
"""

from __future__ import annotations

import math
from typing import NamedTuple

from anynorm._kernels.cpu.kernels.chunks import chunks_of, is_flat_chunk, sum_first
from anynorm._kernels.cpu.kernels.rows import is_far, rounded
from anynorm._kernels.cpu.kernels.scatter import RESIDUAL, X, gather, gather_both, place, place_numbers
from anynorm._kernels.cpu.kernels.values import TaskValues
from anynorm._kernels.cpu.language.dtypes import (
    FINISHED,
    FLOAT32,
    FLOAT64,
    GROUP,
    LAYER,
    SCALE,
    Address,
    Dtype,
    Lanes,
    Number,
    lanes_of,
)
from anynorm._kernels.cpu.language.lanes import (
    as_lanes,
    cases,
    cell,
    fma,
    integer,
    load,
    loop,
    magnitude,
    number,
    peek,
    poke,
    size_of,
    smaller,
    splat,
    store,
    sum_lanes,
    when,
    where,
)

# Steps of float32 after which sums go on in float64.
_FOLD = 8
# Where squares of float64 neither overflow nor lose bits, and those of float32 with all that is made of them.
_RANGE64, _RANGE32 = (2.0**-500, 2.0**500), (2.0**-80, 2.0**100)
_FACTORS32 = 2.0**-60, 2.0**60
# The part of the energy of g that is to be left in dx for float32.
_LEFT = 0.25


class Slots(NamedTuple):
    """For each row of a group 8 bytes: float64 numbers, those of apply in what it computes in, addresses."""

    gradients: int  # the sum of g
    products: int  # the sum of g * (x - shift)
    energies: int  # the sum of g**2
    shifts: int
    factors: int
    constants: int
    middles: int  # -factor * mean(g)
    alongs: int  # -factor * mean(g * x_hat)
    row: int
    x: int
    dy: int
    dx: int
    dtotal: int

    @classmethod
    def at(cls, address: int) -> Slots:
        """Divide up memory of SLOTS_NBYTES."""
        return cls(*(address + i * GROUP * 8 for i in range(len(cls._fields))))


SLOTS_NBYTES = len(Slots._fields) * GROUP * 8


def lanes_in(compute_dtype: Dtype) -> int:
    """Elements at a time. More sums of float64 than of this many would not stay in 16 registers."""
    return 16 if compute_dtype is FLOAT32 else 8


def parts_of(count: int, compute_dtype: Dtype) -> tuple[tuple[int, int, int], ...]:
    """Lanes, first element and end: of what fills lanes, and of the rest one by one."""
    lanes = lanes_in(compute_dtype)
    whole = count - count % lanes
    return (lanes, 0, whole), (1, whole, count)


def weights_of(task: TaskValues, compute_dtype: Dtype) -> int:
    """Where the weights lie, which are in float64 first and then in float32."""
    return task.weight if compute_dtype is FLOAT64 else task.weight + task.features * 8


class _Sums:
    """Of a row: deviations from a shift and their squares, g, g times deviations and squares of g; in lanes."""

    def __init__(self, compute_dtype: Dtype, lanes: int) -> None:
        self.of = [cell(splat(0.0, compute_dtype, lanes)) for _ in range(5)]

    def add(self, d: Lanes, g: Lanes) -> None:
        sums, squares, gradients, products, energies = self.of
        sums[...] = sums + d
        squares[...] = fma(d, d, squares)
        gradients[...] = gradients + g
        products[...] = fma(g, d, products)
        energies[...] = fma(g, g, energies)


def reduce_row(task: TaskValues, slots: Slots, row: int, k: int, numbers: Address) -> None:
    """Leave the sums of a row in its slot; about a shift that is near its mean, or the first of given numbers."""
    x, dy = place(task, X, row), place(task, RESIDUAL, row)
    shift = cell(0.0)
    if numbers is not None:
        shift[...] = peek(place_numbers(task, numbers, row, FINISHED), None, FLOAT64)
    else:
        for _ in when(task.rule == LAYER):
            shift[...] = _shift_of(task, x)
    found = [cell(0.0) for _ in range(5)]
    for start, count in chunks_of(task):
        a, b = gather_both(task, x, dy, start, count)
        weights = weights_of(task, task.compute_dtype) + start * size_of(task.compute_dtype)
        for lanes, first, last in parts_of(count, task.compute_dtype):
            near, step = (
                splat(shift, task.compute_dtype, lanes),
                _FOLD * lanes if task.compute_dtype is FLOAT32 else count + 1,
            )
            for turn in loop(first, last, step):
                sums = _Sums(task.compute_dtype, lanes)
                for i in loop(turn, smaller(last, turn + step), lanes):
                    value, gradient = (
                        load(at + i * size_of(task.dtype), None, task.dtype, task.compute_dtype, lanes) for at in (a, b)
                    )
                    weight = load(
                        weights + i * size_of(task.compute_dtype), None, task.compute_dtype, task.compute_dtype, lanes
                    )
                    sums.add(value - near, gradient * weight)
                for one, in_lanes in zip(found, sums.of, strict=True):
                    one[...] = one + sum_lanes(in_lanes)
    sums, squares, *others = found
    # `find_factors` takes what is not centred as if it were centred already.
    sums = where(task.rule == LAYER, sums, 0.0)
    places = (
        task.scratch.shifts,
        task.scratch.sums,
        task.scratch.squares,
        slots.gradients,
        slots.products,
        slots.energies,
    )
    for room, value in zip(places, (shift, sums, squares, *others), strict=True):
        poke(room + k, FLOAT64, value)


def _shift_of(task: TaskValues, x: int) -> Number:
    """A number near the mean of a row."""
    if task.compute_dtype is FLOAT32:
        count = smaller(task.features, lanes_of(task.dtype))
        a = gather(task, X, x, 0, count, task.scratch.x)
        # Rounded to the dtype of the row, so that a constant row has no deviations.
        return rounded(
            sum_first(task.dtype, task.compute_dtype, a, None, count) / number(count), task.dtype, task.scratch.mean
        )
    # Any element will do where float64 has bits to spare (Samuelson 1968), as in rows.py.
    first = peek(x, None, task.dtype)
    if size_of(task.dtype) < 8:
        return first
    sums = cell(0.0)
    for start, count in chunks_of(task):
        a = gather(task, X, x, start, count, task.scratch.x)
        for lanes, begin, end in parts_of(count, task.compute_dtype):
            chunk, near = cell(splat(0.0, task.compute_dtype, lanes)), splat(first, task.compute_dtype, lanes)
            for i in loop(begin, end, lanes):
                chunk[...] = chunk + (load(a + i * 8, None, task.dtype, task.compute_dtype, lanes) - near)
            sums[...] = sums + sum_lanes(chunk)
    return first + sums / number(task.features)


def use_given(task: TaskValues, numbers: int, row: int, k: int) -> None:
    """Take factor and constant of a row from what step 2 has made of given moments."""
    at = place_numbers(task, numbers, row, FINISHED)
    poke(task.scratch.factors + k, FLOAT64, peek(at + 8, None, FLOAT64))
    poke(task.scratch.constants + k, FLOAT64, peek(at + 16, None, FLOAT64))


def prepare_row(task: TaskValues, slots: Slots, row: int, k: int, slot: int, numbers: Address) -> bool:
    """Leave in a slot what the elements of a row are multiplied and moved by; whether that holds the row.

    Where numbers are given, the sums of g and of g * x_hat take the place of the first two.
    """
    names = (task.scratch.shifts, task.scratch.sums, task.scratch.squares, task.scratch.factors, task.scratch.constants)
    shift, sums, squares, factor, constant = (peek(room + k, None, FLOAT64) for room in names)
    gradients, products, energy = (
        peek(room + k, None, FLOAT64) for room in (slots.gradients, slots.products, slots.energies)
    )
    count = number(task.features)
    along, middle = fma(products, factor, gradients * constant), where(task.rule == LAYER, gradients / count, 0.0)
    across = cell(along / count)
    for _ in when(task.rule == SCALE):
        across[...] = where(squares < task.eps * task.eps, 0.0, along)
    # The sum of g is not finite where dy holds NaN or Inf, which makes NaN of the whole row.
    across[...] = where(magnitude(gradients) < math.inf, across, math.nan)
    if numbers is not None:
        at = place_numbers(task, numbers, row, FINISHED)
        poke(at, FLOAT64, gradients)
        poke(at + 8, FLOAT64, along)
    for room, value in (
        (slots.shifts, shift), (slots.factors, factor), (slots.constants, constant),
        (slots.middles, 0.0 - middle * factor), (slots.alongs, 0.0 - across * factor),
    ):  # fmt: skip
        poke(room + slot, task.compute_dtype, value)
    if task.compute_dtype is FLOAT32:
        left = energy - gradients * middle - 2.0 * along * across
        far = is_far(sums, squares, sums / count)
        safe = _lies_within(squares, _RANGE32) & _lies_within(energy, _RANGE32) & _lies_within(factor, _FACTORS32)
        return safe & (left > _LEFT * energy) & where(far, False, True)
    if size_of(task.dtype) < 8:
        return True
    safe = cell(_lies_within(squares, _RANGE64) & _lies_within(factor, _RANGE64))
    for _ in when(squares == 0.0):
        flat = cell(True)
        for start, length in chunks_of(task):
            a = gather(task, X, place(task, X, row), start, length, task.scratch.x)
            flat[...] = flat & is_flat_chunk(task.dtype, a, None, length, shift)
        safe[...] = flat
    if numbers is not None:
        safe[...] = safe & _lies_within(factor, _RANGE64)
    # Squares of finite numbers add up to Inf at worst: an energy of NaN is that of a row which is to become NaN.
    known = cell(where(energy == energy, _lies_within(energy, _RANGE64), True))
    for _ in when(energy == 0.0):
        known[...] = _has_no_gradient(task, row)
    return safe & known


def _has_no_gradient(task: TaskValues, row: int) -> bool:
    """Whether g is 0 throughout, rather than too small to be squared."""
    dy, nothing = place(task, RESIDUAL, row), cell(True)
    for start, count in chunks_of(task):
        b, weights = (
            gather(task, RESIDUAL, dy, start, count, task.scratch.residual),
            weights_of(task, FLOAT64) + start * 8,
        )
        for i in loop(0, count, 1):
            gradient, weight = peek(b + i * 8, None, task.dtype), peek(weights + i * 8, None, FLOAT64)
            nothing[...] = nothing & ((gradient == 0.0) | (weight == 0.0))
    return nothing


def _lies_within(value: Number, bounds: tuple[float, float]) -> bool:
    size = magnitude(value)
    return (size > bounds[0]) & (size < bounds[1])


def apply_chunk(task: TaskValues, slots: Slots, sums: int, rows: int, start: int, count: int, given: bool) -> None:
    """Write a chunk of dx, of each row in the slots, and add to the sums of its columns; 0 where there are none."""
    for centred in cases(task.rule == LAYER):
        for has_weight in cases(sums != 0):
            # Where the bias's gradient alone is wanted, that of the weight is formed with it.
            for has_bias in (has_weight,) if centred else cases(task.bias != 0) if has_weight else (False,):
                for lanes, first, last in parts_of(count, task.compute_dtype):
                    for i in loop(first, last, lanes):
                        places = (sums + (start + i) * 8,) if has_weight else ()
                        places += (sums + (task.features + start + i) * 8,) if has_bias else ()
                        weight = load(
                            weights_of(task, task.compute_dtype) + (start + i) * size_of(task.compute_dtype),
                            None,
                            task.compute_dtype,
                            task.compute_dtype,
                            lanes,
                        )
                        _apply_elements(task, slots, places, rows, i, lanes, weight, centred, given)


def _apply_elements(
    task: TaskValues, slots: Slots, sums: tuple[int, ...], rows: int, i: int, lanes: int,
    weight: Lanes, centred: bool, given: bool,
) -> None:  # fmt: skip
    """The i-th elements of a chunk, row after row, with the sums of their columns in registers."""
    offset = i * size_of(task.dtype)
    columns = [cell(splat(0.0, task.compute_dtype, lanes)) for _ in sums]
    for slot in loop(0, rows * 8, 8):

        def of_row(room: int, slot: int = slot) -> Lanes:
            return splat(peek(room + slot, None, task.compute_dtype), task.compute_dtype, lanes)

        def elements(at: int, slot: int = slot) -> Lanes:
            return load(integer(at + slot) + offset, None, task.dtype, task.compute_dtype, lanes)

        x, dy, factor, along = elements(slots.x), elements(slots.dy), of_row(slots.factors), of_row(slots.alongs)
        x_hat = fma(x - of_row(slots.shifts), factor, of_row(slots.constants)) if centred else x * factor
        for column, share in zip(columns, (x_hat, None), strict=False):
            column[...] = column + dy if share is None else fma(dy, share, column)
        if given:
            dx = dy * weight * factor
        else:
            rest = fma(x_hat, along, of_row(slots.middles)) if centred else x_hat * along
            dx = fma(dy * weight, factor, rest)
        if task.total is not None:
            dx = dx + elements(slots.dtotal)
        store(integer(slots.dx + slot) + offset, task.dtype, dx)
    for address, column in zip(sums, columns, strict=True):
        store(address, FLOAT64, load(address, None, FLOAT64, FLOAT64, lanes) + as_lanes(column, FLOAT64))
