"""What a command shows on the terminal while it works, and how it is stopped from there."""

from __future__ import annotations

import importlib.util
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NoReturn


@contextmanager
def progress(what: str, total: int | None) -> Iterator[Callable[[int], Any]]:
    """A progress bar on a terminal, where tqdm is installed."""
    if importlib.util.find_spec("tqdm") is None:
        yield lambda nbytes: None
        return
    from tqdm import tqdm

    with tqdm(total=total, unit="B", unit_scale=True, desc=what, disable=None, leave=False) as bar:
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
