"""Where the rows and the elements of an array lie, and chunks of rows whose elements are scattered.

A layout is int64 numbers: whether elements are scattered, then for the free axes and once more for the normalized ones
how many there are, their lengths, and their strides in bytes for x, the residual, y and the sum with the residual.
Where there is none, it is one row after the other, in each array.

Scattered elements are copied into buffers, one after the other; or, of rows that are taken side by side, into a tile:
feature after feature, and of each the rows one after the other.
"""

from __future__ import annotations

from collections.abc import Iterator

from anynorm._kernels.cpu.kernels.values import Arrays, TaskValues
from anynorm._kernels.cpu.language.arithmetic import larger, smaller, where
from anynorm._kernels.cpu.language.dtypes import FLOAT64, Address
from anynorm._kernels.cpu.language.flow import cell, loop, when
from anynorm._kernels.cpu.language.memory import copy, integer, load, store_real

X, RESIDUAL, Y, TOTAL = 0, 1, 2, 3
_ROWS = 8  # that are copied into a tile at a time; fewer would take longer, and more lie in too many lines of a cache


def is_gathered(task: TaskValues) -> bool:
    """Whether chunks are copied into buffers: those of scattered rows, and of rows too short to fill lanes."""
    is_short = task.features < task.lanes
    return is_short if task.layout is None else is_short | (integer(task.layout) != 0)


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


def neighbour_stride(task: TaskValues, which: int) -> int:
    """From row to row of an array along the last free axis."""
    return integer(_strides(_free(task), which) + 8 * (integer(_free(task)) - 1))


def _offset(axes: int, strides: int, index: int) -> int:
    """How far from the first element, or row, that of an index lies."""
    offset, left = cell(0), cell(index)
    ndim = integer(axes)
    for number in loop(0, ndim - 1, 1):
        axis = 8 * (ndim - 1 - number)
        length = integer(axes + 8 + axis)
        offset[...] = offset + left % length * integer(strides + axis)
        left[...] = left // length
    # Most rows lie along one axis, where two divisions for each array would show beside short rows.
    return offset + left * integer(strides)


def row_address(task: TaskValues, which: int, row: int) -> Address:
    """The address of a row of an array."""
    base = task.arrays[which]
    if base is None:
        return None
    if task.layout is None:
        return base + row * task.features * task.itemsize
    return base + _offset(_free(task), _strides(_free(task), which), row)


def row_of(task: TaskValues, row: int) -> Arrays:
    """The addresses of a row, in all arrays."""
    return Arrays(*(row_address(task, which, row) for which in (X, RESIDUAL, Y, TOTAL)))


def numbers_address(task: TaskValues, row: int, count: int) -> int:
    """The address of the numbers of a row, so many; a layout has their strides in place of the sum's."""
    if task.layout is None:
        return task.numbers + row * count * 8
    return task.numbers + _offset(_free(task), _strides(_free(task), TOTAL), row)


def _runs(task: TaskValues, which: int, row: int, start: int, count: int) -> Iterator[tuple[int, int, int, int]]:
    """Parts of a chunk through which one stride leads: the first element, the stride, how far in the chunk, the length.

    ``row`` is the address of the row.
    """
    if task.layout is None:
        yield row + start * task.itemsize, task.itemsize, 0, count
        return
    axes, strides = _normalized(task), _strides(_normalized(task), which)
    last = 8 * integer(axes)
    length, step = integer(axes + last), integer(strides + last - 8)
    # As far as the last axis goes, one stride leads from element to element.
    for turn in loop(start // length, (start + count - 1) // length + 1, 1):
        begin, end = larger(start, turn * length), smaller(start + count, (turn + 1) * length)
        yield row + _offset(axes, strides, begin), step, begin - start, end - begin


def _copy(task: TaskValues, which: int, row: int, start: int, count: int, gathering: bool) -> None:
    """Copy a chunk between where its elements lie and the buffer of its array."""
    size, packed = task.itemsize, task.scratch[which]
    for element, step, at, length in _runs(task, which, row, start, count):
        buffer = packed + at * size
        # What is dense is copied a cache line at a time.
        dense = where(step == size, length - length % task.lanes, 0)
        for first, last, lanes in ((0, dense, task.lanes), (dense, length, 1)):
            for i in loop(first, last, lanes):
                ends = buffer + i * size, element + i * step
                target, source = ends if gathering else ends[::-1]
                if lanes == 1:
                    copy(target, source, task.dtype)
                else:
                    store_real(target, load(source, FLOAT64))


def copy_tile(
    task: TaskValues, which: int, row: int, start: int, count: int, rows: int, tile: int, width: int, gathering: bool
) -> None:
    """Copy a chunk of so many neighbouring rows between where their elements lie and a tile.

    ``row`` is the address of the first row, and ``width`` how many bytes lie between the features of the tile.
    """
    size, aside = task.itemsize, neighbour_stride(task, which)
    for element, step, at, length in _runs(task, which, row, start, count):
        for many, first, last in ((_ROWS, 0, rows - rows % _ROWS), (1, rows - rows % _ROWS, rows)):
            for k in loop(first, last, many):
                place, source = tile + at * width + k * size, element + k * aside
                for i in loop(0, length, 1):
                    for j in range(many):
                        ends = place + i * width + j * size, source + i * step + j * aside
                        copy(*(ends if gathering else ends[::-1]), task.dtype)


def gather(task: TaskValues, row: Arrays, start: int, count: int, read: tuple[int, ...] = (X, RESIDUAL)) -> Arrays:
    """A chunk of a row in all arrays, where its elements lie one after the other: in the row, or in buffers.

    Arrays that are ``read`` are copied into those. What is written to the others goes back with `scatter`.
    """
    copied = is_gathered(task)
    for which in read:
        if row[which] is not None:
            for _ in when(copied):
                _copy(task, which, row[which], start, count, True)
    return Arrays(
        *(
            None if address is None else where(copied, packed, address + start * task.itemsize)
            for address, packed in zip(row, task.scratch, strict=False)
        )
    )


def scatter(task: TaskValues, row: Arrays, start: int, count: int, written: tuple[int, ...] = (Y, TOTAL)) -> None:
    """Copy a chunk of results from buffers to where its elements belong, if that is elsewhere."""
    for which in written:
        if row[which] is not None:
            for _ in when(is_gathered(task)):
                _copy(task, which, row[which], start, count, False)
