"""Threads that share the work of a kernel and never wait for Python: they sleep, wake and work without the GIL.

A crew does one job at a time, in one call of a function that Python cannot interrupt: no exception, signal or fork
comes between its beginning and its end. A caller that finds the crew at work does without it. A child after a fork has
no helpers and needs none, for no caller waits for a helper that has not begun.
"""

from __future__ import annotations

import ctypes
import importlib
import struct
import threading
from collections.abc import Callable
from typing import Any, NamedTuple

from anynorm import _threads
from anynorm._forks import unforked
from anynorm._kernels.cpu.language.dtypes import CACHE_LINE_NBYTES

# A kernel looks at its parameters before it begins, a piece as well as the whole. That takes as long as 2 rows do of
# float32, and 6 of float16 (EPYC 7003).
_LEAST_PIECE_NBYTES = 64 << 10
_LEAST_PIECE_ROWS = 16


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

    def run(self, job: bytes, results: Any, pieces: int) -> bool | None:
        """Do a job; return whether no piece has stopped early, and None where the crew is at work for another caller.

        A result, behind the first, is the unit before which a piece has stopped.
        """
        outcome = self._program.run(self._memory, job, results, min(pieces - 1, self.helpers))
        return None if outcome == self._words.BUSY_NOW else outcome == self._words.RAN

    def shutdown(self, *, wait: bool = False) -> None:
        """Let each helper end after its work; callers that still hold the crew work alone from then on."""
        ctypes.c_int64.from_address(self._at(self._words.RETIRED)).value = 1
        for _ in range(self.helpers):
            self._program.sem_post(self._at(self._words.WORK))


class Job(NamedTuple):
    """A kernel, as a crew calls it for one piece of the work after the other."""

    function: int
    pack: Callable[..., bytes]


def job_of(kernel: tuple[int, tuple[str, ...]] | None) -> Job | None:
    """A kernel for `share`, given what `jit.native` returns; None where it cannot run without Python."""
    if kernel is None or _words().program() is None:
        return None
    words, (address, types) = _words(), kernel
    formats = words.BEGINNING_OF_JOB + "".join("d" if kind == "double" else "q" for kind in types[4:])
    return Job(words.piece_of(address, types), struct.Struct(formats).pack)


def share(
    job: Job | None,
    arguments: tuple[Any, ...],
    work: Callable[[int, int], None],
    units: int,
    rows: int,
    nbytes: int,
    threads: int,
) -> None:
    """Run a kernel in up to so many threads, and ``work(first, last)`` on the units that it leaves undone.

    A unit is a row, or a block of columns, which are as many rows.
    """
    if job is None:
        _threads.share(work, units, threads)
        return
    crew = _threads.helpers(Crew, threads - 1)
    most = min(threads * _threads.PIECES_A_THREAD, nbytes // _LEAST_PIECE_NBYTES, rows // _LEAST_PIECE_ROWS)
    pieces = min(units, max(threads, most))
    complete = None
    if crew is not None and crew.helpers:
        passed = [0 if argument is None else argument for argument in arguments]
        results = (ctypes.c_int64 * (1 + pieces))()
        complete = crew.run(job.pack(job.function, pieces, units, *passed), results, pieces)
    if complete is None:
        work(0, units)
    elif not complete:
        for piece, reached in enumerate(results[1:]):
            first, last = units * piece // pieces, units * (piece + 1) // pieces
            if reached != last:
                work(max(first, reached), last)


def _words() -> Any:
    """The module of the program, which needs the compiler."""
    with unforked:
        return importlib.import_module("anynorm._kernels.cpu.threads.program")
