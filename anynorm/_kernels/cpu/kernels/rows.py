"""Row after row: reduce, find factors and apply, a group of rows at a time.

A row is read twice, from memory for its moments and from a cache for the result. While a group is applied the next one
is reduced, and what is read after that is fetched, so that reading and writing overlap.
"""

from __future__ import annotations

from anynorm._kernels.cpu.kernels.chunks import (
    Beside,
    Sums,
    apply_chunk,
    chunks_of,
    mean_of_first,
)
from anynorm._kernels.cpu.kernels.factors import find_factors
from anynorm._kernels.cpu.kernels.held import count_safe
from anynorm._kernels.cpu.kernels.parameters import (
    are_weights_safe,
    pays_to_read_directly,
    widen_parameters,
    widen_short_parameters,
)
from anynorm._kernels.cpu.kernels.reduce import is_far, reduce
from anynorm._kernels.cpu.kernels.scatter import X, gather, is_gathered, numbers_address, row_address, row_of, scatter
from anynorm._kernels.cpu.kernels.streaming import further, writing
from anynorm._kernels.cpu.kernels.task import Variant
from anynorm._kernels.cpu.kernels.turns import Turns, are_turns_safe, with_turns
from anynorm._kernels.cpu.kernels.values import Arrays, TaskValues, load_task, word
from anynorm._kernels.cpu.language.arithmetic import (
    is_false,
    larger,
    number,
    rounded,
    smaller,
    splat,
    where,
)
from anynorm._kernels.cpu.language.dtypes import CHUNK, FINISHED, FLOAT32, FLOAT64, GROUP, LAYER, Dtype, Number
from anynorm._kernels.cpu.language.flow import cases, cell, loop, when
from anynorm._kernels.cpu.language.memory import call_kernel, peek, real, store_real

# Short rows go in groups, which share the latency of their roots and divisions, and stay in the first cache between
# reduce and apply. 64 features of float32: 0.44 ns an element one by one, 0.27 in groups of 32 (EPYC 9005, one core).
_MOST_NBYTES = 8 << 10
# Longer rows in groups of more than one, for which parameters are widened once and which lie in the second cache. ns an
# element in groups of 8 KB and of these: layer_norm of float32, 64 x 4096, 0.147 and 0.111; of float16, 512 x 2048,
# 0.090 and 0.076; rms_norm of bfloat16, 64 x 4096, with weight + 1 by that with the plain weight 1.98 and 1.03. Not
# where results are streamed: 2048 x 4096 of float32 0.144 and 0.191 (EPYC 9005, one core).
_MOST_LONG_NBYTES = 128 << 10
_LEAST_GROUPS = 8  # the first of which is reduced on its own
# To fetch what will be read next gains where it comes from afar, and elsewhere takes room in the first cache: rms_norm
# of float32 without and with it, ns an element, 2 MB 0.29 and 0.34, 8 MB 0.58 and 0.49, 12 MB 0.81, 0.56 (EPYC 7003).
_LEAST_FETCHED_NBYTES = 4 << 20
# How far behind what is reduced memory is fetched where a row is longer than a group, and otherwise as far as a group
# is long: ns an element for 2, 4 and 8 KB, 4096 x 8192 of float32 0.256, 0.232, 0.255. 16384 x 1024 takes 0.147 by
# groups and 0.178 by 4 KB (EPYC 9005, one core).
_FETCHED_NBYTES = 4 << 10


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
        task, sums, squares = self.task, cell(0.0), cell(0.0)
        near = None if shift is None else splat(shift, task.statistics_dtype, task.lanes)
        for start, count in chunks_of(task):
            chunk = Sums(task, near)
            chunk.add_chunk(gather(task, self.row, start, count), 0, count)
            more, more_squares = chunk.total()
            sums[...] = sums + more
            squares[...] = squares + more_squares
        return sums, squares

    def moved(self, shift: Number, to: Number, is_far: bool) -> tuple[Number, bool]:
        return rounded(to, self.task.dtype), is_false(is_far)  # the shift is not used again unless it is far


# In what follows ``offset`` is how far in scratch the numbers of a row lie from those of the first row of its group.


def reduce_row(task: TaskValues, row: int, offset: int) -> None:
    """Leave the shift and the sums of a row in scratch."""
    reduce(task, _Row(task, row), offset)


