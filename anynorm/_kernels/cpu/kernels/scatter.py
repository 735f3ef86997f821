"""Where the rows and the elements of an array lie, and chunks of rows whose elements are scattered.

A layout is int64 numbers: whether elements are scattered, then for the free axes and once more for the normalized ones
how many there are, their lengths, and their strides in bytes for x, the residual, y and the sum with the residual.
Where there is none, it is one row after the other, in each array.
"""

from __future__ import annotations

from anynorm._kernels.cpu.kernels.streaming import further
from anynorm._kernels.cpu.kernels.values import TaskValues
from anynorm._kernels.cpu.language.dtypes import Address, lanes_of
from anynorm._kernels.cpu.language.lanes import cell, copy, integer, larger, loop, size_of, smaller, when, where

X, RESIDUAL, Y, TOTAL = 0, 1, 2, 3


def is_scattered(task: TaskValues) -> bool:
    """Whether the elements of a row lie anywhere but one after the other."""
    return False if task.layout is None else integer(task.layout) != 0


def is_gathered(task: TaskValues) -> bool:
    """Whether chunks are copied into buffers: those of scattered rows, and of rows too short to fill lanes."""
    return (task.features < lanes_of(task.dtype)) | is_scattered(task)


def _free(task: TaskValues) -> int:
    return task.layout + 8


def _normalized(task: TaskValues) -> int:
    return task.layout + 8 * (2 + 5 * integer(task.layout + 8))


def _strides(axes: int, which: int) -> int:
    """Where those of one array begin."""
    return axes + 8 * (1 + (1 + which) * integer(axes))


def axis_stride(task: TaskValues, which: int) -> int:
    """From feature to feature of an array, where there is one normalized axis."""
    return integer(_strides(_normalized(task), which))


def axis_length(task: TaskValues) -> int:
    """Of the last free axis."""
    return integer(_free(task) + 8 * integer(_free(task)))


def _offset(axes: int, strides: int, index: int) -> int:
    """How far from the first element, or row, that of an index lies."""
    offset, left = cell(0), cell(index)
    ndim = integer(axes)
    for number in loop(0, ndim, 1):
        axis = 8 * (ndim - 1 - number)
        length = integer(axes + 8 + axis)
        offset[...] = offset + left % length * integer(strides + axis)
        left[...] = left // length
    return offset


def place(task: TaskValues, which: int, row: int) -> Address:
    """The address of a row of an array."""
    base = (task.x, task.residual, task.y, task.total)[which]
    if base is None:
        return None
    if task.layout is None:
        return base + row * task.features * size_of(task.dtype)
    return base + _offset(_free(task), _strides(_free(task), which), row)


def place_numbers(task: TaskValues, numbers: int, row: int, count: int) -> int:
    """The address of so many float64 numbers that belong to a row; a layout has their strides in place of the sum's."""
    if task.layout is None:
        return numbers + row * count * 8
    return numbers + _offset(_free(task), _strides(_free(task), TOTAL), row)


def _copy(task: TaskValues, which: int, row: int, start: int, count: int, packed: int, gathering: bool) -> None:
    """Copy a chunk between where its elements lie and a buffer."""
    size = size_of(task.dtype)

    def run(element: int, step: int, buffer: int, length: int) -> None:
        for i in loop(0, length, 1):
            if gathering:
                copy(buffer + i * size, element + i * step, task.dtype)
            else:
                copy(element + i * step, buffer + i * size, task.dtype)

    if task.layout is None:
        run(row + start * size, size, packed, count)
        return
    axes, strides = _normalized(task), _strides(_normalized(task), which)
    last = 8 * integer(axes)
    length, step = integer(axes + last), integer(strides + last - 8)
    # As far as the last axis goes, one stride leads from element to element.
    for turn in loop(start // length, (start + count - 1) // length + 1, 1):
        begin, end = larger(start, turn * length), smaller(start + count, (turn + 1) * length)
        run(row + _offset(axes, strides, begin), step, packed + (begin - start) * size, end - begin)


def gather(task: TaskValues, which: int, row: Address, start: int, count: int, packed: int) -> Address:
    """The address of a chunk whose elements lie one after the other: in the row, or copied into a buffer."""
    if row is None:
        return None
    copied = is_gathered(task)
    for _ in when(copied):
        _copy(task, which, row, start, count, packed, True)
    return where(copied, packed, row + start * size_of(task.dtype))


def gather_both(task: TaskValues, x: int, residual: Address, start: int, count: int) -> tuple[int, Address]:
    """A chunk of a row, and of its residual or of the gradient of its result."""
    return (
        gather(task, X, x, start, count, task.scratch.x),
        gather(task, RESIDUAL, residual, start, count, task.scratch.residual),
    )


def target(task: TaskValues, row: Address, start: int, packed: int) -> Address:
    """Where a chunk of a result is to be written: in the row, or into a buffer for `scatter`."""
    return None if row is None else where(is_gathered(task), packed, further(row, start * size_of(task.dtype)))


def scatter(task: TaskValues, which: int, row: Address, start: int, count: int, packed: int) -> None:
    """Copy a chunk of a result from a buffer to where its elements belong, if that is elsewhere."""
    if row is not None:
        for _ in when(is_gathered(task)):
            _copy(task, which, row, start, count, packed, False)
