"""The derivative, row after row.

A row is read from memory for its moments and the two means at once, and from a cache for dx.
"""

from __future__ import annotations

from typing import NamedTuple

from anynorm._kernels.cpu.kernels.chunks import chunks_of
from anynorm._kernels.cpu.kernels.derivative.extreme import differentiate_row
from anynorm._kernels.cpu.kernels.derivative.portions import load_derivative, portions_of
from anynorm._kernels.cpu.kernels.derivative.row_steps import differentiate_chunk, find_shift, prepare_row, reduce_row
from anynorm._kernels.cpu.kernels.derivative.steps import GROUP_NBYTES, Columns, Group
from anynorm._kernels.cpu.kernels.factors import find_factors
from anynorm._kernels.cpu.kernels.rows import take_given
from anynorm._kernels.cpu.kernels.scatter import RESIDUAL, TOTAL, X, Y, gather, is_gathered, row_of, scatter
from anynorm._kernels.cpu.kernels.task import Variant
from anynorm._kernels.cpu.kernels.values import TaskValues, word
from anynorm._kernels.cpu.language.arithmetic import is_false, larger, smaller, where
from anynorm._kernels.cpu.language.dtypes import CACHE_LINE_NBYTES, CHUNK, FLOAT32, FLOAT64, OF_ROW
from anynorm._kernels.cpu.language.flow import cases, cell, loop, when
from anynorm._kernels.cpu.language.memory import buffer, fence, integer, store_integer

# Bytes of x and dy in a group, which are read for dx right after they were for the means: the sums of a column stay in
# registers from row to row.
_MOST_NBYTES = 64 << 10
# Rows at most, for in float32 no more of them are to be added up; and at least, for each group reads and writes the
# sums, which are of float64: layer_norm of float32 2048 x 8192 takes 0.54 ns an element row by row, 0.44 in twos
# (EPYC 9005, one core).
_MOST_ROWS, _LEAST_ROWS = 8, 2


class Memory(NamedTuple):
    """What a group of rows needs."""

    group: Group
    left: int  # how many rows are out of range, and their numbers

    @classmethod
    def new(cls) -> Memory:
        """It is on the stack."""
        return cls(Group.at(buffer(GROUP_NBYTES)), buffer((_MOST_ROWS + 1) * 8))


class Parameters:
    """Where the weights of rows lie, and the sums that become the gradients: those of all rows."""

    def __init__(self, columns: Columns) -> None:
        self._columns = columns

    def of(self, task: TaskValues, row: int) -> tuple[TaskValues, Columns]:
        """The task with the weights of a row, and what its gradients are added to."""
        return task, self._columns

    def widen(self) -> None:
        """Put the weights where they are read in float64."""


class _OfRow(Parameters):
    """Each row has its own, and writes its gradients."""

    def of(self, task: TaskValues, row: int) -> tuple[TaskValues, Columns]:
        place = row * task.features * task.itemsize
        columns = Columns(*(where(one == 0, 0, one + place) for one in self._columns))
        return task._replace(weight=task.weight + place), columns


def _differentiate_group(
    task: TaskValues, group: Group, parameters: Parameters, left: int, rows: int, given: bool
) -> None:
    """The derivative at up to _MOST_ROWS rows, whose numbers are in the group.

    But not at those that are out of range, which are noted in ``left``.
    """
    # In a loop of their own, for the sums of a row would wait for the division in its shift.
    for k in loop(0, 8 * rows, 8):
        (take_given if given else find_shift)(task, integer(group.row + k), k)
    for k in loop(0, 8 * rows, 8):
        row = integer(group.row + k)
        reduce_row(parameters.of(task, row)[0], group, row, k)
    if not given:
        find_factors(task._replace(compute_dtype=FLOAT64), rows)
    taken = cell(0)
    for k in loop(0, rows, 1):
        row = integer(group.row + 8 * k)
        for is_safe in cases(prepare_row(parameters.of(task, row)[0], group, row, 8 * k, 8 * taken, given)):
            if is_safe:
                store_integer(group.row + 8 * taken, row)
                taken[...] = taken + 1
            else:
                count = integer(left) + 1
                store_integer(left, count)
                store_integer(left + 8 * count, row)
    for _ in when(taken != 0):
        _differentiate_taken(task, group, parameters, taken, given)


