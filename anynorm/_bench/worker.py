"""The process of one rival: sets up a case, checks its result, then times one sample whenever it is told to."""

from __future__ import annotations

import contextlib
import gc
import importlib
import itertools
import math
import os
import signal
import threading
import time
from collections.abc import Iterator
from multiprocessing import get_context
from multiprocessing.connection import Connection
from typing import Any

import numpy as np

from anynorm._bench.cases import LAYERS, Case
from anynorm._bench.rivals import Rival

SAMPLE_SECONDS = 0.005  # a sample holds as many calls as take this long
# With several threads, it and the calls before it: a system may wake threads on one core, and part them only after some
# milliseconds (a virtual machine with two cores: after 5 to 10).
SHARED_SAMPLE_SECONDS = 0.03
REST_SECONDS, LONGEST_REST_SECONDS = 0.01, 0.3
WARM_UP_SECONDS = 0.1  # slower calls run through more memory than caches hold: there is nothing to warm


class WorkerError(Exception):
    """A rival could not do a case; the message says why."""


class Worker:
    """The runner's end of a rival's process, which starts with the first case."""

    def __init__(self, name: str, rival: Rival, threads: int, environment: dict[str, str]):
        self._given, self._environment = (name, rival, threads), environment
        self._process: Any = None
        self._pipe: Any = None

    def prepare(self, case: Case) -> dict[str, Any]:
        """Set up a case and check the result; returns what was found."""
        found: dict[str, Any] = self._ask("prepare", case)
        return found

    def sample(self) -> tuple[float, float]:
        """Time one sample: seconds a call, and cores that were busy."""
        taken: tuple[float, float] = self._ask("sample")
        return taken

    def release(self) -> None:
        """Free the arrays; a process that has died has done so."""
        if self._process is not None:
            with contextlib.suppress(WorkerError):
                self._ask("release")

    def kill(self) -> None:
        """End the process, whatever it is doing: it has nothing to keep."""
        if self._process is not None and self._process.pid is not None:
            self._process.kill()

    def join(self) -> None:
        """Wait for the end of the process."""
        if self._process is not None and self._process.pid is not None:
            self._process.join()
            self._pipe.close()
        self._process = None

    def start(self) -> None:
        """Start the process, unless it runs; it imports its packages while others do."""
        if self._process is not None:
            return
        context = get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=serve, args=(theirs, *self._given), daemon=True)
        before = dict(os.environ)
        os.environ.update(self._environment)  # libraries read their settings while they are imported
        try:
            with _interrupts_blocked():
                self._process.start()
        finally:
            os.environ.clear()
            os.environ.update(before)
        theirs.close()

    def _ask(self, *message: Any) -> Any:
        self.start()
        try:
            self._pipe.send(message)
            failed, answer = self._pipe.recv()
        except (EOFError, OSError):
            self._process.join()
            code, self._process = self._process.exitcode, None
            raise WorkerError(f"its process ended with exit code {code}") from None
        if failed:
            raise WorkerError(answer)
        return answer


@contextlib.contextmanager
def _interrupts_blocked() -> Iterator[None]:
    """Make a process that is started here ignore Ctrl-C from its first moment; the runner handles it.

    A Ctrl-C that comes meanwhile reaches the runner when the process has been handed all it needs, and not before: the
    process would print an error.
    """
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    from multiprocessing import resource_tracker

    resource_tracker.ensure_running()  # it would start with the first process, and unblock them
    arrived: list[int] = []
    # Only this thread blocks the signal: another one receives it then, and this one the exception.
    handler = signal.getsignal(signal.SIGINT) if threading.current_thread() is threading.main_thread() else None
    if handler is not None:
        signal.signal(signal.SIGINT, lambda number, _: arrived.append(number))
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        if handler is not None:
            signal.signal(signal.SIGINT, handler)
        if arrived:
            signal.raise_signal(signal.SIGINT)


