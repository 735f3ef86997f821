"""How many threads a call may use, and the sharing of work among them."""

from __future__ import annotations

import itertools
import os
import threading
from collections.abc import Callable
from typing import Any

_asked: int | None = None
_pool: Any = None  # of concurrent.futures, which is imported with the first large array
_pool_threads = 0
_lock = threading.Lock()
# Each thread takes a piece of the work after the other, so that one that is held up does not hold up the rest.
_PIECES_A_THREAD = 4


def set_threads(threads: int | None) -> None:
    """Set how many threads one call may use; only large arrays on the CPU make use of more than one.

    Unless it is set here, that is the environment variable ``ANYNORM_THREADS``, or else ``OMP_NUM_THREADS``, by which
    pools of processes keep their workers to one thread each, or else the number of cores that this process may use. No
    result depends on it.

    Parameters
    ----------
    threads : int or None
        1 or more; None for the default.

    Raises
    ------
    TypeError, ValueError
        If it is neither.

    Examples
    --------
    >>> import anynorm
    >>> anynorm.set_threads(1)
    >>> anynorm.get_threads()
    1
    >>> anynorm.set_threads(None)
    """
    global _asked, _pool
    if threads is not None:
        if not isinstance(threads, int) or isinstance(threads, bool):
            raise TypeError(f"threads must be an int or None, got {type(threads).__name__}")
        if threads < 1:
            raise ValueError(f"threads must be 1 or more, got {threads}")
    with _lock:
        _asked, _pool = threads, None  # threads of the old pool end with the work they have


def get_threads() -> int:
    """Return how many threads one call may use, as `set_threads` explains.

    Raises
    ------
    ValueError
        If the environment variable ``ANYNORM_THREADS`` is not a number of threads.
    """
    if _asked is not None:
        return _asked
    written = os.environ.get("ANYNORM_THREADS")
    if written:
        if not written.isdecimal() or int(written) < 1:
            raise ValueError(f"the environment variable ANYNORM_THREADS must be a number of threads, got {written!r}")
        return int(written)
    written = os.environ.get("OMP_NUM_THREADS", "")
    if written.isdecimal() and int(written) >= 1:
        return int(written)
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def share(work: Callable[[int, int], None], units: int, threads: int) -> None:
    """Call ``work(first, last)`` until all units are done, in up to so many threads, this one among them."""
    pieces = min(units, threads * _PIECES_A_THREAD)
    numbers = itertools.count()  # whose next() no other thread can come between

    def take() -> None:
        for piece in numbers:
            if piece >= pieces:
                return
            work(units * piece // pieces, units * (piece + 1) // pieces)

    helpers: list[Any] = []
    try:
        pool = _pool_of(threads - 1)
        for _ in range(min(pieces, threads) - 1):
            helpers.append(pool.submit(take))  # one by one: those that have begun are to be waited for
    except RuntimeError:  # no thread can be started, say because the interpreter is shutting down
        pass
    try:
        take()
    finally:
        for _ in itertools.takewhile(lambda piece: piece < pieces, numbers):
            pass  # after an exception nobody is to begin another piece
        for helper in helpers:
            if not helper.cancel():
                helper.result()


def _pool_of(helpers: int) -> Any:
    global _pool, _pool_threads
    with _lock:
        if _pool is None or _pool_threads != helpers:
            from concurrent.futures import ThreadPoolExecutor

            _pool, _pool_threads = ThreadPoolExecutor(helpers, thread_name_prefix="anynorm"), helpers
        return _pool


def _after_fork() -> None:
    """Threads do not survive a fork, and neither does whoever holds the lock."""
    global _pool, _lock
    _pool, _lock = None, threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
