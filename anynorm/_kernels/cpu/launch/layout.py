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
from anynorm._kernels.cpu.language.dtypes import CACHE_LINE_NBYTES, CHUNK, TILE_NBYTES, WIDEST_BLOCK

# Bytes of x that a block of neighbouring rows takes: they are to stay in the second cache between reduce and apply.
# Where strides are powers of two they do not, and wider blocks read more of what lies together: layer_norm over axis 0
# with 128, 256, 512 KB, ns an element: float32 2000 x 1024 0.95, 0.71, 0.60, x 4096 1.71, 1.70, 1.18 (EPYC 9005).
_BLOCK_NBYTES = 512 << 10
_Y = 2  # among the strides
# Shorter rows are taken side by side, if there are so many that it makes up for the plan. layer_norm of 100000 rows one
# by one and side by side, ns an element: float32 x 7 4.1 and 1.3, x 15 2.3 and 1.0, x 16 0.50 and 0.74; float64 x 7 20
# and 2.2, x 8 2.4 and 1.6, x 11 2.5 and 2.7; float16 x 31 4.8 and 0.8, x 32 0.56 and 0.73 (EPYC 9005).
_SHORT_ROW_NBYTES = CACHE_LINE_NBYTES
_LEAST_SHORT_ROWS = 16
# Neighbours that a tile is made for; of fewer most lanes would be empty.
_LEAST_PACKED = 4

Array = Any
Strides = tuple[int, ...]  # of x, residual, y and their sum; those of x where there is no such array


