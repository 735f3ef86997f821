"""Row after row: reduce, finish and apply, a group of rows at a time.

A row is read twice, from memory for its moments and from a cache for the result. While a group is applied the next one
is fetched, so that reading and writing overlap.
"""

from __future__ import annotations

import math

from anynorm._kernels.cpu.kernels.chunks import (
    apply_chunk,
    chunks_of,
    is_flat_chunk,
    moments_chunk,
    squares_chunk,
    statistics_in,
    sum_first,
    uses_pairs,
)
from anynorm._kernels.cpu.kernels.factors import finish_group
from anynorm._kernels.cpu.kernels.parameters import are_weights_safe, widen_parameters
from anynorm._kernels.cpu.kernels.scatter import ADDED, OTHER, X, Y, gather_both, is_gathered, place, scatter, target
from anynorm._kernels.cpu.kernels.sweep import CARRY_NBYTES, clear, settle
from anynorm._kernels.cpu.kernels.task import Variant
from anynorm._kernels.cpu.kernels.values import Rooms, TaskValues, values_of
from anynorm._kernels.cpu.language.dtypes import CHUNK, GROUP, LAYER, WIDE64, Address, Number, Tag, lanes_of
from anynorm._kernels.cpu.language.lanes import (
    buffer,
    cases,
    cell,
    fence,
    larger,
    loop,
    magnitude,
    number,
    peek,
    poke,
    size_of,
    smaller,
    when,
    where,
)

# Room for a chunk, which may have some lanes more than CHUNK elements, and for what is read behind it.
_CHUNK_NBYTES = (CHUNK + 64) * 8
_GROUP_NBYTES = GROUP * 8
ROOMS_NBYTES = 7 * _CHUNK_NBYTES + 6 * _GROUP_NBYTES + CARRY_NBYTES
# Short rows go in groups, which share the latency of their roots and divisions, and stay in the first cache between
# reduce and apply. 64 features of float32: 0.44 ns an element one by one, 0.27 in groups of 32 (EPYC 9005, one core).
_MOST_NBYTES = 8 << 10
# In float32 the square of what lies between shift and mean may be this part of the mean square about the shift.
NEAR = 0.25


def furnish(address: int) -> Rooms:
    """Divide up the memory that a kernel works in."""
    numbers = address + 7 * _CHUNK_NBYTES
    return Rooms(
        *(address + room * _CHUNK_NBYTES for room in range(7)), *(numbers + room * _GROUP_NBYTES for room in range(7))
    )


def rounded(value: Number, tag: Tag, room: int) -> Number:
    """A number as its dtype has it, by way of some memory."""
    poke(room, tag, value)
    return peek(room, None, tag)


def _shift_of(task: TaskValues, tag: Tag, wide: Tag, rooms: Rooms, x: int, other: Address) -> Number:
    """A number near the mean of a row."""
    if statistics_in(tag, wide) is WIDE64:
        # Any element will do: none is further from the mean than sqrt(features) standard deviations (Samuelson 1968,
        # "How deviant can you be?"), and float64 has the bits to spare.
        return peek(x, other, tag)
    count = smaller(task.features, lanes_of(tag))
    a, b = gather_both(task, tag, rooms, x, other, 0, count)
    # Rounded to the dtype of the row, so that a constant row has no deviations.
    return rounded(sum_first(tag, wide, a, b, count) / number(count), tag, rooms.mean)


def _add_up(
    task: TaskValues, tag: Tag, wide: Tag, rooms: Rooms, x: int, other: Address, centred: bool, shift: Number, k: int
) -> None:
    """Leave in the rooms the sum of deviations from the shift and that of their squares."""
    sums, squares = cell(0.0), cell(0.0)
    for start, count in chunks_of(task, tag):
        a, b = gather_both(task, tag, rooms, x, other, start, count)
        if centred:
            more, more_squares = moments_chunk(tag, statistics_in(tag, wide), a, b, count, shift)
            sums[...] = sums + more
        else:
            more_squares = squares_chunk(tag, statistics_in(tag, wide), a, b, count)
        squares[...] = squares + more_squares
    poke(rooms.shifts + k, WIDE64, shift)
    poke(rooms.sums + k, WIDE64, sums)
    poke(rooms.squares + k, WIDE64, squares)


