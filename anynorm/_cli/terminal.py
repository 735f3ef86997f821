"""What a command shows on the terminal, and how it is stopped from there."""

from __future__ import annotations

import importlib.util
import json
import math
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import IO, Any, NoReturn

_stopped = threading.Event()  # a signal has come that ends the command


def installed(package: str) -> bool:
    """Whether a package can be imported, found without importing it."""
    try:
        return importlib.util.find_spec(package) is not None
    except (ImportError, ValueError):
        return False


def printable(text: str) -> str:
    """Text for a terminal: control characters, which names in files may hold, are escaped."""
    return "".join(one if one.isprintable() else one.encode("unicode_escape").decode() for one in text)


def say(text: str, file: IO[str] | None) -> None:
    """Print a line; characters that the encoding of the file lacks are escaped."""
    if file is not None:  # it was closed by whoever started the command
        encoding = getattr(file, "encoding", None) or "utf-8"
        print(printable(text).encode(encoding, "backslashreplace").decode(encoding), file=file)


def tell(message: str) -> None:
    """Say something on standard error, beside the result."""
    with suppress(OSError):  # nobody can read it, and the file is written all the same
        say(message, sys.stderr)


def output() -> IO[str]:
    """Standard output; ValueError where there is none."""
    if sys.stdout is None:
        raise ValueError("standard output is closed")
    return sys.stdout


def print_json(value: dict[str, Any]) -> None:
    """Print an object for programs; it is ASCII, so that any encoding has it, with null for NaN, as JSON wants."""
    print(json.dumps(_without_nan(value), allow_nan=False), file=output())


def _without_nan(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _without_nan(one) for name, one in value.items()}
    if isinstance(value, list):
        return [_without_nan(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def flush_or_silence() -> None:
    """Flush standard output; where that fails discard the rest, which would fail once more when Python ends."""
    if sys.stdout is not None:
        try:
            sys.stdout.flush()
        except OSError:
            silence_output()


def silence_output() -> None:
    """Discard what is left for a standard output that is closed, so that Python prints no error when it ends."""
    try:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except OSError:  # it is no file
        sys.stdout = None


@contextmanager
def progress(
    what: str, total: Callable[[], int | None], quiet: bool = False, printing: bool = False, of_bytes: bool = True
) -> Iterator[Callable[[int], Any]]:
    """A progress bar on a terminal, where rich is installed; yields what is called with each number of bytes done.

    ``printing``: lines are printed meanwhile, which on a terminal are to stand above the bar. ``of_bytes``: whether
    what is counted are bytes.
    """
    if quiet or sys.stderr is None or not sys.stderr.isatty() or not installed("rich"):
        yield lambda nbytes: require_unstopped()
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )

    name = TextColumn("{task.description}", markup=False)
    done = (DownloadColumn(), TransferSpeedColumn()) if of_bytes else (MofNCompleteColumn(),)
    columns = name, BarColumn(), *done, TimeRemainingColumn()
    # What is written to standard output, which may be the result, must not pass through the bar elsewhere.
    above = printing and sys.stdout is not None and sys.stdout.isatty()
    options: dict[str, Any] = {"transient": True, "redirect_stdout": above, "redirect_stderr": False}
    options["refresh_per_second"] = 10 if of_bytes else 2  # drawing takes time, and what is not bytes is being timed
    with Progress(*columns, console=Console(stderr=True), **options) as bar:
        task = bar.add_task(printable(what), total=total())

        def advance(nbytes: int) -> None:
            require_unstopped()
            bar.advance(task, nbytes)

        yield advance


def stopped() -> bool:
    """Whether a signal has come that ends the command."""
    return _stopped.is_set()


def require_unstopped() -> None:
    """Raise KeyboardInterrupt again where the first was lost: Python ignores exceptions in __del__ and the like."""
    if stopped():
        raise KeyboardInterrupt


def _unless_stopped(hook: Callable[..., Any]) -> Callable[..., Any]:
    """A hook that prints no interrupt, which Python or a library does where nobody can catch it."""

    def printing(*told: Any) -> None:
        kind = told[0] if len(told) > 1 else told[0].exc_type
        if not (stopped() and issubclass(kind, KeyboardInterrupt)):
            hook(*told)

    return printing


@contextmanager
def terminable() -> Iterator[None]:
    """Clean up on SIGTERM and SIGHUP as on Ctrl-C."""
    _stopped.clear()
    if threading.current_thread() is not threading.main_thread():  # the only one that may set signal handlers
        yield
        return

    def interrupt(*_: Any) -> NoReturn:
        _stopped.set()
        raise KeyboardInterrupt

    # SIGHUP, where there is one, comes when the terminal closes; nohup has it ignored, and a shell SIGINT in the
    # background.
    stopping = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
    before = {number: signal.getsignal(number) for number in stopping}
    before = {number: handler for number, handler in before.items() if handler not in (signal.SIG_IGN, None)}
    for number in before:
        signal.signal(number, interrupt)
    hooks = {name: getattr(sys, name) for name in ("excepthook", "unraisablehook")}
    for name, hook in hooks.items():
        setattr(sys, name, _unless_stopped(hook))
    try:
        yield
    finally:
        for name, hook in hooks.items():
            setattr(sys, name, hook)
        for number, handler in before.items():
            signal.signal(number, handler)