def take_given(task: TaskValues, row: int, offset: int) -> None:
    """Put what step 2 has made of given moments into scratch."""
    at = numbers_address(task, row, FINISHED)
    for i, numbers in enumerate((task.scratch.shifts, task.scratch.factors, task.scratch.constants)):
        store_real(numbers + offset, real(at + 8 * i))


def _reduce_group(task: TaskValues, first: int, count: int, is_reduced: bool) -> None:
    """Leave shifts and sums of a group in scratch, where it was not reduced while the one before was applied."""
    scratch, features = task.scratch, number(task.features)
    for k in loop(0, count, 1):
        is_missing, offset = is_false(is_reduced), 8 * k
        if task.rule == LAYER:
            store_real(scratch.shifts + offset, real(scratch.following + offset))
            if task.statistics_dtype is not FLOAT64:
                sums, squares = real(scratch.sums + offset), real(scratch.squares + offset)
                is_missing = is_missing | is_far(sums, squares, sums / features)
        for _ in when(is_missing):
            reduce_row(task, first + k, offset)


def _begin_following(task: TaskValues, first: int, count: int) -> None:
    """Prepare to reduce a group while another one is applied."""
    for k in loop(0, count, 1):
        row, offset = _Row(task, first + k), 8 * k
        if task.rule == LAYER:
            shift = row.first() if task.statistics_dtype is FLOAT64 else row.mean_of_first()
            store_real(task.scratch.following + offset, shift)
        store_real(task.scratch.sums + offset, 0.0)
        store_real(task.scratch.squares + offset, 0.0)


def _normalize_given(task: TaskValues, first: int, count: int) -> None:
    """Normalize up to GROUP rows by given factors."""
    for k in loop(0, count, 1):
        take_given(task, first + k, 8 * k)
    _apply_rows(task, first, 0, count, first + count, None)


def _normalize_group(task: TaskValues, first: int, count: int, following: int, is_reduced: bool) -> tuple[int, bool]:
    """Normalize up to GROUP rows, and reduce so many ``following`` ones in the same loop.

    Return how many of them are done, which is less where float32 cannot hold one and no other kernel takes it; and
    whether those that follow are reduced, which they are not where it cannot hold all.
    """
    _reduce_group(task, first, count, is_reduced)
    find_factors(task, count)
    safe, done, ended = cell(count_safe(task, first, count)), cell(0), cell(False)
    is_whole, by = cell(safe == count), task.float64_kernel
    following = where(is_whole, following, 0)  # whose sums take the place of those that tell what is safe
    _begin_following(task, first + count, following)
    for _ in loop(0, count, 1, ended):
        _apply_rows(task, first, done, safe, first + count, following)
        done[...] = safe
        for _ in when((safe < count) & (by != 0)):
            row = first + safe
            call_kernel(by, task.address, row, row + 1)
            done[...] = safe + 1
            safe[...] = count_safe(task, first, count, done)
        ended[...] = (done >= count) | (by == 0)
    return done, is_whole


def _apply_rows(task: TaskValues, first: int, begin: int, end: int, behind: int, following: int | None) -> None:
    """Apply some rows of a group, and reduce so many that follow, from the row ``behind`` on; None: factors are given.

    ``first`` is the first row of the group.
    """
    is_same = task.dtype is task.compute_dtype
    for direct in (task.direct,) if is_same else cases(task.direct):
        parameter_dtype = task.compute_dtype if is_same or not direct else task.dtype
        # At once where nothing has to be widened or gathered: each chunk begins and ends within a cache line.
        in_chunks = is_gathered(task) | task.widened
        step = where(in_chunks if following is None else in_chunks | (following != 0), CHUNK, task.features)
        for start, length in chunks_of(task, step):
            for _ in when(task.widened & (length != task.features)):
                widen_parameters(task, start, length, task.weight_offset)
            weight, bias = (
                where(one == 0, 0, where(direct, one + start * parameter_dtype.itemsize, widened))
                for one, widened in ((task.weight, task.scratch.weights), (task.bias, task.scratch.biases))
            )
            turns = Turns(task, first + begin) if task.takes_turns else None
            for k in loop(begin, end, 1):
                beside = _beside(task, behind + k, start, 8 * k, False if following is None else k < following)
                of_weight, of_bias = turns.parameters(start, parameter_dtype) if turns else (weight, bias)
                fetched = behind + k + (0 if following is None else following)
                _apply_row(task, first + k, start, length, 8 * k, parameter_dtype, of_weight, of_bias, fetched, beside)
                if turns:
                    turns.go_on()