def serve(pipe: Connection, name: str, rival: Rival, threads: int) -> None:
    """Answer (failed, answer) to each message until the runner hangs up."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the runner's, which then ends this process
    for package in rival.packages:
        with contextlib.suppress(Exception):  # it is raised again, and reported, where the rival is set up
            importlib.import_module(package)
    server = _Server(name, rival, threads)
    gc.disable()  # a collection within a sample would be charged to the rival
    while True:
        try:
            command, *arguments = pipe.recv()
        except (EOFError, OSError):
            return
        try:
            answer = (False, getattr(server, command)(*arguments))
        except Exception as error:
            answer = (True, f"{type(error).__name__}: {str(error).partition(chr(10))[0][:300]}")
        with contextlib.suppress(OSError):  # the next recv finds the connection closed
            pipe.send(answer)


class _Server:
    """What a rival's process does for each message."""

    def __init__(self, name: str, rival: Rival, threads: int):
        self._name, self._rival, self._threads = name, rival, threads
        self._call: Any = None
        self._times = 1

    def prepare(self, case: Case) -> dict[str, Any]:
        from anynorm._bench.inputs import TOLERANCE, judged_rows, largest_error, make_inputs

        inputs = make_inputs(case, self._rival.library)
        self._call = self._rival.make(case, self._threads, *inputs)
        y = self._call()
        y = y() if callable(y) else y  # a compiler returns a function, which is checked and not timed
        found: dict[str, Any]
        if self._rival.copies:
            found = {"error": 0.0 if np.array_equal(np.asarray(y), inputs[0]) else math.nan}
        else:
            found = {"error": largest_error(case, *inputs, y)}
            if case.of == "y" and case.axis == -1:
                found |= judged_rows(case, *inputs, y)
        if self._name.startswith("anynorm"):
            of_library = y if case.of == "y" else inputs[0]  # which may be another one than that of the inputs
            found["kernel"] = _kernel(case, of_library, *inputs[1:])
        del y
        found["tolerance"] = TOLERANCE[case.dtype] * (LAYERS if case.of == "model" else 1)
        if self._rival.temporaries is not None:
            found["temporaries"] = self._rival.temporaries(self._call)
        self._times = self._calibrate()
        return found

    def sample(self) -> tuple[float, float]:
        is_shared = self._threads > 1
        if self._calls(1)[0] < WARM_UP_SECONDS:
            self._calls(self._times if is_shared else self._times // 10)
        found = self._calls(self._times)
        if is_shared:
            rest()
        return found

    def release(self) -> None:
        self._call = None
        gc.collect()

    def _calibrate(self) -> int:
        times, wanted = 1, SAMPLE_SECONDS if self._threads == 1 else SHARED_SAMPLE_SECONDS
        while True:
            seconds = self._calls(times)[0] * times
            if seconds >= wanted:
                return times
            # Early calls are slow, so the number grows in steps rather than at once.
            times = min(times * 8, max(times + 1, int(times * 1.2 * wanted / seconds)))

    def _calls(self, times: int) -> tuple[float, float]:
        if not times:
            return 0.0, 0.0
        call = self._call
        busy, start = time.process_time(), time.perf_counter()
        for _ in itertools.repeat(None, times):
            call()
        seconds = time.perf_counter() - start
        return seconds / times, (time.process_time() - busy) / seconds


def rest() -> None:
    """Return when no thread of this process is at work: the next rival is timed then, and wants its core.

    Those of ONNX Runtime 1.32 look for more work for 43 ms after a call. The system may count the time of a thread that
    runs in steps of 4 ms.
    """
    end = time.perf_counter() + LONGEST_REST_SECONDS
    is_busy = True
    while is_busy and time.perf_counter() < end:
        before = time.process_time()
        time.sleep(REST_SECONDS)
        is_busy = time.process_time() - before > REST_SECONDS / 10


def _kernel(case: Case, x: Any, weight: Any, bias: Any) -> str:
    """Name the kernel that anynorm chooses for the case."""
    import anynorm

    parameters = {"layer_norm": (weight, bias), "rms_norm": (weight,), "scale_norm": ()}[case.norm]
    return anynorm.explain(x, *parameters, norm=case.norm, axis=case.axis, eps=case.eps).kernel
