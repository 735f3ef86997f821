"""Many rows side by side, where neighbours in memory belong to different rows: LANES rows in the lanes of a vector.

So it is along the first axis, or along the channels of (N, C, H, W). The sums of a row run in the same order as where
its features lie one after the other: all of a lane's elements, then those of the next lane, then the lanes in halves.
"""

from __future__ import annotations

from anynorm._kernels.cpu.chunks import prefetch_chunk
from anynorm._kernels.cpu.finish import finish
from anynorm._kernels.cpu.jit import inlined, inner, kernel, merged
from anynorm._kernels.cpu.lanes import (
    as_lanes,
    buffer,
    fence,
    fma,
    further,
    load,
    peek,
    size_of,
    splat,
    store,
    stream,
    weighted,
)
from anynorm._kernels.cpu.rows import (
    ROOMS_NBYTES,
    are_weights_safe,
    count_safe,
    furnish,
    widen_parameters,
)
from anynorm._kernels.cpu.scatter import ADDED, OTHER, X, Y, axis_length, axis_stride, place, place_results
from anynorm._kernels.cpu.tags import CHUNK, LANES, LAYER, WIDE64, WIDEST_BLOCK
from anynorm._kernels.cpu.task import Task

# For each lane of a sum, LANES rows in the wide dtype; two sums.
_SUMS_NBYTES = LANES * LANES * 8
# For each row of the widest block: shift, factor, constant, in the wide dtype.
_ROOM_NBYTES = 2 * _SUMS_NBYTES + 3 * WIDEST_BLOCK * 8


@inlined
def _fold(wide, sums, count):
    """Add up the lanes of sums in halves, as `total` does."""
    stride = LANES * size_of(wide)
    half = LANES // 2
    while half:
        for lane in range(half):
            if lane + half < count:
                i = sums + lane * stride
                a, b = load(i, None, wide, wide, None, 0.0), load(i + half * stride, None, wide, wide, None, 0.0)
                store(i, wide, a + b, None)
        count = min(count, half)
        half //= 2
    return as_lanes(load(sums, None, wide, wide, None, 0.0), WIDE64)


@inlined
def _sum_chunk(tag, wide, x, other, step, other_step, features, count, shift, squared, sums, squares):
    """For each lane the sums of a chunk of LANES rows, or of the first ``count`` of them."""
    for lane in range(min(LANES, features)):
        total = total_of_squares = splat(0.0, wide)
        for i in range(lane, features, LANES):
            value = load(x + i * step, further(other, i * other_step), tag, wide, count, 0.0) - shift
            total = total + value
            if squared:
                total_of_squares = fma(value, value, total_of_squares)
        store(sums + lane * LANES * size_of(wide), wide, total, None)
        store(squares + lane * LANES * size_of(wide), wide, total_of_squares, None)


@inlined
def _reduce(task, tag, wide, x, other, step, other_step, count, shift, squared, room):
    """The sums of deviations from a shift, and those of their squares, of LANES rows."""
    sums, squares = splat(0.0, WIDE64), splat(0.0, WIDE64)
    for start in range(0, task.features, CHUNK):
        features = min(CHUNK, task.features - start)
        _sum_chunk(
            tag, wide, x + start * step, further(other, start * other_step), step, other_step, features, count, shift,
            squared, room, room + _SUMS_NBYTES,
        )  # fmt: skip
        sums = sums + _fold(wide, room, min(LANES, features))
        if squared:
            squares = squares + _fold(wide, room + _SUMS_NBYTES, min(LANES, features))
    return sums, squares


@inlined
def _moments(task, tag, wide, rooms, x, other, step, other_step, count, room):
    """Leave shifts, sums of deviations and sums of their squares of LANES rows in the rooms."""
    shift = splat(0.0, wide)
    if task.rule == LAYER:
        if size_of(wide) == 8:
            shift = load(x, other, tag, wide, count, 0.0)
        else:
            sums, _ = _reduce(task, tag, wide, x, other, step, other_step, count, shift, False, room)
            store(rooms.x, tag, sums / splat(task.features * 1.0, WIDE64), None)
            shift = load(rooms.x, None, tag, wide, None, 0.0)
    sums, squares = _reduce(task, tag, wide, x, other, step, other_step, count, shift, True, room)
    if task.rule != LAYER:
        sums = splat(0.0, WIDE64)
    store(rooms.shifts, WIDE64, as_lanes(shift, WIDE64), None)
    store(rooms.sums, WIDE64, sums, None)
    store(rooms.squares, WIDE64, squares, None)
    factors, constants = finish(task.rule, sums, squares, task.features, task.eps, task.scale)
    store(rooms.factors, WIDE64, factors, None)
    store(rooms.constants, WIDE64, constants, None)


