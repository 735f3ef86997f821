"""Many rows side by side, where neighbours in memory belong to different rows: as many as there are lanes at a time.

So it is along the first axis, or along the channels of (N, C, H, W). The sums of a row run in the same order as where
its features lie one after the other: all of a lane's elements, then those of the next lane, then the lanes in halves.
"""

from __future__ import annotations

from typing import NamedTuple

from anynorm._kernels.cpu.kernels.chunks import (
    Factors,
    apply_lanes,
    chunks_of,
    numbers_of,
    statistics_in,
    uses_pairs,
)
from anynorm._kernels.cpu.kernels.factors import finish_group
from anynorm._kernels.cpu.kernels.parameters import are_weights_safe, widen_parameters
from anynorm._kernels.cpu.kernels.rows import NEAR, ROOMS_NBYTES, count_safe, furnish
from anynorm._kernels.cpu.kernels.scatter import ADDED, OTHER, X, Y, axis_length, axis_stride, place
from anynorm._kernels.cpu.kernels.sweep import clear, further, settle, sweep
from anynorm._kernels.cpu.kernels.task import Variant
from anynorm._kernels.cpu.kernels.values import Rooms, TaskValues, values_of, word
from anynorm._kernels.cpu.language.dtypes import (
    CHUNK,
    LAYER,
    WIDE64,
    WIDEST_BLOCK,
    Address,
    Lanes,
    Tag,
    lanes_of,
)
from anynorm._kernels.cpu.language.lanes import (
    as_lanes,
    buffer,
    cases,
    cell,
    combinations,
    fence,
    fma,
    larger,
    load,
    loop,
    number,
    peek,
    size_of,
    smaller,
    splat,
    store,
    total,
    when,
    where,
    where_less,
)

# For each lane of a sum, lanes of rows; two sums.
_SUMS_NBYTES = 32 * 32 * 8
# For each row of the widest block one of the numbers that x is multiplied and moved by.
_FOUND_NBYTES = (WIDEST_BLOCK + 128) * 8
_ROOM_NBYTES = 2 * _SUMS_NBYTES + len(Factors._fields) * _FOUND_NBYTES


class _Place(NamedTuple):
    """Where a feature of neighbouring rows lies in an array, and how far behind it the next one."""

    address: Address
    step: int

    def at(self, feature: int) -> Address:
        return further(self.address, feature * self.step)


def _fold(tag: Tag, sums_in: Tag, sums: int, count: int) -> Lanes:
    """Add up the lanes of sums, of which so many are not empty, in halves, as `total` does."""
    lanes = half = lanes_of(tag)
    nbytes = lanes * size_of(sums_in)
    while half > 1:
        half //= 2
        for lane in loop(0, smaller(half, count - half), 1):
            i = sums + lane * nbytes
            a, b = (load(at, None, sums_in, sums_in, lanes) for at in (i, i + half * nbytes))
            store(i, sums_in, a + b)
        count = smaller(count, half)
    return as_lanes(load(sums, None, sums_in, sums_in, lanes), WIDE64)


def _sum_up(
    tag: Tag, sums_in: Tag, x: _Place, other: _Place, start: int, count: int, shift: Lanes, room: int
) -> tuple[Lanes, Lanes]:
    """The sums of a chunk of deviations and of their squares, for as many rows as there are lanes."""
    lanes = lanes_of(tag)
    whole, rest = count - count % lanes, larger(count - lanes, 0)
    for lane in loop(0, smaller(lanes, count), 1):
        sums, squares = cell(splat(0.0, sums_in, lanes)), cell(splat(0.0, sums_in, lanes))

        def add(i: int, sums: Lanes = sums, squares: Lanes = squares) -> None:
            value = load(x.at(start + i), other.at(start + i), tag, sums_in) - shift
            sums[...] = sums + value
            squares[...] = fma(value, value, squares)

        for i in loop(lane, whole, lanes):
            add(i)
        for _ in when(rest + lane >= whole):
            add(rest + lane)
        i = room + lane * lanes * size_of(sums_in)
        store(i, sums_in, sums)
        store(i + _SUMS_NBYTES, sums_in, squares)
    count = smaller(lanes, count)
    return _fold(tag, sums_in, room, count), _fold(tag, sums_in, room + _SUMS_NBYTES, count)


