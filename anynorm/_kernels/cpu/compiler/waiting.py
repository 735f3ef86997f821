"""What a process had to compile, which it says once where that took long."""

from __future__ import annotations

import logging
from typing import NamedTuple

from anynorm._kernels import object_files

_MOST_UNSAID_SECONDS = 1.0  # that users wait for a compiler they may not know of


class _Compiled(NamedTuple):
    name: str
    seconds: float
    reason: str | None  # why it is not kept on disk


_compiled: list[_Compiled] = []
_is_said = False


def note_compiled(name: str, seconds: float, reason: str | None) -> None:
    """Note that a kernel was compiled, and say so where that was a long wait so far."""
    global _is_said
    _compiled.append(_Compiled(name, seconds, reason))
    waited = sum(one.seconds for one in _compiled)
    if _is_said or waited <= _MOST_UNSAID_SECONDS:
        return
    _is_said = True
    names = ", ".join(one.name for one in _compiled)
    where = f"kept in {object_files.folder()}" if reason is None else f"not kept on disk: {reason}"
    logging.getLogger("anynorm").info(
        "compiling CPU kernels took %.1f s (%s; %s); `anynorm warm` does it beforehand", waited, names, where
    )
