"""What `anynorm warm` does: the CPU kernels are compiled before anybody waits for them."""

from __future__ import annotations

import argparse
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from pathlib import Path

from anynorm._cli.terminal import progress, tell
from anynorm._cli.words import counted, of_nbytes, of_seconds
from anynorm._kernels import cpu, object_files
from anynorm._kernels.cpu.beforehand import Compilable, compilables, compile_to, kept_nbytes
from anynorm._kernels.cpu.language.dtypes import CODES, INTERPRETED
from anynorm._threads import get_threads

_OPEN = 0o755  # others may enter and read
_MOST_PROCESSES = 32  # each takes some 80 MB


def run(parsed: argparse.Namespace) -> int:
    """Compile what is not there, and say where it is."""
    place = _place(parsed.to)
    wanted = list(compilables(parsed.dtypes or CODES))
    lacking = [one for one in wanted if not kept_nbytes(one, place)]
    started = time.perf_counter()
    if lacking:
        _open(place, parsed.to)
        with progress("compiling", lambda: len(lacking), parsed.quiet, of_bytes=False) as advance:
            for reason in _compile(lacking, place):
                if reason is not None:
                    raise ValueError(f"compiled kernels cannot be kept: {reason}")
                advance(1)
    if not parsed.quiet:
        took = time.perf_counter() - started
        nbytes = sum(kept_nbytes(one, place) for one in wanted)
        tell(f"{_done(len(wanted), len(lacking), took)}, {of_nbytes(nbytes)} in {place}; {_to_set(parsed.to, place)}")
        closed = _closed_to_others(place) if parsed.to is not None else []
        if closed:
            tell(f"other users cannot read it: chmod a+rx {' '.join(map(str, closed))}")
    return 0


def _place(given: Path | None) -> Path:
    """The folder, which need not be there yet; ValueError where nothing can be compiled, or none is named."""
    if INTERPRETED:
        raise ValueError("nothing is compiled while ANYNORM_INTERPRET is set; unset it")
    if not cpu.has_compiler():
        raise ValueError(f"the CPU kernels cannot be compiled: {cpu.missing()}")
    found = object_files.folder() if given is None else given.expanduser().absolute()
    if found is None:
        raise ValueError("there is no home folder to keep compiled kernels in; name a folder with --to")
    return found


def _open(place: Path, given: Path | None) -> None:
    """Make the folder where it is not there; ValueError with a reason where it cannot be written to."""
    reason = object_files.unwritable(place)
    if reason is not None:
        raise ValueError(f"compiled kernels cannot be kept: {reason}")
    if given is not None:
        for one in [one for one in (place, *place.parents) if not one.exists()][::-1]:
            one.mkdir()
            one.chmod(_OPEN)  # whatever the umask is


def _compile(wanted: list[Compilable], place: Path) -> Iterator[str | None]:
    """Compile kernels in processes of their own; for each why it is not kept, or None."""
    # Processes, as LLVM compiles in one thread at a time; spawned, as a fork would copy the threads' locks.
    processes = min(get_threads(), len(wanted), _MOST_PROCESSES)
    pool = ProcessPoolExecutor(processes, multiprocessing.get_context("spawn"), _begin_worker)
    try:
        with _interrupts_held_back():
            futures = [pool.submit(compile_to, place, one) for one in wanted]
        for future in as_completed(futures):
            yield future.result()
    finally:
        pool.shutdown(cancel_futures=True)


@contextmanager
def _interrupts_held_back() -> Iterator[None]:
    """Begin processes that Ctrl-C does not come to, though a terminal sends it to them all; here it comes later."""
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _begin_worker() -> None:
    """End with the process that started this one, and leave Ctrl-C to it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()

    def end_with_parent() -> None:
        if parent is not None:
            parent.join()
            os._exit(1)

    threading.Thread(target=end_with_parent, daemon=True).start()


def _done(wanted: int, compiled: int, seconds: float) -> str:
    if not compiled:
        return f"nothing to compile: {counted(wanted, 'kernel')} for this processor are there"
    there = f", {wanted - compiled:,} were there already" if wanted > compiled else ""
    return f"compiled {counted(compiled, 'kernel')} for this processor in {of_seconds(seconds)}{there}"


def _to_set(given: Path | None, place: Path) -> str:
    if place == object_files.folder():
        return "no setting is needed" if given is None else "ANYNORM_CACHE_DIR names it already"
    return f"set ANYNORM_CACHE_DIR={place} to use them"


def _closed_to_others(place: Path) -> list[Path]:
    """The folders on the way that only their owner may enter."""
    if not hasattr(os, "geteuid"):
        return []
    closed = [one for one in place.parents if not one.stat().st_mode & 0o001]
    return closed if place.stat().st_mode & 0o005 == 0o005 else [place, *closed]