def _rounded(tag: Tag, value: Lanes, rooms: Rooms) -> Lanes:
    """Lanes as the dtype of the rows has them, by way of some memory."""
    store(rooms.x, tag, value)
    return load(rooms.x, None, tag, WIDE64)


def _shift_of(task: TaskValues, tag: Tag, wide: Tag, rooms: Rooms, x: _Place, other: _Place, room: int) -> Lanes:
    """Numbers near the means of the rows, as in rows.py."""
    sums_in = statistics_in(tag, wide)
    if sums_in is WIDE64:
        return load(x.at(0), other.at(0), tag, WIDE64)
    count = smaller(task.features, lanes_of(tag))
    sums, _ = _sum_up(tag, sums_in, x, other, 0, count, splat(0.0, sums_in, lanes_of(tag)), room)
    return _rounded(tag, sums / splat(number(count), WIDE64, lanes_of(tag)), rooms)


def _reduce(task: TaskValues, tag: Tag, wide: Tag, rooms: Rooms, x: _Place, other: _Place, room: int) -> None:
    """Leave shifts, sums of deviations and sums of their squares in the rooms, of as many rows as there are lanes."""
    lanes, sums_in = lanes_of(tag), statistics_in(tag, wide)
    zero = splat(0.0, WIDE64, lanes)
    for centred in cases(task.rule == LAYER):
        shift = cell(_shift_of(task, tag, wide, rooms, x, other, room) if centred else zero)
        ended = cell(False)
        for _ in loop(0, 2, 1, ended):
            sums, squares = cell(zero), cell(zero)
            for start, count in chunks_of(task, tag):
                more, more_squares = _sum_up(tag, sums_in, x, other, start, count, as_lanes(shift, sums_in), room)
                sums[...] = sums + more
                squares[...] = squares + more_squares
            for at, value in ((rooms.shifts, shift), (rooms.sums, sums if centred else zero), (rooms.squares, squares)):
                store(at, WIDE64, value)
            ended[...] = True
            if centred and sums_in is not WIDE64:
                between = sums / splat(number(task.features), WIDE64, lanes)
                far, moved = sums * between, _rounded(tag, shift + between, rooms)
                near = squares * splat(NEAR, WIDE64, lanes)
                shift[...] = where_less(near, far, moved, shift)
                ended[...] = total(where_less(near, far, splat(1.0, WIDE64, lanes), zero)) == 0.0


def _keep(tag: Tag, wide: Tag, centred: bool, rooms: Rooms, found: int, column: int) -> None:
    """Put what rows are multiplied and moved by where `_numbers_at` finds it."""
    lanes = lanes_of(tag)
    shift, factor, constant = (
        load(room, None, WIDE64, WIDE64, lanes) for room in (rooms.shifts, rooms.factors, rooms.constants)
    )
    for at, value in enumerate(numbers_of(tag, wide, centred, shift, factor, constant)):
        if value is not None:
            store(found + at * _FOUND_NBYTES + column * size_of(wide), wide, value)


def _numbers_at(tag: Tag, wide: Tag, centred: bool, found: int, column: int) -> Factors:
    """What the rows from a column on are multiplied and moved by."""
    paired = uses_pairs(tag, wide)
    needed = Factors(True, paired, centred, paired and centred, centred and not paired)
    return Factors(
        *(
            load(found + at * _FOUND_NBYTES + column * size_of(wide), None, wide, wide, lanes_of(tag)) if one else None
            for at, one in enumerate(needed)
        )
    )


