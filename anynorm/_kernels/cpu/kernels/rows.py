"""Row after row: reduce, find factors and apply, a group of rows at a time.

A row is read twice, from memory for its moments and from a cache for the result. While a group is applied the next one
is fetched, so that reading and writing overlap.
"""

from __future__ import annotations

import math

from anynorm._kernels.cpu.kernels.chunks import (
    apply_chunk,
    chunks_of,
    is_flat_chunk,
    mean_of_first,
    rounded,
    sum_chunk,
)
from anynorm._kernels.cpu.kernels.factors import find_factors
from anynorm._kernels.cpu.kernels.parameters import are_weights_safe, widen_parameters, widen_short_parameters
from anynorm._kernels.cpu.kernels.reduce import reduce
from anynorm._kernels.cpu.kernels.scatter import X, gather, is_gathered, numbers_address, row_address, row_of, scatter
from anynorm._kernels.cpu.kernels.streaming import writing
from anynorm._kernels.cpu.kernels.task import Variant
from anynorm._kernels.cpu.kernels.values import Arrays, TaskValues, load_task, word
from anynorm._kernels.cpu.language.arithmetic import is_false, larger, magnitude, smaller, where
from anynorm._kernels.cpu.language.dtypes import CHUNK, FINISHED, FLOAT32, FLOAT64, GROUP, Number
from anynorm._kernels.cpu.language.flow import cases, cell, loop, when
from anynorm._kernels.cpu.language.memory import peek, real, store_real

# Short rows go in groups, which share the latency of their roots and divisions, and stay in the first cache between
# reduce and apply. 64 features of float32: 0.44 ns an element one by one, 0.27 in groups of 32 (EPYC 9005, one core).
_MOST_NBYTES = 8 << 10
_FEW_ROWS = 4  # below which it does not pay to widen parameters of 16 bits beforehand
# To fetch what will be read next gains where it comes from afar, and elsewhere takes room in the first cache: rms_norm
# of float32 without and with it, ns an element, 2 MB 0.29 and 0.34, 8 MB 0.58 and 0.49, 12 MB 0.81, 0.56 (EPYC 7003).
_LEAST_FETCHED_NBYTES = 4 << 20


class _Row:
    """What `reduce` asks of one row."""

    zero = 0.0

    def __init__(self, task: TaskValues, row: int) -> None:
        self.task, self.row = task, row_of(task, row)

    def first(self) -> Number:
        return peek(self.row.x, self.task.dtype, self.row.residual)

    def mean_of_first(self) -> Number:
        return mean_of_first(self.task, self.row, self.task.statistics_dtype)

    def sum_up(self, shift: Number | None) -> tuple[Number, Number]:
        sums, squares = cell(0.0), cell(0.0)
        for start, count in chunks_of(self.task):
            more, more_squares = sum_chunk(self.task, gather(self.task, self.row, start, count), count, shift)
            sums[...] = sums + more
            squares[...] = squares + more_squares
        return sums, squares

    def moved(self, shift: Number, to: Number, is_far: bool) -> tuple[Number, bool]:
        return rounded(self.task, to), is_false(is_far)  # the shift is not used again unless it is far


# In what follows ``offset`` is how far in scratch the numbers of a row lie from those of the first row of its group.


def reduce_row(task: TaskValues, row: int, offset: int) -> None:
    """Leave the shift and the sums of a row in scratch."""
    reduce(task, _Row(task, row), offset)


def take_given(task: TaskValues, row: int, offset: int) -> None:
    """Put what step 2 has made of given moments into scratch."""
    at = numbers_address(task, row, FINISHED)
    for i, numbers in enumerate((task.scratch.shifts, task.scratch.factors, task.scratch.constants)):
        store_real(numbers + offset, real(at + 8 * i))


def count_safe(task: TaskValues, first: int, count: int) -> int:
    """How many rows there are before the first on which float32 would leave its range."""
    if task.compute_dtype is FLOAT64:
        return count
    scratch, safe, ended = task.scratch, cell(0), cell(False)
    for k in loop(0, count, 1, ended):
        squares, factor, constant = (
            real(numbers + 8 * k) for numbers in (scratch.squares, scratch.factors, scratch.constants)
        )
        size = magnitude(factor)
        near_one = (size > 2.0**-60) & (size < 2.0**60)
        if task.splits_factors:
            near_one = (near_one & (magnitude(constant) < 2.0**20)) | (factor == 0.0)
            safe_row = cell(where(squares < math.inf, near_one, True))  # rows that hold NaN or Inf come out as NaN
        else:
            safe_row = cell(near_one & (squares > 2.0**-80) & (squares < 2.0**100))
            for _ in when(squares == 0.0):
                safe_row[...] = _flatten(task, first + k, 8 * k)
        ended[...] = is_false(safe_row)
        safe[...] = where(safe_row, k + 1, safe)
    return safe


