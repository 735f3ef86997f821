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
from anynorm._kernels.cpu.kernels.scatter import OTHER, X, gather, gather_both, place, place_numbers
from anynorm._kernels.cpu.kernels.values import Rooms, TaskValues
from anynorm._kernels.cpu.language.dtypes import (
    FINISHED,
    GROUP,
    LAYER,
    SCALE,
    WIDE32,
    WIDE64,
    Address,
    Lanes,
    Number,
    Tag,
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
    total,
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


def lanes_in(wide: Tag) -> int:
    """Elements at a time. More sums of float64 than of this many would not stay in 16 registers."""
    return 16 if wide is WIDE32 else 8


def parts_of(count: int, wide: Tag) -> tuple[tuple[int, int, int], ...]:
    """Lanes, first element and end: of what fills lanes, and of the rest one by one."""
    lanes = lanes_in(wide)
    whole = count - count % lanes
    return (lanes, 0, whole), (1, whole, count)


def weights_of(task: TaskValues, wide: Tag) -> int:
    """Where the weights lie, which are in float64 first and then in float32."""
    return task.weight if wide is WIDE64 else task.weight + task.features * 8


class _Sums:
    """Of a row: deviations from a shift and their squares, g, g times deviations and squares of g; in lanes."""

    def __init__(self, wide: Tag, lanes: int) -> None:
        self.of = [cell(splat(0.0, wide, lanes)) for _ in range(5)]

    def add(self, d: Lanes, g: Lanes) -> None:
        sums, squares, gradients, products, energies = self.of
        sums[...] = sums + d
        squares[...] = fma(d, d, squares)
        gradients[...] = gradients + g
        products[...] = fma(g, d, products)
        energies[...] = fma(g, g, energies)


def reduce_row(
    task: TaskValues, tag: Tag, wide: Tag, rooms: Rooms, slots: Slots, row: int, k: int, numbers: Address
) -> None:
    """Leave the sums of a row in its slot; about a shift that is near its mean, or the first of given numbers."""
    x, dy = place(task, tag, X, row), place(task, tag, OTHER, row)
    shift = cell(0.0)
    if numbers is not None:
        shift[...] = peek(place_numbers(task, numbers, row, FINISHED), None, WIDE64)
    else:
        for _ in when(task.rule == LAYER):
            shift[...] = _shift_of(task, tag, wide, rooms, x)
    found = [cell(0.0) for _ in range(5)]
    for start, count in chunks_of(task, tag):
        a, b = gather_both(task, tag, rooms, x, dy, start, count)
        weights = weights_of(task, wide) + start * size_of(wide)
        for lanes, first, last in parts_of(count, wide):
            near, step = splat(shift, wide, lanes), _FOLD * lanes if wide is WIDE32 else count + 1
            for turn in loop(first, last, step):
                sums = _Sums(wide, lanes)
                for i in loop(turn, smaller(last, turn + step), lanes):
                    value, gradient = (load(at + i * size_of(tag), None, tag, wide, lanes) for at in (a, b))
                    weight = load(weights + i * size_of(wide), None, wide, wide, lanes)
                    sums.add(value - near, gradient * weight)
                for one, in_lanes in zip(found, sums.of, strict=True):
                    one[...] = one + total(in_lanes)
    sums, squares, *others = found
    # `finish_group` takes what is not centred as if it were centred already.
    sums = where(task.rule == LAYER, sums, 0.0)
    places = (rooms.shifts, rooms.sums, rooms.squares, slots.gradients, slots.products, slots.energies)
    for room, value in zip(places, (shift, sums, squares, *others), strict=True):
        poke(room + k, WIDE64, value)


def _shift_of(task: TaskValues, tag: Tag, wide: Tag, rooms: Rooms, x: int) -> Number:
    """A number near the mean of a row."""
    if wide is WIDE32:
        count = smaller(task.features, lanes_of(tag))
        a = gather(task, tag, X, x, 0, count, rooms.x)
        # Rounded to the dtype of the row, so that a constant row has no deviations.
        return rounded(sum_first(tag, wide, a, None, count) / number(count), tag, rooms.mean)
    # Any element will do where float64 has bits to spare (Samuelson 1968), as in rows.py.
    first = peek(x, None, tag)
    if size_of(tag) < 8:
        return first
    sums = cell(0.0)
    for start, count in chunks_of(task, tag):
        a = gather(task, tag, X, x, start, count, rooms.x)
        for lanes, begin, end in parts_of(count, wide):
            chunk, near = cell(splat(0.0, wide, lanes)), splat(first, wide, lanes)
            for i in loop(begin, end, lanes):
                chunk[...] = chunk + (load(a + i * 8, None, tag, wide, lanes) - near)
            sums[...] = sums + total(chunk)
    return first + sums / number(task.features)


def use_given(task: TaskValues, rooms: Rooms, numbers: int, row: int, k: int) -> None:
    """Take factor and constant of a row from what step 2 has made of given moments."""
    at = place_numbers(task, numbers, row, FINISHED)
    poke(rooms.factors + k, WIDE64, peek(at + 8, None, WIDE64))
    poke(rooms.constants + k, WIDE64, peek(at + 16, None, WIDE64))


def finish_row(
    task: TaskValues, tag: Tag, wide: Tag, rooms: Rooms, slots: Slots, row: int, k: int, slot: int, numbers: Address
) -> bool:
    """Leave in a slot what the elements of a row are multiplied and moved by; whether that holds the row.

    Where numbers are given, the sums of g and of g * x_hat take the place of the first two.
    """
    names = (rooms.shifts, rooms.sums, rooms.squares, rooms.factors, rooms.constants)
    shift, sums, squares, factor, constant = (peek(room + k, None, WIDE64) for room in names)
    gradients, products, energy = (
        peek(room + k, None, WIDE64) for room in (slots.gradients, slots.products, slots.energies)
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
        poke(at, WIDE64, gradients)
        poke(at + 8, WIDE64, along)
    for room, value in (
        (slots.shifts, shift), (slots.factors, factor), (slots.constants, constant),
        (slots.middles, 0.0 - middle * factor), (slots.alongs, 0.0 - across * factor),
    ):  # fmt: skip
        poke(room + slot, wide, value)
    if wide is WIDE32:
        left = energy - gradients * middle - 2.0 * along * across
        far = is_far(sums, squares, sums / count)
        safe = _lies_within(squares, _RANGE32) & _lies_within(energy, _RANGE32) & _lies_within(factor, _FACTORS32)
        return safe & (left > _LEFT * energy) & where(far, False, True)
    if size_of(tag) < 8:
        return True
    safe = cell(_lies_within(squares, _RANGE64) & _lies_within(factor, _RANGE64))
    for _ in when(squares == 0.0):
        flat = cell(True)
        for start, length in chunks_of(task, tag):
            a = gather(task, tag, X, place(task, tag, X, row), start, length, rooms.x)
            flat[...] = flat & is_flat_chunk(tag, a, None, length, shift)
        safe[...] = flat
    if numbers is not None:
        safe[...] = safe & _lies_within(factor, _RANGE64)
    # Squares of finite numbers add up to Inf at worst: an energy of NaN is that of a row which is to become NaN.
    known = cell(where(energy == energy, _lies_within(energy, _RANGE64), True))
    for _ in when(energy == 0.0):
        known[...] = _has_no_gradient(task, tag, rooms, row)
    return safe & known


def _has_no_gradient(task: TaskValues, tag: Tag, rooms: Rooms, row: int) -> bool:
    """Whether g is 0 throughout, rather than too small to be squared."""
    dy, nothing = place(task, tag, OTHER, row), cell(True)
    for start, count in chunks_of(task, tag):
        b, weights = gather(task, tag, OTHER, dy, start, count, rooms.other), weights_of(task, WIDE64) + start * 8
        for i in loop(0, count, 1):
            gradient, weight = peek(b + i * 8, None, tag), peek(weights + i * 8, None, WIDE64)
            nothing[...] = nothing & ((gradient == 0.0) | (weight == 0.0))
    return nothing


def _lies_within(value: Number, bounds: tuple[float, float]) -> bool:
    size = magnitude(value)
    return (size > bounds[0]) & (size < bounds[1])


def apply_chunk(
    task: TaskValues, tag: Tag, wide: Tag, slots: Slots, sums: int, rows: int, start: int, count: int, given: bool
) -> None:
    """Write a chunk of dx, of each row in the slots, and add to the sums of its columns; 0 where there are none."""
    for centred in cases(task.rule == LAYER):
        for has_weight in cases(sums != 0):
            # Where the bias's gradient alone is wanted, that of the weight is formed with it.
            for has_bias in (has_weight,) if centred else cases(task.bias != 0) if has_weight else (False,):
                for lanes, first, last in parts_of(count, wide):
                    for i in loop(first, last, lanes):
                        places = (sums + (start + i) * 8,) if has_weight else ()
                        places += (sums + (task.features + start + i) * 8,) if has_bias else ()
                        weight = load(weights_of(task, wide) + (start + i) * size_of(wide), None, wide, wide, lanes)
                        _apply_elements(task, tag, wide, slots, places, rows, i, lanes, weight, centred, given)


def _apply_elements(
    task: TaskValues, tag: Tag, wide: Tag, slots: Slots, sums: tuple[int, ...], rows: int, i: int, lanes: int,
    weight: Lanes, centred: bool, given: bool,
) -> None:  # fmt: skip
    """The i-th elements of a chunk, row after row, with the sums of their columns in registers."""
    offset = i * size_of(tag)
    columns = [cell(splat(0.0, wide, lanes)) for _ in sums]
    for slot in loop(0, rows * 8, 8):

        def of_row(room: int, slot: int = slot) -> Lanes:
            return splat(peek(room + slot, None, wide), wide, lanes)

        def elements(at: int, slot: int = slot) -> Lanes:
            return load(integer(at + slot) + offset, None, tag, wide, lanes)

        x, dy, factor, along = elements(slots.x), elements(slots.dy), of_row(slots.factors), of_row(slots.alongs)
        x_hat = fma(x - of_row(slots.shifts), factor, of_row(slots.constants)) if centred else x * factor
        for column, share in zip(columns, (x_hat, None), strict=False):
            column[...] = column + dy if share is None else fma(dy, share, column)
        if given:
            dx = dy * weight * factor
        else:
            rest = fma(x_hat, along, of_row(slots.middles)) if centred else x_hat * along
            dx = fma(dy * weight, factor, rest)
        if task.added is not None:
            dx = dx + elements(slots.dtotal)
        store(integer(slots.dx + slot) + offset, tag, dx)
    for address, column in zip(sums, columns, strict=True):
        store(address, WIDE64, load(address, None, WIDE64, WIDE64, lanes) + as_lanes(column, WIDE64))