@inlined
def _apply(task, tag, wide, x, other, y, added, found, weight, bias, count, streaming):
    """One feature of LANES rows, or of the first ``count`` of them."""
    value = load(x, other, tag, wide, count, 0.0)
    if added is not None:
        store(added, tag, value, count)
    size = WIDEST_BLOCK * size_of(wide)
    factor = load(found + size, None, wide, wide, None, 0.0)
    if task.rule == LAYER:
        shift, constant = load(found, None, wide, wide, None, 0.0), load(found + 2 * size, None, wide, wide, None, 0.0)
        value = fma(value - shift, factor, constant)
        if task.affine:
            value = fma(value, weight, bias)
    elif task.affine:
        value = weighted(value, factor, weight, bias)
    else:
        value = value * factor
    if streaming:
        stream(y, tag, value)
    else:
        store(y, tag, value, count)


@inner
def _moments_of(task, tag, wide, rooms, x, other, step, other_step, count, room):
    """`_moments`, compiled for whole vectors and for what is left."""
    if count == LANES:
        _moments(task, tag, wide, rooms, x, other, step, other_step, None, room)
    else:
        _moments(task, tag, wide, rooms, x, other, step, other_step, count, room)


@inner
def _apply_feature(task, tag, wide, x, other, y, added, found, weight, bias, columns, ahead):
    """One feature of a block of rows."""
    size, wide_size = size_of(tag), size_of(wide)
    weights, biases = splat(weight, wide), splat(bias, wide)
    whole = columns - columns % LANES
    for column in range(0, whole, LANES):
        i = column * size
        prefetch_chunk(x + ahead + i, LANES * size)
        _apply(
            task, tag, wide, x + i, further(other, i), y + i, further(added, i), found + column * wide_size,
            weights, biases, None, task.streaming,
        )  # fmt: skip
    if whole < columns:
        i = whole * size
        _apply(
            task, tag, wide, x + i, further(other, i), y + i, further(added, i), found + whole * wide_size,
            weights, biases, columns - whole, False,
        )  # fmt: skip


@merged
def _normalize_block(task, tag, wide, rooms, first, columns, room):
    """Normalize up to WIDEST_BLOCK neighbouring rows; return False and leave them alone where one is not safe."""
    size, wide_size, features = size_of(tag), size_of(wide), task.features
    x, other = place(task, tag, first)
    y, added = place_results(task, tag, first)
    step, other_step = axis_stride(task, X), axis_stride(task, OTHER)
    y_step, added_step = axis_stride(task, Y), axis_stride(task, ADDED)
    found = room + 2 * _SUMS_NBYTES
    for column in range(0, columns, LANES):
        count, i = min(LANES, columns - column), column * size
        _moments_of(task, tag, wide, rooms, x + i, further(other, i), step, other_step, count, room)
        if count_safe(task, tag, wide, rooms, first + column, count) < count:
            return False
        to, k = found + column * wide_size, WIDEST_BLOCK * wide_size
        store(to, wide, load(rooms.shifts, None, WIDE64, WIDE64, None, 0.0), None)
        store(to + k, wide, load(rooms.factors, None, WIDE64, WIDE64, None, 0.0), None)
        store(to + 2 * k, wide, load(rooms.constants, None, WIDE64, WIDE64, None, 0.0), None)
    for start in range(0, features, CHUNK):
        length = min(CHUNK, features - start)
        if task.affine and features > CHUNK:
            widen_parameters(task, wide, rooms, start, length, task.weight_offset)
        for k in range(length):
            i = start + k
            _apply_feature(
                task, tag, wide, x + i * step, further(other, i * other_step), y + i * y_step,
                further(added, i * added_step), found, peek(rooms.weights + k * wide_size, None, wide),
                peek(rooms.biases + k * wide_size, None, wide), columns, columns * size,
            )  # fmt: skip
    return True


@kernel
def normalize_columns(
    tag, wide, first, last, rule, eps, scale, features, x, other, y, added, layout,
    weight, weight_code, bias, bias_code, weight_offset, direct, streaming, block, head,
):  # fmt: skip
    """Normalize blocks of rows first to last, or up to one that float32 cannot hold; return which is the next.

    That is -1 where it cannot hold the weights. The last free axis of the layout is that of the neighbours; it is cut
    into a block of ``head`` rows, which brings the rest to cache lines of y, and then blocks of ``block``. The other
    arguments are those of Task, and the dtypes of x and of what is computed in.
    """
    task = Task(
        rule, eps, scale, features, x, other, y, added, layout, weight, weight_code, bias, bias_code, weight_offset,
        weight != 0 or bias != 0, direct, streaming, block, head,
    )  # fmt: skip
    rooms, room = furnish(buffer(ROOMS_NBYTES)), buffer(_ROOM_NBYTES)
    if not are_weights_safe(task, wide, rooms):
        return -1
    if task.affine and features <= CHUNK:
        widen_parameters(task, wide, rooms, min(first, 0), features, weight_offset)
    neighbours = axis_length(task)
    blocks = 1 + (neighbours - head + block - 1) // block
    for unit in range(first, last):
        i = unit % blocks
        start = head + (i - 1) * block if i else 0
        end = min(neighbours, head + i * block)
        if start < end and not _normalize_block(
            task, tag, wide, rooms, unit // blocks * neighbours + start, end - start, room
        ):
            return unit
    if streaming:
        fence()
    return last
