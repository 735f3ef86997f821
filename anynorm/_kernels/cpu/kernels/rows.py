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
from anynorm._kernels.cpu.kernels.factors import find_factors
from anynorm._kernels.cpu.kernels.parameters import are_weights_safe, widen_parameters
from anynorm._kernels.cpu.kernels.scatter import RESIDUAL, TOTAL, X, Y, gather_both, is_gathered, place, scatter, target
from anynorm._kernels.cpu.kernels.streaming import flush, reset
from anynorm._kernels.cpu.kernels.task import Variant
from anynorm._kernels.cpu.kernels.values import Scratch, TaskValues, load_task
from anynorm._kernels.cpu.language.dtypes import CHUNK, FLOAT32, FLOAT64, GROUP, LAYER, Address, Dtype, Number, lanes_of
from anynorm._kernels.cpu.language.lanes import (
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

# Short rows go in groups, which share the latency of their roots and divisions, and stay in the first cache between
# reduce and apply. 64 features of float32: 0.44 ns an element one by one, 0.27 in groups of 32 (EPYC 9005, one core).
_MOST_NBYTES = 8 << 10
# In float32 the square of what lies between shift and mean may be this part of the mean square about the shift.
NEAR = 0.25


def rounded(value: Number, dtype: Dtype, room: int) -> Number:
    """A number as its dtype has it, by way of some memory."""
    poke(room, dtype, value)
    return peek(room, None, dtype)


def _shift_of(task: TaskValues, x: int, residual: Address) -> Number:
    """A number near the mean of a row."""
    if statistics_in(task.dtype, task.compute_dtype) is FLOAT64:
        # Any element will do: none is further from the mean than sqrt(features) standard deviations (Samuelson 1968,
        # "How deviant can you be?"), and float64 has the bits to spare.
        return peek(x, residual, task.dtype)
    count = smaller(task.features, lanes_of(task.dtype))
    a, b = gather_both(task, x, residual, 0, count)
    # Rounded to the dtype of the row, so that a constant row has no deviations.
    return rounded(
        sum_first(task.dtype, task.compute_dtype, a, b, count) / number(count), task.dtype, task.scratch.mean
    )


def _add_up(task: TaskValues, x: int, residual: Address, centred: bool, shift: Number, k: int) -> None:
    """Leave in the scratch the sum of deviations from the shift and that of their squares."""
    sums, squares = cell(0.0), cell(0.0)
    for start, count in chunks_of(task):
        a, b = gather_both(task, x, residual, start, count)
        if centred:
            more, more_squares = moments_chunk(
                task.dtype, statistics_in(task.dtype, task.compute_dtype), a, b, count, shift
            )
            sums[...] = sums + more
        else:
            more_squares = squares_chunk(task.dtype, statistics_in(task.dtype, task.compute_dtype), a, b, count)
        squares[...] = squares + more_squares
    poke(task.scratch.shifts + k, FLOAT64, shift)
    poke(task.scratch.sums + k, FLOAT64, sums)
    poke(task.scratch.squares + k, FLOAT64, squares)


def is_far(sums: Number, squares: Number, between: Number) -> bool:
    """Whether the mean lies so far from the shift that float32 would lose the deviations from it."""
    return sums * between > squares * NEAR


def reduce_row(task: TaskValues, row: int, k: int) -> None:
    """Leave the moments of a row in the scratch."""
    x, residual = place(task, X, row), place(task, RESIDUAL, row)
    for centred in cases(task.rule == LAYER):
        if not centred:
            _add_up(task, x, residual, False, 0.0, k)
            continue
        shift = _shift_of(task, x, residual)
        if statistics_in(task.dtype, task.compute_dtype) is FLOAT64:
            _add_up(task, x, residual, True, shift, k)
            continue
        near, ended = cell(shift), cell(False)
        for _ in loop(0, 2, 1, ended):
            _add_up(task, x, residual, True, near, k)
            sums, squares = peek(task.scratch.sums + k, None, FLOAT64), peek(task.scratch.squares + k, None, FLOAT64)
            between = sums / number(task.features)
            ended[...] = where(is_far(sums, squares, between), False, True)
            near[...] = rounded(near + between, task.dtype, task.scratch.mean)


def count_safe(task: TaskValues, first: int, count: int) -> int:
    """How many rows there are before the first on which float32 would leave its range."""
    if task.compute_dtype is FLOAT64:
        return count
    safe, ended = cell(0), cell(False)
    for k in loop(0, count, 1, ended):
        squares, factor, constant = (
            peek(room + 8 * k, None, FLOAT64)
            for room in (task.scratch.squares, task.scratch.factors, task.scratch.constants)
        )
        size = magnitude(factor)
        near_one = (size > 2.0**-60) & (size < 2.0**60)
        if uses_pairs(task.dtype, task.compute_dtype):
            near_one = (near_one & (magnitude(constant) < 2.0**20)) | (factor == 0.0)
            safe_row = cell(where(squares < math.inf, near_one, True))  # rows that hold NaN or Inf come out as NaN
        else:
            safe_row = cell(near_one & (squares > 2.0**-80) & (squares < 2.0**100))
            for _ in when(squares == 0.0):
                safe_row[...] = _flatten(task, first + k, 8 * k)
        ended[...] = where(safe_row, False, True)
        safe[...] = where(safe_row, k + 1, safe)
    return safe


def _flatten(task: TaskValues, row: int, k: int) -> bool:
    """Whether a row has no deviations at all, rather than such as have squares of 0; it is one of zeros then."""
    x, residual = place(task, X, row), place(task, RESIDUAL, row)
    flat = cell(True)
    for start, count in chunks_of(task):
        a, b = gather_both(task, x, residual, start, count)
        flat[...] = flat & is_flat_chunk(task.dtype, a, b, count, peek(task.scratch.shifts + k, None, FLOAT64))
    for room in (task.scratch.factors, task.scratch.constants):
        poke(room + k, FLOAT64, where(flat, 0.0, peek(room + k, None, FLOAT64)))
    return flat


def _normalize_group(task: TaskValues, first: int, count: int) -> int:
    """Normalize up to GROUP rows; return how many, which is less where one is not safe for float32."""
    for k in loop(0, count, 1):
        reduce_row(task, first + k, 8 * k)
    find_factors(task, count)
    count = count_safe(task, first, count)
    for direct in cases(task.direct):
        parameter = task.dtype if direct else task.compute_dtype
        # At once where nothing has to be widened or gathered: each chunk begins and ends within a cache line.
        step = task.features if direct else where(task.widened, CHUNK, task.features)
        step = where(is_gathered(task), CHUNK, step)
        for start, length in chunks_of(task, step):
            weight, bias = task.scratch.weights, task.scratch.biases
            if direct:
                weight, bias = (one + start * size_of(task.dtype) for one in (task.weight, task.bias))
            else:
                for _ in when(task.widened & (length != task.features)):
                    widen_parameters(task, start, length, task.weight_offset)
            weight, bias = where(task.weight == 0, 0, weight), where(task.bias == 0, 0, bias)
            for k in loop(0, count, 1):
                _apply_row(task, parameter, task.scratch, first + k, count, start, length, weight, bias, 8 * k)
    return count


def _apply_row(
    task: TaskValues, parameter: Dtype, scratch: Scratch, row: int, behind: int, start: int, count: int,
    weight: int, bias: int, k: int,
) -> None:  # fmt: skip
    """Apply a chunk of a row, and fetch that of the row so many behind it."""
    x, residual, y, total = (place(task, which, row) for which in (X, RESIDUAL, Y, TOTAL))
    a, b = gather_both(task, x, residual, start, count)
    away = place(task, X, row + behind) - x
    ahead = where(is_gathered(task), 0, where(task.fetching, away, 0))
    shift, factor, constant = (
        peek(room + k, None, FLOAT64) for room in (scratch.shifts, scratch.factors, scratch.constants)
    )
    apply_chunk(
        task, parameter, a, b,
        target(task, y, start, scratch.y), target(task, total, start, scratch.total),
        weight, bias, larger(count, lanes_of(task.dtype)), shift, factor, constant, ahead,
    )  # fmt: skip
    scatter(task, Y, y, start, count, scratch.y)
    scatter(task, TOTAL, total, start, count, scratch.total)


def normalize_all(task: TaskValues, first: int, last: int) -> int:
    """Normalize rows in groups; return which is the next, or -1."""
    following, ended = cell(-1), cell(False)
    for _ in when(are_weights_safe(task)):
        for _ in when(task.widened & (task.features < CHUNK + lanes_of(task.dtype))):
            widen_parameters(task, 0, task.features, task.weight_offset)
        step = larger(1, smaller(GROUP, _MOST_NBYTES // (task.features * size_of(task.dtype))))
        following[...] = first
        reset(task.scratch.open_line)
        for start in loop(first, last, step, ended):
            count = smaller(step, last - start)
            done = _normalize_group(task, start, count)
            following[...] = start + done
            ended[...] = done < count
        for _ in when(task.streaming):
            flush(task.dtype, task.scratch.open_line)
            fence()
    return following


def normalize_rows(variant: Variant, address: int, first: int, last: int) -> int:
    """Normalize rows first to last, or up to one that float32 cannot hold; return which is the next.

    That is -1 where it cannot hold the weights.
    """
    task = load_task(address, variant)
    # Rows that are taken up again in float64 come as they were, with parameters in their own dtype.
    direct = task.direct if task.compute_dtype is FLOAT32 else False
    return normalize_all(
        task._replace(
            direct=direct,
            widened=where(direct, False, task.widened),
            # Shorter rows are put together in buffers.
            streaming=task.streaming & (task.features >= lanes_of(task.dtype)),
        ),
        first,
        last,
    )
