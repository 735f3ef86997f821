"""How an array becomes rows: lengths and strides, for the CPU kernels.

Axes of length 1 are left out, and axes that follow each other in memory are made one, so that most arrays end up with
one free and one normalized axis.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any, NamedTuple

import numpy

from anynorm._check import Call
from anynorm._kernels.axes import Axis, merged
from anynorm._kernels.cpu.language.dtypes import CACHE_LINE_NBYTES, WIDEST_BLOCK

# Bytes of x that a block of neighbouring rows takes: they are to stay in the second cache between reduce and apply.
_BLOCK_NBYTES = 256 << 10
_Y = 2  # among the strides

Array = Any
Strides = tuple[int, ...]  # of x, residual, y and their sum; those of x where there is no such array


class Layout(NamedTuple):
    """What the kernels have to know of arrays that are not simply one row after the other."""

    table: numpy.ndarray  # lengths and strides, as scatter.py reads them
    in_columns: bool  # whether neighbours in memory belong to different rows
    units: int  # rows, or blocks of columns
    streaming: bool  # whether results may be stored past the caches
    neighbours: int = 0  # columns side by side
    block: int = 0  # columns in each block, but for the first and the last one
    head: int = 0  # columns that the first one has more, so that others begin a cache line
    blocks: int = 0  # of neighbours

    def rows_of(self, unit: int) -> range:
        """The rows in a block of columns."""
        first, number = unit // self.blocks * self.neighbours, unit % self.blocks
        start = self.head + number * self.block if number else 0
        end = self.neighbours if number == self.blocks - 1 else self.head + (number + 1) * self.block
        return range(first + start, first + end)

    def row(self, index: int) -> tuple[tuple[int, ...], list[Strides], list[int]]:
        """Of one row: its shape, and for each array its strides and how far into memory it begins."""
        table = self.table.tolist()
        ndim = table[1]
        lengths, normalized = table[2 : 2 + ndim], table[2 + 5 * ndim :]
        offsets = [0] * 4
        for axis in reversed(range(ndim)):
            index, place = divmod(index, lengths[axis])
            for which in range(4):
                offsets[which] += place * table[2 + (1 + which) * ndim + axis]
        ndim = normalized[0]
        strides = [tuple(normalized[1 + (1 + which) * ndim :][:ndim]) for which in range(4)]
        return tuple(normalized[1 : 1 + ndim]), strides, offsets


def lay_out(
    call: Call,
    itemsize: int,
    residual: Array | None,
    y: Array,
    total: Array | None = None,
    *,
    numbers: numpy.ndarray | None = None,
    streaming: bool = False,
    columns: bool = False,
) -> Layout | None:
    """How x and the arrays that go with it become rows; None where it is one after the other in each of them.

    ``numbers`` are float64 numbers of each row, which have x's free axes, and take the place of the total. Rows are
    taken side by side only if ``columns`` allows it.
    """
    memory, x = call.library.memory, call.x
    arrays = (residual, y, total)
    given = (x, *(array for array in arrays if array is not None))
    if call.axes[0] == len(x.shape) - len(call.axes) and all(map(memory.is_contiguous, given)):
        return None
    of_x = memory.strides(x)
    strides = [of_x if array is None else memory.strides(array) for array in arrays]
    if numbers is not None:
        strides[2] = tuple(of_x[axis] if axis in call.axes else numbers.strides[axis] for axis in range(len(of_x)))
    to_line = -memory.address(y) % CACHE_LINE_NBYTES if streaming else 0
    of_axes = tuple(zip(of_x, *strides, strict=True))
    return _planned(tuple(x.shape), of_axes, call.axes, itemsize, to_line, streaming, columns)


# To plan takes several times as long as the kernel does for 768 numbers.
@lru_cache(256)
def _planned(
    shape: tuple[int, ...],
    strides: tuple[Strides, ...],
    axes: tuple[int, ...],
    itemsize: int,
    to_line: int,
    streaming: bool,
    columns: bool,
) -> Layout:
    """Lay out arrays of one shape, from their strides on each axis in bytes; no length is 0.

    ``to_line`` is how many bytes behind the beginning of y a cache line begins.
    """
    free = [Axis(shape[i], strides[i]) for i in range(len(shape)) if i not in axes and shape[i] > 1]
    normalized = [Axis(shape[i], strides[i]) for i in axes if shape[i] > 1]
    # Rows may be taken in any order: that of memory, the axis with the smallest strides last.
    free.sort(key=lambda axis: max(map(abs, axis.strides)), reverse=True)
    free, normalized = merged(free), merged(normalized)
    rows = math.prod(axis.length for axis in free)
    contiguous = not normalized or (len(normalized) == 1 and _is_contiguous(normalized[0], itemsize))
    lanes = CACHE_LINE_NBYTES // itemsize
    side_by_side = len(normalized) == 1 and free and free[-1].length >= lanes
    if contiguous or not side_by_side or not columns or not _is_contiguous(free[-1], itemsize):
        streaming &= contiguous and all(axis.strides[_Y] % itemsize == 0 for axis in free)
        return Layout(_table(not contiguous, free, normalized), False, rows, streaming)
    neighbours = free[-1].length
    # Each feature of a block must begin a cache line of its own.
    streaming &= all(axis.strides[_Y] % CACHE_LINE_NBYTES == 0 for axis in (*free[:-1], *normalized))
    block = _BLOCK_NBYTES // (normalized[0].length * itemsize) // lanes * lanes
    block = max(lanes, min(WIDEST_BLOCK, block))
    head = to_line // itemsize
    # None is narrower than lanes: what is left over goes to the last one.
    blocks = 1 + max(0, neighbours - head - lanes) // block
    units = rows // neighbours * blocks
    return Layout(_table(True, free, normalized), True, units, streaming, neighbours, block, head, blocks)


def _is_contiguous(axis: Axis, itemsize: int) -> bool:
    return all(stride == itemsize for stride in axis.strides)


def _table(scattered: bool, free: list[Axis], normalized: list[Axis]) -> numpy.ndarray:
    table = [int(scattered)]
    for axes in (free, normalized or [Axis(1, (0, 0, 0, 0))]):
        table.append(len(axes))
        table += [axis.length for axis in axes]
        for which in range(4):
            table += [axis.strides[which] for axis in axes]
    found = numpy.asarray(table, dtype=numpy.int64)
    found.flags.writeable = False  # calls share it
    return found
