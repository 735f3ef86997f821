"""A copy that streams, compiled by Numba: stores that go past the caches."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numba
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

LINE = 64  # bytes; targets begin with one
SHARED_NBYTES = 512 << 10  # smaller arrays are copied by one thread, as anynorm's kernels do
_WORD = ir.IntType(32)
_LANES = ir.VectorType(_WORD, LINE // 4)


@intrinsic
def _stream_line(context: Any, target: Any, source: Any) -> Any:
    """Copy a cache line from one address to another."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        to, of = (builder.inttoptr(address, _LANES.as_pointer()) for address in arguments)
        stored = builder.store(builder.load(of, align=1), to, align=LINE)
        stored.set_metadata("nontemporal", builder.module.add_metadata([ir.Constant(_WORD, 1)]))
        return context.get_dummy_value()

    return types.void(types.intp, types.intp), generate


@numba.njit(nogil=True)
def _stream(target: int, source: int, lines: int) -> None:
    for line in range(lines):
        _stream_line(target + line * LINE, source + line * LINE)  # type: ignore[call-arg]  # Numba gives the context


def copier(out: Any, x: Any, threads: int) -> Callable[[], None]:
    """A call that copies x to an array that begins with a cache line, on so many threads."""
    threads = threads if x.nbytes >= SHARED_NBYTES else 1
    lines = x.nbytes // LINE
    share = -(-lines // threads) or 1
    pieces = [(first * LINE, min(share, lines - first)) for first in range(0, lines, share)]
    target, source = out.ctypes.data, x.ctypes.data
    flat, of = out.reshape(-1).view("uint8"), x.reshape(-1).view("uint8")
    pool = ThreadPoolExecutor(threads)

    def piece(which: tuple[int, int]) -> None:
        first, count = which
        _stream(target + first, source + first, count)

    def copy() -> None:
        flat[lines * LINE :] = of[lines * LINE :]
        if threads == 1:
            for which in pieces:
                piece(which)
        else:
            list(pool.map(piece, pieces))

    return copy