def is_flat(task: TaskValues, row: Arrays, shift: Number) -> bool:
    """Whether a row has no deviations at all, rather than such as have squares of 0."""
    flat = cell(True)
    for start, count in chunks_of(task):
        flat[...] = flat & is_flat_chunk(task, gather(task, row, start, count), count, shift)
    return flat


def _flatten(task: TaskValues, row: int, offset: int) -> bool:
    """Whether a row is flat; it becomes one of zeros then."""
    flat = is_flat(task, row_of(task, row), real(task.scratch.shifts + offset))
    for numbers in (task.scratch.factors, task.scratch.constants):
        store_real(numbers + offset, where(flat, 0.0, real(numbers + offset)))
    return flat


def _normalize_group(task: TaskValues, first: int, count: int, given: bool) -> int:
    """Normalize up to GROUP rows; return how many, which is less where one is not safe for float32."""
    for k in loop(0, count, 1):
        (take_given if given else reduce_row)(task, first + k, 8 * k)
    if not given:
        find_factors(task, count)
        count = count_safe(task, first, count)
    for direct in cases(task.direct):
        # At once where nothing has to be widened or gathered: each chunk begins and ends within a cache line.
        step = task.features if direct else where(task.widened, CHUNK, task.features)
        step = where(is_gathered(task), CHUNK, step)
        for start, length in chunks_of(task, step):
            weight, bias = task.scratch.weights, task.scratch.biases
            if direct:
                weight, bias = (address + start * task.itemsize for address in (task.weight, task.bias))
            else:
                for _ in when(task.widened & (length != task.features)):
                    widen_parameters(task, start, length, task.weight_offset)
            weight, bias = where(task.weight == 0, 0, weight), where(task.bias == 0, 0, bias)
            for k in loop(0, count, 1):
                _apply_row(task, first + k, count, start, length, direct, weight, bias, 8 * k)
    return count


def _apply_row(
    task: TaskValues, row: int, behind: int, start: int, count: int, direct: bool, weight: int, bias: int, offset: int
) -> None:
    """Apply a chunk of a row, and fetch that of the row so many behind it."""
    addresses, scratch = row_of(task, row), task.scratch
    chunk = gather(task, addresses, start, count)
    away = row_address(task, X, row + behind) - addresses.x
    ahead = where(is_gathered(task), 0, where(task.fetching, away, 0))
    factors = [real(numbers + offset) for numbers in (scratch.shifts, scratch.factors, scratch.constants)]
    dtype = task.dtype if direct else task.compute_dtype
    apply_chunk(task, chunk, larger(count, task.lanes), factors, dtype, weight, bias, ahead)
    scatter(task, addresses, start, count)


def normalize_all(task: TaskValues, first: int, last: int, given: bool = False) -> int:
    """Normalize rows in groups, by given factors or by their own; return which is the next, or -1."""
    following, ended = cell(-1), cell(False)
    # Shorter rows are put together in buffers.
    task = task._replace(streaming=task.streaming & (task.features >= task.lanes))
    for _ in when(are_weights_safe(task)):
        widen_short_parameters(task)
        step = larger(1, smaller(GROUP, _MOST_NBYTES // (task.features * task.itemsize)))
        following[...] = first
        with writing(task):
            for start in loop(first, last, step, ended):
                count = smaller(step, last - start)
                done = _normalize_group(task, start, count, given)
                following[...] = start + done
                ended[...] = done < count
    return following


def normalize_rows(variant: Variant, address: int, first: int, last: int) -> int:
    """Normalize rows first to last, or up to one that float32 cannot hold; return which is the next.

    That is -1 where it cannot hold the weights.
    """
    task = load_task(address, variant)
    rows = word(address, "rows")
    # Rows that are taken up again in float64 come as they were, with parameters in their own dtype.
    direct = _pays_to_read_directly(task, rows) if task.compute_dtype is FLOAT32 else False
    fetching = rows * task.features * task.itemsize >= _LEAST_FETCHED_NBYTES
    task = task._replace(direct=direct, widened=where(direct, False, task.widened), fetching=fetching)
    return normalize_all(task, first, last)


def _pays_to_read_directly(task: TaskValues, rows: int) -> bool:
    """Whether parameters are read where they lie: nothing is to be made of them, nor do lanes reach behind them."""
    of_its_dtype = task.weight_offset == 0.0
    for parameter, code in ((task.weight, task.weight_code), (task.bias, task.bias_code)):
        of_its_dtype = of_its_dtype & ((parameter == 0) | (code == task.dtype.code))
    pays = task.dtype is FLOAT32 or (task.features > CHUNK) | (rows < _FEW_ROWS)
    return of_its_dtype & pays & (task.features >= task.lanes)
