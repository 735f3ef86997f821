"""Going along a chunk: lanes are read, something is made of them, and they are written, past the caches if wanted.

Cache lines are streamed whole. Where a row ends within a line and the next one begins there, both parts are put into a
buffer, and the line is streamed from that. To write a part of a line past the caches, or to read the line for it, would
hold up all that is written behind it: rms_norm of float32 16384 x 1024 into an array of NumPy's, which begins 16 bytes
behind a line, 0.85 ns an element with such stores and 0.5 without (EPYC 7003, one core).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from anynorm._kernels.cpu.kernels.values import Arrays, TaskValues
from anynorm._kernels.cpu.language.arithmetic import is_false, where
from anynorm._kernels.cpu.language.dtypes import CACHE_LINE_NBYTES, Address, Dtype, Lanes
from anynorm._kernels.cpu.language.flow import cases, loop, when
from anynorm._kernels.cpu.language.memory import (
    copy,
    fence,
    integer,
    load,
    prefetch,
    store,
    store_integer,
    stream,
    stream_line,
)

# What is known of the line that is open from row to row: where the last row ended, if that is within a line, and 0 if
# not; which of the two buffers holds its end; the buffers, with a line before and behind what becomes one.
_END, _WHICH, _BUFFERS = 0, 8, CACHE_LINE_NBYTES
_BUFFER_NBYTES = 3 * CACHE_LINE_NBYTES


def further(address: Address, nbytes: int) -> Address:
    """An address so many bytes on; None where there is none."""
    return None if address is None else address + nbytes


def read(task: TaskValues, chunk: Arrays, i: int, compute_dtype: Dtype, by_parity: bool = False) -> Lanes:
    """Elements of a chunk from the i-th on, with the residual's added to them."""
    offset = i * task.itemsize
    residual = further(chunk.residual, offset)
    return load(chunk.x + offset, task.dtype, compute_dtype, residual=residual, by_parity=by_parity)


def map_chunk(
    task: TaskValues, chunk: Arrays, count: int, ahead: int, streaming: bool, compute: Callable[[int, Lanes], Lanes],
    has_more: bool = False, do_more: Callable[[int], None] | None = None,
) -> int:  # fmt: skip
    """Write ``compute(i, x[i:])`` to y[i:], lanes at a time, and x with the residual added to total.

    ``count`` is that of lanes or more, and ``ahead`` how far behind x lies what will be read next. Where it
    has more to do, the same loop does that with each multiple of the lanes below the one that is returned.
    """
    lanes, size = task.lanes, task.itemsize

    def make(i: int, value: Lanes) -> Lanes:
        if chunk.total is not None:
            store(chunk.total + i * size, task.dtype, value)
        return compute(i, value)

    # In place the last elements, which go with some before them, have to be read before those are written.
    rest = count - lanes
    last = read(task, chunk, rest, task.compute_dtype)
    head = 0
    if streaming:
        head = _begin(task, chunk.y, lambda: make(0, read(task, chunk, 0, task.compute_dtype)))
    for with_more in cases(has_more):
        for i in loop(head, rest + 1, lanes):
            for offset in range(0, lanes * size, CACHE_LINE_NBYTES):
                prefetch(chunk.x + ahead + i * size + offset)
            value = make(i, read(task, chunk, i, task.compute_dtype))
            (stream if streaming else store)(chunk.y + i * size, task.dtype, value)
            if with_more and do_more is not None:
                do_more(i - head)
    if streaming:
        _end(task, chunk.y, count, lambda: make(rest, last))
    else:
        for _ in when(count % lanes != 0):
            store(chunk.y + rest * size, task.dtype, make(rest, last))
    return (count - head) // lanes * lanes


def _buffer(open_line: int) -> int:
    """Where the line is made that the last row ended in."""
    return open_line + _BUFFERS + CACHE_LINE_NBYTES + integer(open_line + _WHICH) * _BUFFER_NBYTES


def _begin(task: TaskValues, y: int, first: Callable[[], Lanes]) -> int:
    """Write the beginning of a row, up to a line; return how many elements that is."""
    open_line, within = task.scratch.open_line, y % CACHE_LINE_NBYTES
    follows = integer(open_line + _END) == y
    for _ in when(is_false(follows)):
        flush(task)
    for _ in when(within != 0):
        store(where(follows, _buffer(open_line) + within, y), task.dtype, first())
    return where(within == 0, 0, CACHE_LINE_NBYTES - within) // task.itemsize


def _end(task: TaskValues, y: int, count: int, last: Callable[[], Lanes]) -> None:
    """Keep the end of a row that is less than a line, and stream the line in which it began."""
    open_line, end = task.scratch.open_line, y + count * task.itemsize
    within = end % CACHE_LINE_NBYTES
    # Only now has what was put into the buffer arrived there for sure, and need not be waited for.
    for _ in when(integer(open_line + _END) == y):
        stream_line(y - y % CACHE_LINE_NBYTES, _buffer(open_line))
    store_integer(open_line + _WHICH, 1 - integer(open_line + _WHICH))
    store_integer(open_line + _END, where(within == 0, 0, end))
    for _ in when(within != 0):
        store(_buffer(open_line) + within - CACHE_LINE_NBYTES, task.dtype, last())


@contextmanager
def writing(task: TaskValues) -> Iterator[None]:
    """Encloses the code that writes rows: no line is open before it, and none after it."""
    store_integer(task.scratch.open_line + _END, 0)
    store_integer(task.scratch.open_line + _WHICH, 0)
    yield
    for _ in when(task.streaming):
        flush(task)
        fence()


def flush(task: TaskValues) -> None:
    """Write what there is of the open line, as nothing follows it."""
    open_line = task.scratch.open_line
    end = integer(open_line + _END)
    within = end % CACHE_LINE_NBYTES
    for at in loop(0, within, task.itemsize):
        copy(end - within + at, _buffer(open_line) + at, task.dtype)
    store_integer(open_line + _END, 0)
