"""Locks that end with the process that holds them, however it ends; none where the system has none."""

from __future__ import annotations

from typing import IO, Any

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]


def lock(file: IO[bytes] | int) -> bool:
    """Lock a file until it is closed; return whether no other process holds it."""
    if fcntl is None:
        return True
    locking: Any = fcntl
    try:
        locking.flock(file, locking.LOCK_EX | locking.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # a file system without locks
        return True
    return True


def can_lock() -> bool:
    """Whether locks work on this system."""
    return fcntl is not None
