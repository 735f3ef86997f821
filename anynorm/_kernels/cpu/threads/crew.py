"""Threads that share the work of a kernel and never wait for Python: they sleep, wake and work without the GIL.

A crew does one job at a time, in one call of a function that Python cannot interrupt: no exception, signal or fork
comes between its beginning and its end. A caller that finds the crew at work does without it. A child after a fork has
no helpers and needs none, for no caller waits for a helper that has not begun.
"""

from __future__ import annotations

import ctypes
import importlib
import threading
from collections.abc import Callable
from functools import partial
from typing import Any

from anynorm import _threads
from anynorm._forks import unforked
from anynorm._kernels.cpu.compiler.entries import Kernel
from anynorm._kernels.cpu.kernels.task import Task
from anynorm._kernels.cpu.language.dtypes import CACHE_LINE_NBYTES

# To wake a thread that sleeps takes the caller 3 microseconds, all of the sharing 7, and the thread some 10 to come.
# layer_norm on two cores of an EPYC 7003, time of one thread by that of two, for rows of 64, 768 and 8192 numbers:
# float32 256 KB 0.8, 1.3, 1.0; 512 KB 1.5, 1.2, 1.04; 1 MB 1.2, 1.3, 1.1;
# float16 256 KB 1.4, 1.0, 0.9; 512 KB 1.3, 1.2, 1.1; 1 MB 1.8, 1.3, 1.4.
LEAST_SHARED_NBYTES = 512 << 10
# A kernel looks at its parameters before it begins, a piece as well as the whole. That takes as long as 2 rows do of
# float32, and 6 of float16 (EPYC 7003).
_LEAST_PIECE_NBYTES = 64 << 10
_LEAST_PIECE_ROWS = 16


class _Job(ctypes.Structure):
    """A kernel, its task, and into how many pieces how many units are cut."""

    _fields_ = (
        ("function", ctypes.c_int64),
        ("task", ctypes.c_int64),
        ("pieces", ctypes.c_int64),
        ("units", ctypes.c_int64),
    )


class Crew:
    """The threads that help a caller."""

    def __init__(self, helpers: int) -> None:
        self._words = _words()
        self._program = self._words.program()
        # It lives as long as any thread that works with it: each helper holds it too.
        memory = ctypes.create_string_buffer(self._words.NBYTES + CACHE_LINE_NBYTES)
        offset = -ctypes.addressof(memory) % CACHE_LINE_NBYTES
        self._memory = (ctypes.c_char * self._words.NBYTES).from_buffer(memory, offset)
        for semaphore in (self._words.WORK, self._words.DONE):
            self._program.sem_init(self._at(semaphore), 0, 0)
        self.helpers = 0
        try:
            for _ in range(helpers):
                # Python does not wait for such a thread when it ends.
                threading.Thread(target=self._program.help, args=(self._memory,), name="anynorm", daemon=True).start()
                self.helpers += 1
        except RuntimeError:  # no thread can be started, say because the interpreter is shutting down
            pass
        except BaseException:
            self.helpers = helpers
            self.shutdown()
            raise

    def _at(self, place: int) -> int:
        return ctypes.addressof(self._memory) + place

    def run(self, job: _Job, results: Any, pieces: int) -> bool | None:
        """Do a job; return whether no piece has stopped early, and None where the crew is at work for another caller.

        A result, behind the first, is the unit before which a piece has stopped.
        """
        outcome = self._program.run(self._memory, ctypes.addressof(job), results, min(pieces - 1, self.helpers))
        return None if outcome == self._words.BUSY_NOW else outcome == self._words.RAN

    def shutdown(self, *, wait: bool = False) -> None:
        """Let each helper end after its work; callers that still hold the crew work alone from then on."""
        ctypes.c_int64.from_address(self._at(self._words.RETIRED)).value = 1
        for _ in range(self.helpers):
            self._program.sem_post(self._at(self._words.WORK))


def launch(
    kernel: Kernel,
    task: Task,
    units: int,
    rows: int,
    nbytes: int,
    resume: Callable[[int, int], None],
    keepalive: Any,
) -> None:
    """Run a kernel on all units of a task, in several threads where that pays; a unit is a row, or a block of rows.

    A kernel may stop before the last unit: ``resume(first, last)`` is called for what it leaves undone, and where
    kernels are interpreted for all. ``keepalive`` is what the task has addresses of: a call may be interrupted, and
    leave, while other threads are still at work.
    """
    threads = _threads.get_threads() if nbytes >= LEAST_SHARED_NBYTES and units > 1 else 1
    if threads == 1:
        resume(0, units)
    elif not kernel.address or _words().program() is None:
        _threads.share(partial(_resume, resume, keepalive), units, threads)
    else:
        _share(kernel, task, units, rows, nbytes, threads, partial(_resume, resume, keepalive))


def _resume(resume: Callable[[int, int], None], keepalive: Any, first: int, last: int) -> None:
    resume(first, last)


def _share(
    kernel: Kernel, task: Task, units: int, rows: int, nbytes: int, threads: int, resume: Callable[[int, int], None]
) -> None:
    crew = _threads.helpers(Crew, threads - 1)
    most = min(threads * _threads.PIECES_A_THREAD, nbytes // _LEAST_PIECE_NBYTES, rows // _LEAST_PIECE_ROWS)
    pieces = min(units, max(threads, most))
    complete = None
    if crew is not None and crew.helpers:
        results = (ctypes.c_int64 * (1 + pieces))()
        complete = crew.run(_Job(kernel.address, ctypes.addressof(task), pieces, units), results, pieces)
    if complete is None:
        resume(0, units)
    elif not complete:
        for piece, reached in enumerate(results[1:]):
            first, last = units * piece // pieces, units * (piece + 1) // pieces
            if reached != last:
                resume(max(first, reached), last)


def _words() -> Any:
    """The module of the program, which needs the compiler."""
    with unforked:
        return importlib.import_module("anynorm._kernels.cpu.threads.program")
