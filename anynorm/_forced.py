"""Which kernel is forced, in a context (a thread, an asyncio task) or in the whole process."""

from __future__ import annotations

import os
import weakref
from contextvars import ContextVar


class _Force:
    """A name of a kernel, alive for as long as some context holds it."""

    def __init__(self, name: str) -> None:
        self.name = name
        _alive.add(weakref.ref(self, _alive.discard))


_forced_everywhere = os.environ.get("ANYNORM_KERNEL") or None
_forced_here: ContextVar[_Force | None] = ContextVar("anynorm_kernel", default=None)
# torch.compile cannot trace a ContextVar, so it is only looked at while something may be in it.
_alive: set[weakref.ref[_Force]] = set()


def is_forced() -> bool:
    """Whether some kernel may be forced, here or in another thread."""
    return bool(_alive) or _forced_everywhere is not None


def forced() -> str | None:
    """The kernel that is forced, in this context or else in the whole process."""
    held = _forced_here.get() if _alive else None
    return _forced_everywhere if held is None else held.name


def forced_here() -> str | None:
    """The kernel that is forced in this context, whatever the whole process is told."""
    held = _forced_here.get()
    return None if held is None else held.name


def force(name: str | None) -> None:
    """Force a kernel in this context, which alone refers to the `_Force`: a `use_kernel` that is kept forces none."""
    _forced_here.set(None if name is None else _Force(name))
