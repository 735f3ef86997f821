"""Compiled kernels on disk: whole files that nobody else can have written, or none."""

from __future__ import annotations

import contextlib
import hashlib
import os
import stat
import tempfile
from pathlib import Path

_DIGEST_NBYTES = 32
# The second one where there is no home, as of a number in a container that no user has.
_NO_PLACE = OSError, RuntimeError


def folder() -> Path:
    """Where compiled kernels are kept."""
    given = os.environ.get("ANYNORM_CACHE_DIR")
    if given:
        return Path(given)
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache) / "anynorm"


def read(name: str) -> bytes | None:
    """What was written under a name; None where that is damaged, another user may have written it, or there is none."""
    with contextlib.suppress(*_NO_PLACE):
        place = folder()
        if not _is_safe(place.stat()):
            return None
        with (place / name).open("rb") as file:
            if not _is_safe(os.fstat(file.fileno())):
                return None
            digest, code = file.read(_DIGEST_NBYTES), file.read()
        if hashlib.sha256(code).digest() == digest:
            return code
    return None


def write(name: str, code: bytes) -> None:
    """Write a file that appears whole or not at all; nothing is kept where nothing can be written."""
    with contextlib.suppress(*_NO_PLACE):
        place = folder()
        place.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not _is_safe(place.stat()):
            return
        descriptor, part = tempfile.mkstemp(dir=place, suffix=".part")
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(hashlib.sha256(code).digest() + code)
            Path(part).replace(place / name)
        except OSError:
            Path(part).unlink(missing_ok=True)


def _is_safe(found: os.stat_result) -> bool:
    """Whether a file or folder is this user's or root's, and no other user can write to it."""
    if not hasattr(os, "getuid"):  # Windows, where a folder of the user's own is closed to others
        return True
    return found.st_uid in (os.getuid(), 0) and not found.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