def _beside(task: TaskValues, row: int, start: int, offset: int, is_there: bool) -> Beside:
    """A chunk of a row that is reduced while one before it is applied, if it is there."""
    scratch, addresses = task.scratch, row_of(task, row)
    chunk = Arrays(*(further(one, start * task.itemsize) for one in addresses))
    return Beside(is_there, chunk, scratch.following + offset, scratch.sums + offset, scratch.squares + offset)


def _apply_row(
    task: TaskValues, row: int, start: int, count: int, offset: int,
    parameter_dtype: Dtype, weight: int, bias: int, fetched: int, beside: Beside,
) -> None:  # fmt: skip
    """Apply a chunk of a row and reduce the one beside it, while that of another row is fetched."""
    addresses, scratch = row_of(task, row), task.scratch
    chunk = gather(task, addresses, start, count)
    away = row_address(task, X, fetched) - addresses.x
    is_long = beside.is_there & (task.features * task.itemsize > _MOST_NBYTES)
    away = where(is_long, beside.chunk.x + _FETCHED_NBYTES - chunk.x, away)
    ahead = where(is_gathered(task), 0, where(task.fetching, away, 0))
    factors = [real(numbers + offset) for numbers in (scratch.shifts, scratch.factors, scratch.constants)]
    apply_chunk(task, chunk, larger(count, task.lanes), factors, parameter_dtype, weight, bias, ahead, beside)
    scatter(task, addresses, start, count)


def _rows_of_group(task: TaskValues, rows: int) -> int:
    """How many of so many rows go through each step together."""
    nbytes, are_near = task.features * task.itemsize, is_false(is_gathered(task))  # others fill more of a cache
    step, most = _MOST_NBYTES // nbytes, _MOST_LONG_NBYTES // nbytes
    if task.dtype is FLOAT32:
        is_long = (nbytes > _MOST_NBYTES) & is_false(task.streaming) & are_near
        step = where(is_long, smaller(most, rows // _LEAST_GROUPS), step)
    step = where(task.widened & (task.features >= CHUNK + task.lanes) & are_near, most, step)
    return larger(1, smaller(GROUP, step))


def normalize_all(task: TaskValues, first: int, last: int, given: bool = False) -> int:
    """Normalize rows in groups, by given factors or by their own; return which is the next, or -1."""
    following, ended, is_reduced = cell(-1), cell(False), cell(False)
    # What is gathered is written to a buffer first, also where blocks of columns are streamed and one is taken up here.
    task = task._replace(streaming=task.streaming & is_false(is_gathered(task)))
    for _ in when(are_turns_safe(task) if task.takes_turns else are_weights_safe(task)):
        widen_short_parameters(task)
        step = _rows_of_group(task, last - first)
        # A group is reduced while another one is applied, so that sums do not wait for each other, nor reading for
        # writing. layer_norm of float32 without that and with it, ns an element: 64 x 768 0.139 and 0.103, 16384 x 1024
        # 0.205 and 0.150, 4096 x 8192 0.33 and 0.23 (EPYC 9005, one core).
        most_ahead = 0 if given else where(is_gathered(task), 0, step)
        following[...] = first
        with writing(task):
            for start in loop(first, last, step, ended):
                count = smaller(step, last - start)
                if given:
                    _normalize_given(task, start, count)
                    following[...] = start + count
                    continue
                ahead = smaller(most_ahead, last - start - count)
                done, is_whole = _normalize_group(task, start, count, ahead, is_reduced)
                is_reduced[...] = is_whole & (most_ahead != 0)
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
    nbytes = task.features * task.itemsize
    # Chunks of several rows in turn would leave parts of cache lines, which cannot be streamed.
    is_alone = (nbytes > _MOST_NBYTES) | (task.streaming & (task.features > CHUNK))
    direct = pays_to_read_directly(task, rows, is_alone) if task.compute_dtype is FLOAT32 else False
    fetching = rows * nbytes >= _LEAST_FETCHED_NBYTES
    task = task._replace(direct=direct, widened=where(direct, False, task.widened), fetching=fetching)
    if task.takes_turns:
        task = with_turns(task, address)
    return normalize_all(task, first, last)
