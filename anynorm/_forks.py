"""What no fork may come between: modules that are being imported, kernels that are being compiled.

A child has none of the other threads. It would wait for ever for a lock that one of them holds, and find modules of
which only the beginning has been run.
"""

from __future__ import annotations

import logging  # noqa: F401  # see below
import os
import threading

# Held by the thread that imports or compiles: `with unforked:`. It comes before all locks that are taken meanwhile.
unforked = threading.RLock()
_is_held = False  # by the thread that is forking


def _before() -> None:
    global _is_held
    unforked.acquire()
    _is_held = True


def _after() -> None:
    global _is_held
    if _is_held:  # an interrupt may have ended the wait for it, and does not keep a process from forking
        _is_held = False
        unforked.release()


# What was registered last is called first. Logging takes its lock before a fork, too, and a thread that imports or
# compiles may need that: so it has to come after these, and to be imported before.
if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before, after_in_parent=_after, after_in_child=_after)
