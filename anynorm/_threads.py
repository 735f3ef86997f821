"""How many threads a call may use, and the sharing of work among them."""

from __future__ import annotations

import itertools
import math
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from anynorm._forks import unforked
from anynorm._numbers import check_length
from anynorm._processors import processors
from anynorm._wording import sentence

_asked: int | None = None
_helpers: tuple[Any, int, Any] | None = None  # what started them, how many, and they themselves
# A signal may come at any time, and its handler use any of this: so nobody waits for the first lock, and what is done
# with the second waits for nothing else.
_starting = threading.Lock()
_replacing = threading.RLock()
_here = threading.local()  # has `alone` where a thread is one of a framework's that share the cores among them
# Each thread takes a piece of the work after the other, so that one that is held up does not hold up the rest.
PIECES_A_THREAD = 4


def set_threads(threads: int | None) -> None:
    """Set how many threads one call may use; only large arrays on the CPU make use of more than one.

    Unless it is set here, the environment variable ``ANYNORM_THREADS`` decides, or else ``OMP_NUM_THREADS``, with which
    pools of processes keep their workers to one thread each, or else the number of processors that this process may
    use: by its affinity, and by what a container grants it, rounded up. No result depends on the number of threads.

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
    global _asked
    if threads is not None:
        threads = check_length("threads", threads, "an int or None")
    _asked = threads
    _replace(None)


def get_threads() -> int:
    """Return how many threads one call may use, as `set_threads` explains.

    Raises
    ------
    ValueError
        If the environment variable ``ANYNORM_THREADS`` is not a number of threads.
    """
    if getattr(_here, "alone", False):
        return 1
    if _asked is not None:
        return _asked
    written = os.environ.get("ANYNORM_THREADS")
    if written:
        if not written.isdecimal() or int(written) < 1:
            variable = "the environment variable ANYNORM_THREADS"
            raise ValueError(sentence(variable, "be a number of threads", repr(written), "set 1 or more"))
        return int(written)
    written = os.environ.get("OMP_NUM_THREADS", "")
    if written.isdecimal() and int(written) >= 1:
        return int(written)
    return math.ceil(processors())


@contextmanager
def alone() -> Iterator[None]:
    """Make calls from this thread use no other thread, whatever was set."""
    before = getattr(_here, "alone", False)
    _here.alone = True
    try:
        yield
    finally:
        _here.alone = before


def helpers(start: Callable[[int], Any], count: int) -> Any:
    """What ``start(count)`` has started, kept for the next call; None while another thread starts something.

    It has a method ``shutdown(wait=False)``, by which it is told to end with the work it has when others take its
    place.
    """
    current, asked, starting = _helpers, _asked, _starting
    if current is not None and current[:2] == (start, count):
        return current[2]
    if not starting.acquire(blocking=False):
        return None
    try:
        _replace(None)
        started = start(count)
        _replace((start, count, started))
        if _asked != asked:  # meanwhile, by another thread or a signal's handler, which did not find these
            _replace(None)
        return started
    finally:
        starting.release()


def _replace(others: tuple[Any, int, Any] | None) -> None:
    """Tell the helpers to end with the work they have, and let others take their place."""
    global _helpers
    with _replacing:
        before, _helpers = _helpers, others
    if before is not None:
        before[2].shutdown(wait=False)


def share(run_piece: Callable[[int, int], None], units: int, threads: int) -> None:
    """Call ``run_piece(first, last)`` until all units are done, in up to so many of Python's threads with this one."""
    pieces = min(units, threads * PIECES_A_THREAD)
    numbers = itertools.count()  # whose next() is one atomic step

    def take_pieces() -> None:
        for piece in numbers:
            if piece >= pieces:
                return
            run_piece(units * piece // pieces, units * (piece + 1) // pieces)

    futures: list[Any] = []
    try:
        pool = helpers(_pool_of, threads - 1)
        for _ in range(min(pieces, threads) - 1 if pool is not None else 0):
            futures.append(pool.submit(take_pieces))  # one by one: those that have begun are to be waited for
    except RuntimeError:  # no thread can be started, say because the interpreter is shutting down
        pass
    try:
        take_pieces()
    finally:
        for _ in itertools.takewhile(lambda piece: piece < pieces, numbers):
            pass  # after an exception no thread may begin another piece
        for future in futures:
            if not future.cancel():
                future.result()


def _pool_of(threads: int) -> Any:
    with unforked:
        from concurrent.futures import ThreadPoolExecutor

    return ThreadPoolExecutor(threads, thread_name_prefix="anynorm")


def _after_fork() -> None:
    """Threads do not survive a fork, nor does one that holds a lock."""
    global _helpers, _starting, _replacing
    _helpers, _starting, _replacing = None, threading.Lock(), threading.RLock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
