"""Threads that share the work of a kernel and never wait for Python: they sleep, wake and work without its lock.

Python knows nothing of these threads: it neither waits for them when it ends nor counts them, and what is set for its
own threads (the size of a stack, a profiler) is not for them.

A crew does one task at a time, in one call of a function that Python cannot interrupt: no exception, signal or fork
comes between its beginning and its end. A caller that finds the crew at work does without it. A child after a fork has
no helpers and needs none, for no caller waits for a helper that has not begun.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from functools import partial
from typing import Any

from anynorm import _threads
from anynorm._kernels.cpu.compiler.entries import Kernel
from anynorm._kernels.cpu.threads.functions import program
from anynorm._kernels.cpu.threads.memory import BUSY_NOW, COMPLETE, new_memory, thread_attributes
from anynorm._processors import processors

# A helper that has nothing to do looks for more for so long before it sleeps, and the caller for the last piece to be
# done. To wake a sleeper takes the caller 3 microseconds (EPYC 7003, a virtual machine); a call that follows at once
# comes after 20. Each look gives way to other threads: where no core is free, one of those may be the caller.
SPIN_NANOSECONDS = 50_000
# To wake a thread that sleeps takes the caller 3 microseconds, all of the sharing 7, and the thread some 10 to come.
# layer_norm on two cores of an EPYC 7003, time of one thread by that of two, for rows of 64, 768 and 8192 numbers:
# float32 256 KB 0.8, 1.3, 1.0; 512 KB 1.5, 1.2, 1.04; 1 MB 1.2, 1.3, 1.1;
# float16 256 KB 1.4, 1.0, 0.9; 512 KB 1.3, 1.2, 1.1; 1 MB 1.8, 1.3, 1.4.
LEAST_SHARED_NBYTES = 512 << 10
# A kernel looks at its parameters before it begins, a piece as well as the whole. That takes as long as 2 rows do of
# float32, and 6 of float16 (EPYC 7003).
_LEAST_PIECE_NBYTES = 64 << 10
_LEAST_PIECE_ROWS = 16


class Crew:
    """The threads that help a caller.

    They end when they are told to, or when the crew is no longer referred to. Where threads are more than the
    processors that this process is granted, they do not look for work: what they use up of a quota is the work's.
    """

    def __init__(self, helpers: int) -> None:
        found = program()
        assert found is not None
        self._program = found
        self.helpers = 0
        self._memory = new_memory(SPIN_NANOSECONDS if helpers + 1 <= processors() else 0)
        self.helpers = found.hire(self._memory, thread_attributes(), helpers)

    def run(self, kernel: int, task: int, units: int, pieces: int, reached: Any) -> bool | None:
        """Run a kernel on a task; return whether no piece has stopped early, and None where the crew is at work.

        ``reached[1 + piece]`` is the unit before which a piece has stopped.
        """
        helpers = min(pieces - 1, self.helpers)
        outcome = self._program.run(self._memory, kernel, task, units, pieces, reached, helpers)
        return None if outcome == BUSY_NOW else outcome == COMPLETE

    def shutdown(self, *, wait: bool = False) -> None:
        """Let each helper end after its work; callers that still hold the crew work alone from then on."""
        self._program.retire(self._memory)

    def __del__(self) -> None:
        if hasattr(self, "_memory"):
            self._program.retire(self._memory)
            self._program.leave(self._memory)


def launch(
    kernel: Kernel,
    task: Any,
    units: int,
    nbytes: int,
    keepalive: Any,
    resume: Callable[[int, int], Any] | None = None,
) -> None:
    """Run a kernel on all units of a task, in several threads where that pays; a unit is a row, or a block of rows.

    A kernel may stop before the last unit: ``resume(first, last)`` is called for what it leaves undone, and for all
    where there is one thread, kernels are interpreted, or the crew is at work for another caller. One that never stops
    needs none. ``keepalive`` is what the task has addresses of: it is held until no thread can be at work, even where
    an interrupt ends this call before.
    """
    resume = resume or partial(kernel.run, task)
    threads = _threads.get_threads() if nbytes >= LEAST_SHARED_NBYTES and units > 1 else 1
    if threads == 1:
        resume(0, units)
    elif not kernel.address or program() is None:
        _threads.share(partial(_resume_holding, resume, (task, keepalive)), units, threads)
    else:
        most = min(threads * _threads.PIECES_A_THREAD, nbytes // _LEAST_PIECE_NBYTES, task.rows // _LEAST_PIECE_ROWS)
        pieces = min(units, max(threads, most))
        _share(kernel, task, units, pieces, _threads.helpers(Crew, threads - 1), resume)


def _resume_holding(resume: Callable[[int, int], Any], _: Any, first: int, last: int) -> None:
    resume(first, last)


def _share(
    kernel: Kernel, task: Any, units: int, pieces: int, crew: Crew | None, resume: Callable[[int, int], Any]
) -> None:
    reached = (ctypes.c_int64 * (1 + pieces))()
    complete = None
    if crew is not None and crew.helpers:
        complete = crew.run(kernel.address, ctypes.addressof(task), units, pieces, reached)
    if complete is None:
        resume(0, units)
    elif not complete:
        for piece in range(pieces):
            first, last = units * piece // pieces, units * (piece + 1) // pieces
            if reached[1 + piece] != last:
                resume(max(first, reached[1 + piece]), last)