class Layout(NamedTuple):
    """What the kernels have to know of arrays that are not simply one row after the other."""

    table: numpy.ndarray  # lengths and strides, as scatter.py reads them
    in_columns: bool  # whether neighbours in memory belong to different rows
    units: int  # rows, or blocks of columns
    streaming: bool  # whether results may be stored past the caches
    block: int = 0  # columns in each block, but for the first and the last one
    head: int = 0  # columns that the first one has more, so that others begin a cache line
    packed: bool = False  # whether blocks are copied into tiles, see block.py


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
    tiles: int | None = None,
) -> Layout | None:
    """How x and the arrays that go with it become rows; None where it is one after the other in each of them.

    ``numbers`` are float64 numbers of each row, which have x's free axes, and take the place of the total. Rows are
    taken side by side only if ``columns`` allows it; blocks that are packed fill ``tiles``, as many as arrays are read
    unless told.
    """
    memory, x = call.library.memory, call.x
    features = math.prod([x.shape[axis] for axis in call.axes])
    arrays = (residual, y, total)
    given = (x, *(array for array in arrays if array is not None))
    short = columns and are_short(features, math.prod(x.shape) // features, itemsize)
    if not short and call.axes[0] == len(x.shape) - len(call.axes) and all(map(memory.is_contiguous, given)):
        return None
    of_x = memory.strides(x)
    strides = [of_x if array is None else memory.strides(array) for array in arrays]
    if numbers is not None:
        strides[2] = tuple(of_x[axis] if axis in call.axes else numbers.strides[axis] for axis in range(len(of_x)))
    to_line = -memory.address(y) % CACHE_LINE_NBYTES if streaming else 0
    of_axes = tuple(zip(of_x, *strides, strict=True))
    side_by_side = 0 if not columns else tiles or (1 if residual is None else 2)
    return _planned(tuple(x.shape), of_axes, call.axes, itemsize, to_line, streaming, side_by_side, numbers is not None)


# To plan takes several times as long as the kernel does for 768 numbers.
@lru_cache(256)
def _planned(
    shape: tuple[int, ...],
    strides: tuple[Strides, ...],
    axes: tuple[int, ...],
    itemsize: int,
    to_line: int,
    streaming: bool,
    tiles: int,
    has_numbers: bool,
) -> Layout:
    """Lay out arrays of one shape, from their strides on each axis in bytes; no length is 0.

    ``to_line`` is how many bytes behind the beginning of y a cache line begins, and ``tiles`` how many arrays are read
    where rows may be taken side by side, or 0.
    """
    arrays = 3 if tiles and has_numbers else 4  # those of which elements are read and written
    free = [Axis(shape[i], strides[i]) for i in range(len(shape)) if i not in axes and shape[i] > 1]
    normalized = [Axis(shape[i], strides[i]) for i in axes if shape[i] > 1]
    # Rows may be taken in any order: that of memory, the axis with the smallest strides last.
    free.sort(key=lambda axis: _distance(axis, arrays), reverse=True)
    free, normalized = merged(free), merged(normalized)
    rows = math.prod(axis.length for axis in free)
    lanes = CACHE_LINE_NBYTES // itemsize
    contiguous = not normalized or (len(normalized) == 1 and _is_contiguous(normalized[0], itemsize, arrays))
    in_columns = tiles and not contiguous and len(normalized) == 1 and free and free[-1].length >= lanes
    if not in_columns or not _is_contiguous(free[-1], itemsize, arrays):
        block = 0
        # Of two or three neighbours most lanes would be empty; along the longest axis there may be more.
        for order in (free, sorted(free, key=lambda axis: axis.length)) if tiles and free else ():
            if not block:
                block = _packed_block(order, normalized, contiguous, itemsize, tiles, arrays)
                free = order if block else free
        table = _table(not contiguous, free, normalized)
        if block:
            units = rows // free[-1].length * -(-free[-1].length // block)
            return Layout(table, True, units, False, block, packed=True)
        streaming &= contiguous and all(axis.strides[_Y] % itemsize == 0 for axis in free)
        return Layout(table, False, rows, streaming)
    neighbours = free[-1].length
    # Each feature of a block must begin a cache line of its own.
    streaming &= all(axis.strides[_Y] % CACHE_LINE_NBYTES == 0 for axis in (*free[:-1], *normalized))
    block = _BLOCK_NBYTES // (normalized[0].length * itemsize) // lanes * lanes
    block = max(lanes, min(WIDEST_BLOCK, block))
    head = to_line // itemsize
    # None is narrower than lanes: what is left over goes to the last one.
    blocks = 1 + max(0, neighbours - head - lanes) // block
    units = rows // neighbours * blocks
    return Layout(_table(True, free, normalized), True, units, streaming, block, head)


def are_short(features: Any, rows: Any, itemsize: Any) -> Any:
    """Whether rows that lie one after the other are so short, and so many, that they are taken side by side.

    It is asked in Python, and while the fast path is compiled.
    """
    return (features * itemsize < _SHORT_ROW_NBYTES) & (rows >= _LEAST_SHORT_ROWS)


def _packed_block(
    free: list[Axis], normalized: list[Axis], contiguous: bool, itemsize: int, tiles: int, arrays: int
) -> int:
    """How many rows are packed into a tile; 0 where they are better taken one by one, or two do not fit."""
    lanes, features = CACHE_LINE_NBYTES // itemsize, math.prod(axis.length for axis in normalized)
    apart = min((_distance(axis, arrays) for axis in normalized), default=0)
    are_nearer = not contiguous and _distance(free[-1], arrays) <= apart  # than the features of a row
    if free[-1].length < _LEAST_PACKED or not (are_nearer or features * itemsize < _SHORT_ROW_NBYTES):
        return 0
    # A chunk at a time; of a sum all that it is made of.
    held = features if tiles > 1 else min(features, CHUNK + lanes)
    return min(WIDEST_BLOCK, TILE_NBYTES // tiles // (held * itemsize) // lanes * lanes)


def _distance(axis: Axis, arrays: int) -> int:
    return max(map(abs, axis.strides[:arrays]))


def _is_contiguous(axis: Axis, itemsize: int, arrays: int) -> bool:
    return all(stride == itemsize for stride in axis.strides[:arrays])


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