def _reduce_block(task: TaskValues, tag: Tag, wide: Tag, rooms: Rooms, first: int, columns: int, room: int) -> bool:
    """Find what each row of a block is multiplied and moved by; whether all are safe for float32."""
    lanes, size = lanes_of(tag), size_of(tag)
    safe = cell(True)
    x, other = (place(task, tag, which, first) for which in (X, OTHER))
    for at in loop(0, columns, lanes):
        column = smaller(at, columns - lanes)
        places = [
            _Place(further(address, column * size), axis_stride(task, which))
            for address, which in ((x, X), (other, OTHER))
        ]
        _reduce(task, tag, wide, rooms, *places, room)
        finish_group(task, tag, wide, rooms, lanes)
        safe[...] = safe & (count_safe(task, tag, wide, rooms, first + column, lanes) == lanes)
        for centred in cases(task.rule == LAYER):
            _keep(tag, wide, centred, rooms, room + 2 * _SUMS_NBYTES, column)
    return safe


def _apply_feature(
    tag: Tag, wide: Tag, places: list[_Place], feature: int, parameters: tuple[Lanes | None, ...], found: int,
    columns: int, centred: bool, carry: Address,
) -> None:  # fmt: skip
    """One feature of a block of rows."""
    x, other, y, added = (place_of.at(feature) for place_of in places)

    def compute(column: int, value: Lanes) -> Lanes:
        return apply_lanes(value, _numbers_at(tag, wide, centred, found, column), *parameters)

    sweep(tag, wide, x, other, y, added, columns, columns * size_of(tag), compute, carry)
    if carry is not None:  # what is next to a feature is another block
        settle(tag, carry)


def _apply_block(task: TaskValues, tag: Tag, wide: Tag, rooms: Rooms, first: int, columns: int, found: int) -> None:
    size, lanes = size_of(wide), lanes_of(tag)
    places = [_Place(place(task, tag, which, first), axis_stride(task, which)) for which in (X, OTHER, Y, ADDED)]
    for start, length in chunks_of(task, tag):
        for _ in when(task.widened & (length != task.features)):
            widen_parameters(task, wide, rooms, start, length, task.weight_offset)
        conditions = (task.rule == LAYER, task.weight != 0, task.bias != 0, task.streaming)
        for centred, has_weight, has_bias, streaming in combinations(*conditions):
            for k in loop(0, length, 1):
                parameters = tuple(
                    splat(peek(room + k * size, None, wide), wide, lanes) if given else None
                    for room, given in ((rooms.weights, has_weight), (rooms.biases, has_bias))
                )
                carry = rooms.carry if streaming else None
                _apply_feature(tag, wide, places, start + k, parameters, found, columns, centred, carry)


def normalize_columns(variant: Variant, task: int, first: int, last: int) -> int:
    """Normalize blocks of rows first to last, or up to one that float32 cannot hold; return which is the next.

    That is -1 where it cannot hold the weights. The last free axis of the layout is that of the neighbours; it is cut
    into blocks as layout.py says.
    """
    (tag, wide), values = variant.dtypes, values_of(task, variant, variant.has_residual, variant.has_residual)
    values = values._replace(direct=False)
    block, head = word(task, "block"), word(task, "head")
    rooms, room, lanes = furnish(buffer(ROOMS_NBYTES)), buffer(_ROOM_NBYTES), lanes_of(tag)
    following, ended = cell(-1), cell(False)
    for _ in when(are_weights_safe(values, tag, wide, rooms)):
        for _ in when(values.widened & (values.features < CHUNK + lanes)):
            widen_parameters(values, wide, rooms, 0, values.features, values.weight_offset)
        neighbours = axis_length(values)
        blocks = 1 + larger(0, neighbours - head - lanes) // block
        following[...] = last
        clear(rooms.carry)
        for unit in loop(first, last, 1, ended):
            i = unit % blocks
            start = where(i == 0, 0, head + i * block)
            end = where(i == blocks - 1, neighbours, head + (i + 1) * block)
            row, columns = unit // blocks * neighbours + start, end - start
            safe = _reduce_block(values, tag, wide, rooms, row, columns, room)
            for is_safe in cases(safe):
                if is_safe:
                    _apply_block(values, tag, wide, rooms, row, columns, room + 2 * _SUMS_NBYTES)
                else:
                    following[...], ended[...] = unit, True
        for _ in when(values.streaming):
            fence()
    return following
