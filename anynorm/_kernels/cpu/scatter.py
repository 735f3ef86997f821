"""Where the rows and the elements of an array lie, and chunks of rows whose elements are scattered.

A layout is int64 numbers: whether elements are scattered, then for the free axes and once more for the normalized ones
how many there are, their lengths, and their strides in bytes for x, the residual, y and the sum with the residual.
"""

from __future__ import annotations

from anynorm._kernels.cpu.jit import inlined, inner, merged
from anynorm._kernels.cpu.lanes import copy, further, instead, integer, size_of

X, OTHER, Y, ADDED = 0, 1, 2, 3


@merged
def is_scattered(task):
    """Whether the elements of a row lie anywhere but one after the other."""
    return task.layout != 0 and integer(task.layout) != 0


@merged
def _free(task):
    return task.layout + 8


@merged
def _normalized(task):
    return task.layout + 8 * (2 + 5 * integer(task.layout + 8))


@merged
def _strides(axes, which):
    """Where those of one array begin."""
    return axes + 8 * (1 + (1 + which) * integer(axes))


@merged
def axis_stride(task, which):
    """From feature to feature of an array, where there is one normalized axis."""
    return integer(_strides(_normalized(task), which))


@inlined
def axis_length(task):
    """Of the last free axis."""
    return integer(_free(task) + 8 * integer(_free(task)))


@inner
def _offset(axes, strides, index):
    """How far from the first element, or row, that of an index lies."""
    offset = 0
    for axis in range(8 * integer(axes) - 8, -8, -8):
        length = integer(axes + 8 + axis)
        offset += index % length * integer(strides + axis)
        index //= length
    return offset


@merged
def _away(task, which, row):
    return _offset(_free(task), _strides(_free(task), which), row)


@inlined
def place(task, tag, row):
    """The addresses of a row of x and of the residual."""
    if task.layout == 0:
        away = row * task.features * size_of(tag)
        return task.x + away, further(task.other, away)
    return task.x + _away(task, X, row), further(task.other, _away(task, OTHER, row))


@inlined
def place_results(task, tag, row):
    """The addresses of a row of y and of the sum with the residual."""
    if task.layout == 0:
        away = row * task.features * size_of(tag)
        return task.y + away, further(task.added, away)
    return task.y + _away(task, Y, row), further(task.added, _away(task, ADDED, row))


@inner
def _copy_chunk(axes, strides, tag, row, start, count, packed, gathering):
    """Copy a chunk between where its elements lie and a buffer."""
    size, last = size_of(tag), 8 * integer(axes)
    length, step = integer(axes + last), integer(strides + last - 8)
    done = 0
    while done < count:
        # As far as the last axis goes, one stride leads from element to element.
        run = min(count - done, length - (start + done) % length)
        element, target = row + _offset(axes, strides, start + done), packed + done * size
        if gathering:
            for i in range(run):
                copy(target + i * size, element + i * step, tag)
        else:
            for i in range(run):
                copy(element + i * step, target + i * size, tag)
        done += run


@inlined
def gather(task, tag, row, which, start, count, packed):
    """The address of a chunk whose elements lie one after the other: in the row, or copied into a buffer."""
    if is_scattered(task):
        if row is not None:
            _copy_chunk(_normalized(task), _strides(_normalized(task), which), tag, row, start, count, packed, True)
        return instead(row, packed)
    return further(row, start * size_of(tag))


@inlined
def scatter(task, tag, row, which, start, count, packed):
    """Copy a chunk of a result from a buffer to where its elements belong, if that is elsewhere."""
    if row is not None:  # alone, so that Numba leaves out the rest where there is no such array
        if is_scattered(task):
            _copy_chunk(_normalized(task), _strides(_normalized(task), which), tag, row, start, count, packed, False)
