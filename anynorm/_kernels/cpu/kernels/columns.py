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
from anynorm._kernels.cpu.kernels.factors import find_factors
from anynorm._kernels.cpu.kernels.parameters import are_weights_safe, widen_parameters
from anynorm._kernels.cpu.kernels.rows import NEAR, count_safe
from anynorm._kernels.cpu.kernels.scatter import RESIDUAL, TOTAL, X, Y, axis_length, axis_stride, place
from anynorm._kernels.cpu.kernels.streaming import flush, further, map_chunk, reset
from anynorm._kernels.cpu.kernels.task import Variant
from anynorm._kernels.cpu.kernels.values import Scratch, TaskValues, load_task, word
from anynorm._kernels.cpu.language.dtypes import (
    CHUNK,
    FLOAT64,
    LAYER,
    WIDEST_BLOCK,
    Address,
    Dtype,
    Lanes,
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
    sum_lanes,
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


def _fold(dtype: Dtype, sums_in: Dtype, sums: int, count: int) -> Lanes:
    """Add up the lanes of sums, of which so many are not empty, in halves, as `total` does."""
    lanes = half = lanes_of(dtype)
    nbytes = lanes * size_of(sums_in)
    while half > 1:
        half //= 2
        for lane in loop(0, smaller(half, count - half), 1):
            i = sums + lane * nbytes
            a, b = (load(at, None, sums_in, sums_in, lanes) for at in (i, i + half * nbytes))
            store(i, sums_in, a + b)
        count = smaller(count, half)
    return as_lanes(load(sums, None, sums_in, sums_in, lanes), FLOAT64)


def _sum_up(
    dtype: Dtype, sums_in: Dtype, x: _Place, residual: _Place, start: int, count: int, shift: Lanes, room: int
) -> tuple[Lanes, Lanes]:
    """The sums of a chunk of deviations and of their squares, for as many rows as there are lanes."""
    lanes = lanes_of(dtype)
    whole, rest = count - count % lanes, larger(count - lanes, 0)
    for lane in loop(0, smaller(lanes, count), 1):
        sums, squares = cell(splat(0.0, sums_in, lanes)), cell(splat(0.0, sums_in, lanes))

        def add(i: int, sums: Lanes = sums, squares: Lanes = squares) -> None:
            value = load(x.at(start + i), residual.at(start + i), dtype, sums_in) - shift
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
    return _fold(dtype, sums_in, room, count), _fold(dtype, sums_in, room + _SUMS_NBYTES, count)


def _rounded(dtype: Dtype, value: Lanes, scratch: Scratch) -> Lanes:
    """Lanes as the dtype of the rows has them, by way of some memory."""
    store(scratch.x, dtype, value)
    return load(scratch.x, None, dtype, FLOAT64)


def _shift_of(task: TaskValues, x: _Place, residual: _Place, room: int) -> Lanes:
    """Numbers near the means of the rows, as in rows.py."""
    sums_in = statistics_in(task.dtype, task.compute_dtype)
    if sums_in is FLOAT64:
        return load(x.at(0), residual.at(0), task.dtype, FLOAT64)
    count = smaller(task.features, lanes_of(task.dtype))
    sums, _ = _sum_up(task.dtype, sums_in, x, residual, 0, count, splat(0.0, sums_in, lanes_of(task.dtype)), room)
    return _rounded(task.dtype, sums / splat(number(count), FLOAT64, lanes_of(task.dtype)), task.scratch)


def _reduce(task: TaskValues, x: _Place, residual: _Place, room: int) -> None:
    """Leave shifts, sums of deviations and sums of their squares in the scratch, of as many rows as there are lanes."""
    lanes, sums_in = lanes_of(task.dtype), statistics_in(task.dtype, task.compute_dtype)
    zero = splat(0.0, FLOAT64, lanes)
    for centred in cases(task.rule == LAYER):
        shift = cell(_shift_of(task, x, residual, room) if centred else zero)
        ended = cell(False)
        for _ in loop(0, 2, 1, ended):
            sums, squares = cell(zero), cell(zero)
            for start, count in chunks_of(task):
                more, more_squares = _sum_up(
                    task.dtype, sums_in, x, residual, start, count, as_lanes(shift, sums_in), room
                )
                sums[...] = sums + more
                squares[...] = squares + more_squares
            for at, value in (
                (task.scratch.shifts, shift),
                (task.scratch.sums, sums if centred else zero),
                (task.scratch.squares, squares),
            ):
                store(at, FLOAT64, value)
            ended[...] = True
            if centred and sums_in is not FLOAT64:
                between = sums / splat(number(task.features), FLOAT64, lanes)
                far, moved = sums * between, _rounded(task.dtype, shift + between, task.scratch)
                near = squares * splat(NEAR, FLOAT64, lanes)
                shift[...] = where_less(near, far, moved, shift)
                ended[...] = sum_lanes(where_less(near, far, splat(1.0, FLOAT64, lanes), zero)) == 0.0


def _keep(dtype: Dtype, compute_dtype: Dtype, centred: bool, scratch: Scratch, found: int, column: int) -> None:
    """Put what rows are multiplied and moved by where `_numbers_at` finds it."""
    lanes = lanes_of(dtype)
    shift, factor, constant = (
        load(room, None, FLOAT64, FLOAT64, lanes) for room in (scratch.shifts, scratch.factors, scratch.constants)
    )
    for at, value in enumerate(numbers_of(dtype, compute_dtype, centred, shift, factor, constant)):
        if value is not None:
            store(found + at * _FOUND_NBYTES + column * size_of(compute_dtype), compute_dtype, value)


def _numbers_at(dtype: Dtype, compute_dtype: Dtype, centred: bool, found: int, column: int) -> Factors:
    """What the rows from a column on are multiplied and moved by."""
    paired = uses_pairs(dtype, compute_dtype)
    needed = Factors(True, paired, centred, paired and centred, centred and not paired)
    return Factors(
        *(
            load(
                found + at * _FOUND_NBYTES + column * size_of(compute_dtype),
                None,
                compute_dtype,
                compute_dtype,
                lanes_of(dtype),
            )
            if one
            else None
            for at, one in enumerate(needed)
        )
    )


def _reduce_block(task: TaskValues, first: int, columns: int, room: int) -> bool:
    """Find what each row of a block is multiplied and moved by; whether all are safe for float32."""
    lanes, size = lanes_of(task.dtype), size_of(task.dtype)
    safe = cell(True)
    x, residual = (place(task, which, first) for which in (X, RESIDUAL))
    for at in loop(0, columns, lanes):
        column = smaller(at, columns - lanes)
        of_x, of_residual = (
            _Place(further(address, column * size), axis_stride(task, which))
            for address, which in ((x, X), (residual, RESIDUAL))
        )
        _reduce(task, of_x, of_residual, room)
        find_factors(task, lanes)
        safe[...] = safe & (count_safe(task, first + column, lanes) == lanes)
        for centred in cases(task.rule == LAYER):
            _keep(task.dtype, task.compute_dtype, centred, task.scratch, room + 2 * _SUMS_NBYTES, column)
    return safe


def _apply_feature(
    dtype: Dtype, compute_dtype: Dtype, places: list[_Place], feature: int, parameters: tuple[Lanes | None, ...],
    found: int, columns: int, centred: bool, open_line: Address,
) -> None:  # fmt: skip
    """One feature of a block of rows."""
    x, residual, y, total = (place_of.at(feature) for place_of in places)

    def compute(column: int, value: Lanes) -> Lanes:
        return apply_lanes(value, _numbers_at(dtype, compute_dtype, centred, found, column), *parameters)

    map_chunk(dtype, compute_dtype, x, residual, y, total, columns, columns * size_of(dtype), compute, open_line)
    if open_line is not None:  # what is next to a feature is another block
        flush(dtype, open_line)


def _apply_block(task: TaskValues, first: int, columns: int, found: int) -> None:
    size, lanes = size_of(task.compute_dtype), lanes_of(task.dtype)
    places = [_Place(place(task, which, first), axis_stride(task, which)) for which in (X, RESIDUAL, Y, TOTAL)]
    for start, length in chunks_of(task):
        for _ in when(task.widened & (length != task.features)):
            widen_parameters(task, start, length, task.weight_offset)
        conditions = (task.rule == LAYER, task.weight != 0, task.bias != 0, task.streaming)
        for centred, has_weight, has_bias, streaming in combinations(*conditions):
            for k in loop(0, length, 1):
                parameters = tuple(
                    splat(peek(room + k * size, None, task.compute_dtype), task.compute_dtype, lanes) if given else None
                    for room, given in ((task.scratch.weights, has_weight), (task.scratch.biases, has_bias))
                )
                open_line = task.scratch.open_line if streaming else None
                _apply_feature(
                    task.dtype, task.compute_dtype, places, start + k, parameters, found, columns, centred, open_line
                )


def normalize_columns(variant: Variant, address: int, first: int, last: int) -> int:
    """Normalize blocks of rows first to last, or up to one that float32 cannot hold; return which is the next.

    That is -1 where it cannot hold the weights. The last free axis of the layout is that of the neighbours; it is cut
    into blocks as layout.py says.
    """
    task = load_task(address, variant)._replace(direct=False)
    block, head = word(address, "block"), word(address, "head")
    room, lanes = buffer(_ROOM_NBYTES), lanes_of(task.dtype)
    following, ended = cell(-1), cell(False)
    for _ in when(are_weights_safe(task)):
        for _ in when(task.widened & (task.features < CHUNK + lanes)):
            widen_parameters(task, 0, task.features, task.weight_offset)
        neighbours = axis_length(task)
        blocks = 1 + larger(0, neighbours - head - lanes) // block
        following[...] = last
        reset(task.scratch.open_line)
        for unit in loop(first, last, 1, ended):
            i = unit % blocks
            start = where(i == 0, 0, head + i * block)
            end = where(i == blocks - 1, neighbours, head + (i + 1) * block)
            row, columns = unit // blocks * neighbours + start, end - start
            safe = _reduce_block(task, row, columns, room)
            for is_safe in cases(safe):
                if is_safe:
                    _apply_block(task, row, columns, room + 2 * _SUMS_NBYTES)
                else:
                    following[...], ended[...] = unit, True
        for _ in when(task.streaming):
            fence()
    return following
