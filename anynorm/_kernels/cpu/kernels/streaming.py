"""Going along a chunk: lanes are read, something is made of them, and they are written, past the caches if wanted.

Cache lines are streamed whole. Where a row ends within a line and the next one begins there, both parts are put into a
buffer, and the line is streamed from that. To write a part of a line past the caches, or to read the line for it, would
hold up all that is written behind it: rms_norm of float32 16384 x 1024 into an array of NumPy's, which begins 16 bytes
behind a line, 0.85 ns an element with such stores and 0.5 without (EPYC 7003, one core).
"""

from __future__ import annotations

from collections.abc import Callable

from anynorm._kernels.cpu.language.dtypes import CACHE_LINE_NBYTES, Address, Dtype, Lanes, lanes_of
from anynorm._kernels.cpu.language.lanes import (
    copy,
    integer,
    load,
    loop,
    prefetch,
    size_of,
    store,
    store_integer,
    stream,
    stream_line,
    when,
    where,
)

# In the room that is carried from row to row: where the last row ended, if that is within a line, and 0 if not; which
# of the two buffers holds its end; the buffers, with a line before and behind what becomes one.
_END, _WHICH, _BUFFERS = 0, 8, CACHE_LINE_NBYTES
_BUFFER_NBYTES = 3 * CACHE_LINE_NBYTES


def further(address: Address, nbytes: int) -> Address:
    """An address so many bytes on; None where there is none."""
    return None if address is None else address + nbytes


def read(dtype: Dtype, compute_dtype: Dtype, x: int, residual: Address, i: int) -> Lanes:
    """Elements from the i-th on."""
    return load(x + i * size_of(dtype), further(residual, i * size_of(dtype)), dtype, compute_dtype)


def map_chunk(
    dtype: Dtype, compute_dtype: Dtype, x: int, residual: Address, y: int, total: Address, count: int, ahead: int,
    compute: Callable[[int, Lanes], Lanes], open_line: Address,
) -> None:  # fmt: skip
    """Write ``compute(i, x[i:])`` to y[i:], lanes at a time, and the sums of x and other to added.

    ``count`` is that of lanes or more. ``line`` is None where nothing is to be streamed.
    """
    size, lanes = size_of(dtype), lanes_of(dtype)

    def make(i: int, value: Lanes) -> Lanes:
        if total is not None:
            store(total + i * size, dtype, value)
        return compute(i, value)

    # In place the last elements, which go with some before them, have to be read before those are written.
    rest = count - lanes
    last = read(dtype, compute_dtype, x, residual, rest)
    head = 0
    if open_line is not None:
        head = _begin(dtype, y, open_line, lambda: make(0, read(dtype, compute_dtype, x, residual, 0)))
    for i in loop(head, rest + 1, lanes):
        for offset in range(0, lanes * size, CACHE_LINE_NBYTES):
            prefetch(x + ahead + i * size + offset)
        value = make(i, read(dtype, compute_dtype, x, residual, i))
        (store if open_line is None else stream)(y + i * size, dtype, value)
    if open_line is None:
        for _ in when(count % lanes != 0):
            store(y + rest * size, dtype, make(rest, last))
    else:
        _end(dtype, y, count, open_line, lambda: make(rest, last))


def _buffer(open_line: int) -> int:
    """Where the line is made that the last row ended in."""
    return open_line + _BUFFERS + CACHE_LINE_NBYTES + integer(open_line + _WHICH) * _BUFFER_NBYTES


def _begin(dtype: Dtype, y: int, open_line: int, first: Callable[[], Lanes]) -> int:
    """Write the beginning of a row, up to a line; return how many elements that is."""
    within = y % CACHE_LINE_NBYTES
    follows = integer(open_line + _END) == y
    for _ in when(where(follows, False, True)):
        flush(dtype, open_line)
    for _ in when(within != 0):
        store(where(follows, _buffer(open_line) + within, y), dtype, first())
    return where(within == 0, 0, CACHE_LINE_NBYTES - within) // size_of(dtype)


def _end(dtype: Dtype, y: int, count: int, open_line: int, last: Callable[[], Lanes]) -> None:
    """Keep the end of a row that is less than a line, and stream the line in which it began."""
    end = y + count * size_of(dtype)
    within = end % CACHE_LINE_NBYTES
    # Only now has what was put into the buffer arrived there for sure, and need not be waited for.
    for _ in when(integer(open_line + _END) == y):
        stream_line(y - y % CACHE_LINE_NBYTES, _buffer(open_line))
    store_integer(open_line + _WHICH, 1 - integer(open_line + _WHICH))
    store_integer(open_line + _END, where(within == 0, 0, end))
    for _ in when(within != 0):
        store(_buffer(open_line) + within - CACHE_LINE_NBYTES, dtype, last())


def reset(open_line: int) -> None:
    """Begin with nothing to line."""
    store_integer(open_line + _END, 0)
    store_integer(open_line + _WHICH, 0)


def flush(dtype: Dtype, open_line: int) -> None:
    """Write what is carried, as nothing follows it."""
    end = integer(open_line + _END)
    within = end % CACHE_LINE_NBYTES
    for at in loop(0, within, size_of(dtype)):
        copy(end - within + at, _buffer(open_line) + at, dtype)
    store_integer(open_line + _END, 0)
