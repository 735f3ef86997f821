"""What no fork may come between: modules that are being imported, kernels that are being compiled.

A child has none of the other threads. It would wait for ever for a lock that one of them holds, and find modules of
which only the beginning has been run.
"""

from __future__ import annotations

import logging  # noqa: F401  # see below
import os
import threading
from contextlib import AbstractContextManager
from typing import Any

# Held by the thread that imports or compiles: `with unforked:`. It comes before all locks that are taken meanwhile.
unforked = threading.RLock()
_locks: list[AbstractContextManager[Any]] = [unforked]
_held: list[AbstractContextManager[Any]] = []  # by the thread that is forking


def wait_for(lock: AbstractContextManager[Any]) -> None:
    """Make forks wait for one more lock, which a thread may take while it holds those before it."""
    _locks.append(lock)


def _before() -> None:
    for lock in _locks:
        lock.__enter__()
        _held.append(lock)


def _after() -> None:
    held = _held[::-1]
    _held.clear()  # before the first lock is released, with which another thread may begin to fork
    for lock in held:
        lock.__exit__(None, None, None)


# What was registered last is called first. Logging takes its lock before a fork, too, and a thread that imports or
# compiles may need that: so it has to come after these, and to be imported before.
if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before, after_in_parent=_after, after_in_child=_after)