def is_far(sums: Number, squares: Number, between: Number) -> bool:
    """Whether the mean lies so far from the shift that float32 would lose the deviations from it."""
    return sums * between > squares * NEAR


def reduce_row(task: TaskValues, tag: Tag, wide: Tag, rooms: Rooms, row: int, k: int) -> None:
    """Leave the moments of a row in the rooms."""
    x, other = place(task, tag, X, row), place(task, tag, OTHER, row)
    for centred in cases(task.rule == LAYER):
        if not centred:
            _add_up(task, tag, wide, rooms, x, other, False, 0.0, k)
            continue
        shift = _shift_of(task, tag, wide, rooms, x, other)
        if statistics_in(tag, wide) is WIDE64:
            _add_up(task, tag, wide, rooms, x, other, True, shift, k)
            continue
        near, ended = cell(shift), cell(False)
        for _ in loop(0, 2, 1, ended):
            _add_up(task, tag, wide, rooms, x, other, True, near, k)
            sums, squares = peek(rooms.sums + k, None, WIDE64), peek(rooms.squares + k, None, WIDE64)
            between = sums / number(task.features)
            ended[...] = where(is_far(sums, squares, between), False, True)
            near[...] = rounded(near + between, tag, rooms.mean)


def count_safe(task: TaskValues, tag: Tag, wide: Tag, rooms: Rooms, first: int, count: int) -> int:
    """How many rows there are before the first on which float32 would leave its range."""
    if wide is WIDE64:
        return count
    safe, ended = cell(0), cell(False)
    for k in loop(0, count, 1, ended):
        squares, factor, constant = (
            peek(room + 8 * k, None, WIDE64) for room in (rooms.squares, rooms.factors, rooms.constants)
        )
        size = magnitude(factor)
        near_one = (size > 2.0**-60) & (size < 2.0**60)
        if uses_pairs(tag, wide):
            near_one = (near_one & (magnitude(constant) < 2.0**20)) | (factor == 0.0)
            safe_row = cell(where(squares < math.inf, near_one, True))  # rows that hold NaN or Inf come out as NaN
        else:
            safe_row = cell(near_one & (squares > 2.0**-80) & (squares < 2.0**100))
            for _ in when(squares == 0.0):
                safe_row[...] = _flatten(task, tag, rooms, first + k, 8 * k)
        ended[...] = where(safe_row, False, True)
        safe[...] = where(safe_row, k + 1, safe)
    return safe


def _flatten(task: TaskValues, tag: Tag, rooms: Rooms, row: int, k: int) -> bool:
    """Whether a row has no deviations at all, rather than such as have squares of 0; it is one of zeros then."""
    x, other = place(task, tag, X, row), place(task, tag, OTHER, row)
    flat = cell(True)
    for start, count in chunks_of(task, tag):
        a, b = gather_both(task, tag, rooms, x, other, start, count)
        flat[...] = flat & is_flat_chunk(tag, a, b, count, peek(rooms.shifts + k, None, WIDE64))
    for room in (rooms.factors, rooms.constants):
        poke(room + k, WIDE64, where(flat, 0.0, peek(room + k, None, WIDE64)))
    return flat