def _differentiate_taken(task: TaskValues, group: Group, parameters: Parameters, taken: int, given: bool) -> None:
    """The derivative at so many rows, whose numbers are in the group."""
    for start, count in chunks_of(task, where(is_gathered(task), CHUNK, task.features)):
        streaming = cell(task.streaming)
        for k in loop(0, 8 * taken, 8):
            chunk = gather(task, row_of(task, integer(group.row + k)), start, count, (X, RESIDUAL, TOTAL))
            for addresses, address in zip((group.x, group.dy, group.dx, group.dtotal), chunk, strict=True):
                if address is not None:
                    store_integer(addresses + k, address)
            streaming[...] = streaming & ((chunk.y - integer(group.dx)) % CACHE_LINE_NBYTES == 0)
        own = task.variant.parameters == OF_ROW
        for k in loop(0, taken, 1) if own else (0,):
            of_rows, columns = parameters.of(task._replace(streaming=streaming), integer(group.row + 8 * k))
            some = group.from_row(k) if own else group
            differentiate_chunk(of_rows, some, columns, 1 if own else taken, start, count, given)
        # Elements are gathered one row at a time.
        for _ in when(is_gathered(task)):
            scatter(task, row_of(task, integer(group.row)), start, count, (Y,))


def rows_at_once(task: TaskValues) -> int:
    """How many rows make a group."""
    at_once = larger(_LEAST_ROWS, smaller(_MOST_ROWS, _MOST_NBYTES // (2 * task.features * task.itemsize)))
    found: int = where(is_gathered(task), 1, at_once)
    return found


def differentiate_some(
    task: TaskValues, memory: Memory, parameters: Parameters, rows: int, given: bool = False
) -> None:
    """The derivative at up to _MOST_ROWS rows, whose numbers are in the group."""
    group, left = memory
    store_integer(left, 0)
    # Given factors may be any, and float64 has room for those of float32.
    dtype = FLOAT64 if task.dtype is FLOAT64 or given else FLOAT32
    _differentiate_group(task._replace(compute_dtype=dtype), group, parameters, left, rows, given)
    for i in loop(1, integer(left) + 1, 1):
        row = integer(left + 8 * i)
        if task.dtype is FLOAT64:
            of_row, columns = parameters.of(task, row)
            differentiate_row(of_row, row, columns, given)
        elif dtype is FLOAT32:
            parameters.widen()
            store_integer(group.row, row)
            _differentiate_group(task._replace(streaming=False), group, parameters, 0, 1, False)


def differentiate_rows(variant: Variant, address: int, first: int, last: int) -> int:
    """Find the derivative at portions of all rows, first to last; return the last.

    Portion -1 is the widening of the weight, which comes before all others, and the one behind all rows the adding up
    of the gradients of the parameters, which comes last. Gradients that are not wanted are at 0. ``work`` holds float64
    numbers: the weights, and as much memory again for them in float32; and for each portion, where a parameter's
    gradient is wanted, the sums of dy * x_hat and of dy for each feature. ``numbers`` holds what step 2 has made of
    given moments, FINISHED float64 numbers a row: a shift, a factor, a constant and a unit, 0 where there is none. The
    first two become the sums of g and of g * x_hat. Where each row has one number of weight and bias, their gradients
    go there, two float64 numbers a row; where it has its own, these are read and their gradients written as x is.
    """
    task, memory = load_derivative(variant, address, first), Memory.new()
    # Rows of narrower dtypes that are computed in float64 are few, and take no whole lines at a time.
    streaming = task.streaming & is_false(is_gathered(task))
    task = task._replace(streaming=False if variant.has_numbers and task.dtype is not FLOAT64 else streaming)
    for sums, begin, end in portions_of(task, address, first, last, word(address, "rows")):
        at_once, parameters = rows_at_once(task), Parameters(Columns.at(sums, task.features))
        if variant.parameters == OF_ROW:
            parameters = _OfRow(Columns(word(address, "dweight"), word(address, "dbias")))
        for start in loop(begin, end, at_once):
            count = smaller(at_once, end - start)
            for k in loop(0, count, 1):
                store_integer(memory.group.row + 8 * k, start + k)
            differentiate_some(task, memory, parameters, count, variant.has_numbers)
    for _ in when(task.streaming):
        fence()
    return last
