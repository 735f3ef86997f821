"""Going along a chunk: lanes are read, something is made of them, and they are written, past the caches if wanted.

Cache lines are streamed whole. Where a row ends within a line and the next one begins there, both parts are put into a
buffer, and the line is streamed from that. To write a part of a line past the caches, or to read the line for it, would
hold up all that is written behind it: rms_norm of float32 16384 x 1024 into an array of NumPy's, which begins 16 bytes
behind a line, 0.85 ns an element with such stores and 0.5 without (EPYC 7003, one core).
"""

from __future__ import annotations

from collections.abc import Callable

from anynorm._kernels.cpu.language.dtypes import CACHE_LINE_NBYTES, Address, Lanes, Tag, lanes_of
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
CARRY_NBYTES = _BUFFERS + 2 * _BUFFER_NBYTES


def further(address: Address, nbytes: int) -> Address:
    """An address so many bytes on; None where there is none."""
    return None if address is None else address + nbytes


def read(tag: Tag, wide: Tag, x: int, other: Address, i: int) -> Lanes:
    """Elements from the i-th on."""
    return load(x + i * size_of(tag), further(other, i * size_of(tag)), tag, wide)


def sweep(
    tag: Tag, wide: Tag, x: int, other: Address, y: int, added: Address, count: int, ahead: int,
    compute: Callable[[int, Lanes], Lanes], carry: Address,
) -> None:  # fmt: skip
    """Write ``compute(i, x[i:])`` to y[i:], lanes at a time, and the sums of x and other to added.

    ``count`` is that of lanes or more. ``carry`` is None where nothing is to be streamed.
    """
    size, lanes = size_of(tag), lanes_of(tag)

    def make(i: int, value: Lanes) -> Lanes:
        if added is not None:
            store(added + i * size, tag, value)
        return compute(i, value)

    # In place the last elements, which go with some before them, have to be read before those are written.
    rest = count - lanes
    last = read(tag, wide, x, other, rest)
    head = 0
    if carry is not None:
        head = _begin(tag, y, carry, lambda: make(0, read(tag, wide, x, other, 0)))
    for i in loop(head, rest + 1, lanes):
        for line in range(0, lanes * size, CACHE_LINE_NBYTES):
            prefetch(x + ahead + i * size + line)
        value = make(i, read(tag, wide, x, other, i))
        (store if carry is None else stream)(y + i * size, tag, value)
    if carry is None:
        for _ in when(count % lanes != 0):
            store(y + rest * size, tag, make(rest, last))
    else:
        _end(tag, y, count, carry, lambda: make(rest, last))


def _buffer(carry: int) -> int:
    """Where the line is made that the last row ended in."""
    return carry + _BUFFERS + CACHE_LINE_NBYTES + integer(carry + _WHICH) * _BUFFER_NBYTES


def _begin(tag: Tag, y: int, carry: int, first: Callable[[], Lanes]) -> int:
    """Write the beginning of a row, up to a line; return how many elements that is."""
    within = y % CACHE_LINE_NBYTES
    follows = integer(carry + _END) == y
    for _ in when(where(follows, False, True)):
        settle(tag, carry)
    for _ in when(within != 0):
        store(where(follows, _buffer(carry) + within, y), tag, first())
    return where(within == 0, 0, CACHE_LINE_NBYTES - within) // size_of(tag)


def _end(tag: Tag, y: int, count: int, carry: int, last: Callable[[], Lanes]) -> None:
    """Keep the end of a row that is less than a line, and stream the line in which it began."""
    end = y + count * size_of(tag)
    within = end % CACHE_LINE_NBYTES
    # Only now has what was put into the buffer arrived there for sure, and need not be waited for.
    for _ in when(integer(carry + _END) == y):
        stream_line(y - y % CACHE_LINE_NBYTES, _buffer(carry))
    store_integer(carry + _WHICH, 1 - integer(carry + _WHICH))
    store_integer(carry + _END, where(within == 0, 0, end))
    for _ in when(within != 0):
        store(_buffer(carry) + within - CACHE_LINE_NBYTES, tag, last())


def clear(carry: int) -> None:
    """Begin with nothing to carry."""
    store_integer(carry + _END, 0)
    store_integer(carry + _WHICH, 0)


def settle(tag: Tag, carry: int) -> None:
    """Write what is carried, as nothing follows it."""
    end = integer(carry + _END)
    within = end % CACHE_LINE_NBYTES
    for at in loop(0, within, size_of(tag)):
        copy(end - within + at, _buffer(carry) + at, tag)
    store_integer(carry + _END, 0)