def _normalize_group(task: TaskValues, tag: Tag, wide: Tag, rooms: Rooms, first: int, count: int) -> int:
    """Normalize up to GROUP rows; return how many, which is less where one is not safe for float32."""
    for k in loop(0, count, 1):
        reduce_row(task, tag, wide, rooms, first + k, 8 * k)
    finish_group(task, tag, wide, rooms, count)
    count = count_safe(task, tag, wide, rooms, first, count)
    for direct in cases(task.direct):
        parameter = tag if direct else wide
        # At once where nothing has to be widened or gathered: each chunk begins and ends within a cache line.
        step = task.features if direct else where(task.widened, CHUNK, task.features)
        step = where(is_gathered(task, tag), CHUNK, step)
        for start, length in chunks_of(task, tag, step):
            weight, bias = rooms.weights, rooms.biases
            if direct:
                weight, bias = (one + start * size_of(tag) for one in (task.weight, task.bias))
            else:
                for _ in when(task.widened & (length != task.features)):
                    widen_parameters(task, wide, rooms, start, length, task.weight_offset)
            weight, bias = where(task.weight == 0, 0, weight), where(task.bias == 0, 0, bias)
            for k in loop(0, count, 1):
                _apply_row(task, tag, wide, parameter, rooms, first + k, count, start, length, weight, bias, 8 * k)
    return count


def _apply_row(
    task: TaskValues, tag: Tag, wide: Tag, parameter: Tag, rooms: Rooms, row: int, behind: int, start: int, count: int,
    weight: int, bias: int, k: int,
) -> None:  # fmt: skip
    """Apply a chunk of a row, and fetch that of the row so many behind it."""
    x, other, y, added = (place(task, tag, which, row) for which in (X, OTHER, Y, ADDED))
    a, b = gather_both(task, tag, rooms, x, other, start, count)
    away = place(task, tag, X, row + behind) - x
    ahead = where(is_gathered(task, tag), 0, where(task.fetching, away, 0))
    shift, factor, constant = (peek(room + k, None, WIDE64) for room in (rooms.shifts, rooms.factors, rooms.constants))
    apply_chunk(
        task, tag, wide, parameter, a, b,
        target(task, tag, y, start, rooms.y), target(task, tag, added, start, rooms.added),
        weight, bias, larger(count, lanes_of(tag)), shift, factor, constant, ahead, rooms.carry,
    )  # fmt: skip
    scatter(task, tag, Y, y, start, count, rooms.y)
    scatter(task, tag, ADDED, added, start, count, rooms.added)


def normalize_all(task: TaskValues, tag: Tag, wide: Tag, rooms: Rooms, first: int, last: int) -> int:
    """Normalize rows in groups; return which is the next, or -1."""
    following, ended = cell(-1), cell(False)
    for _ in when(are_weights_safe(task, tag, wide, rooms)):
        for _ in when(task.widened & (task.features < CHUNK + lanes_of(tag))):
            widen_parameters(task, wide, rooms, 0, task.features, task.weight_offset)
        step = larger(1, smaller(GROUP, _MOST_NBYTES // (task.features * size_of(tag))))
        following[...] = first
        clear(rooms.carry)
        for start in loop(first, last, step, ended):
            count = smaller(step, last - start)
            done = _normalize_group(task, tag, wide, rooms, start, count)
            following[...] = start + done
            ended[...] = done < count
        for _ in when(task.streaming):
            settle(tag, rooms.carry)
            fence()
    return following


def normalize_rows(variant: Variant, task: int, first: int, last: int) -> int:
    """Normalize rows first to last, or up to one that float32 cannot hold; return which is the next.

    That is -1 where it cannot hold the weights.
    """
    (tag, wide), values = variant.dtypes, values_of(task, variant, variant.has_residual, variant.has_residual)
    if wide is WIDE64:  # rows that are taken up again in float64 come as they were
        values = values._replace(direct=False)
    values = values._replace(
        widened=where(values.direct, False, values.widened),
        # Shorter rows are put together in buffers.
        streaming=values.streaming & (values.features >= lanes_of(tag)),
    )
    return normalize_all(values, tag, wide, furnish(buffer(ROOMS_NBYTES)), first, last)
