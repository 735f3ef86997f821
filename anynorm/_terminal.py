"""What a command shows on the terminal, and how it is stopped from there."""

from __future__ import annotations

import importlib.util
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import IO, Any, NoReturn


def printable(text: str) -> str:
    """Text for a terminal: control characters, which names in files may hold, are escaped."""
    return "".join(one if one.isprintable() else one.encode("unicode_escape").decode() for one in text)


def say(text: str, file: IO[str] | None) -> None:
    """Print a line, in what of it the encoding of the file has."""
    if file is not None:  # it was closed by whoever started the command
        encoding = getattr(file, "encoding", None) or "utf-8"
        print(printable(text).encode(encoding, "backslashreplace").decode(encoding), file=file)


def flush_or_silence() -> None:
    """Write what is left for standard output, or have it go nowhere where that fails, as it would when Python ends."""
    if sys.stdout is not None:
        try:
            sys.stdout.flush()
        except OSError:
            silence_output()


def silence_output() -> None:
    """Have what is left for a standard output that takes no more go nowhere, without a word when Python ends."""
    try:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except OSError:  # it is no file
        sys.stdout = None


@contextmanager
def progress(what: str, total: int | None) -> Iterator[Callable[[int], Any]]:
    """A progress bar on a terminal, where tqdm is installed."""
    if importlib.util.find_spec("tqdm") is None or sys.stderr is None:
        yield lambda nbytes: None
        return
    from tqdm import tqdm

    with tqdm(total=total, unit="B", unit_scale=True, desc=printable(what), disable=None, leave=False) as bar:
        yield bar.update


@contextmanager
def terminable() -> Iterator[None]:
    """Clean up on SIGTERM and SIGHUP as on Ctrl-C."""
    if threading.current_thread() is not threading.main_thread():  # the only one that may set signal handlers
        yield
        return

    def interrupt(*_: Any) -> NoReturn:
        raise KeyboardInterrupt

    # SIGHUP, where there is one, comes when the terminal closes; nohup has it ignored.
    stopping = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]
    before = {number: signal.getsignal(number) for number in stopping}
    before = {number: handler for number, handler in before.items() if handler not in (signal.SIG_IGN, None)}
    for number in before:
        signal.signal(number, interrupt)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
