"""What a process had to compile, which it says once where that took long."""

from __future__ import annotations

import logging

from anynorm._kernels import object_files

_MOST_UNSAID_SECONDS = 1.0  # that users wait for a compiler they may not know of


_compiled_seconds: list[float] = []
_is_said = False


def note_compiled(seconds: float, reason: str | None) -> None:
    """Note that a kernel was compiled, and why it is not kept on disk; say so where that was a long wait so far."""
    global _is_said
    _compiled_seconds.append(seconds)
    waited = sum(_compiled_seconds)
    if _is_said or waited <= _MOST_UNSAID_SECONDS:
        return
    _is_said = True
    if reason is None:
        kept, advice = f"kept in {object_files.folder()}", "`anynorm warm` does it beforehand"
    else:
        kept, advice = f"not kept on disk: {reason}", "`anynorm warm --to DIR` does it for ANYNORM_CACHE_DIR=DIR"
    logging.getLogger("anynorm").info(
        "compiling %d CPU kernels took %.1f s (%s); %s", len(_compiled_seconds), waited, kept, advice
    )
