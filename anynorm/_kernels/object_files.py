"""Compiled kernels on disk: whole files that nobody else can have written, or none."""

from __future__ import annotations

import contextlib
import hashlib
import os
import stat
import sys
import time
from pathlib import Path

# A folder that a user names may hold other files: these are ours.
SUFFIX, _PART = ".anynorm", ".anynorm-part"
_DIGEST_NBYTES = 32
# All kernels of one version for one processor take a few MB. What was not used for longest is removed beyond this.
_MOST_NBYTES = 256 << 20
_PART_SECONDS = 3600.0  # after which the process that was to complete a file must have been killed
_USED_SECONDS = 86400.0  # how exactly is noted when a file was used: once a day


def folder() -> Path | None:
    """Where compiled kernels are kept; None where that would be in a home, and the user has none."""
    given = os.environ.get("ANYNORM_CACHE_DIR")
    with contextlib.suppress(RuntimeError):  # a container may run as a number that no user has
        return Path(given).expanduser() if given else _cache_of_user() / "anynorm"
    return None


def read(name: str, place: Path | None = None) -> bytes | None:
    """What was written under a name; None where that is damaged, another user may have written it, or there is none."""
    place = place or folder()
    with contextlib.suppress(OSError):
        if place is None or distrusted(place, place.stat()):
            return None
        path = place / f"{name}{SUFFIX}"
        with open(path, "rb", opener=_open_at_once) as file:
            found = os.fstat(file.fileno())
            if distrusted(path, found) or not stat.S_ISREG(found.st_mode):
                return None
            digest, code = file.read(_DIGEST_NBYTES), file.read()
        if _digest(name, code) == digest:
            _note_use(path, found)
            return code
    return None


def write(name: str, code: bytes, place: Path | None = None) -> str | None:
    """Write a file that appears whole or not at all; return why nothing was written, or None."""
    place = place or folder()
    if place is None:
        return "there is no home folder"
    try:
        place.mkdir(mode=0o700, parents=True, exist_ok=True)
        reason = distrusted(place, place.stat())
        if reason is None:
            content = _digest(name, code) + code
            _make_room(place, len(content))
            _write_whole(place / f"{name}{SUFFIX}", content)
        return reason
    except OSError as error:
        return f"{place}: {error.strerror or error}"


def distrusted(path: Path, found: os.stat_result) -> str | None:
    """Why a file or folder is not trusted; None where it is this user's or root's, and nobody else can write to it."""
    if not hasattr(os, "geteuid"):  # Windows, where a folder of the user's own is closed to others
        return None
    if found.st_uid not in (os.geteuid(), 0):
        return f"{path} belongs to another user"
    if found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        return f"other users can write to {path}; chmod go-w closes it"
    return None


def unreadable(place: Path) -> str | None:
    """Why nothing is read from a folder, which need not be there yet; None: all that is in it is."""
    try:
        reason = distrusted(place, place.stat())
        return reason if reason or os.access(place, os.R_OK | os.X_OK) else f"{place} cannot be read"
    except FileNotFoundError:
        return None
    except OSError as error:
        return f"{place}: {error.strerror or error}"


def unwritable(place: Path) -> str | None:
    """Why nothing would be written to a folder, which need not be there yet; None: it would."""
    try:
        there = next(one for one in (place, *place.parents) if one.exists())
        if not there.is_dir():
            return f"{there} is not a folder"
        if there == place and (reason := distrusted(place, place.stat())):
            return reason
        return None if os.access(there, os.W_OK | os.X_OK) else f"{there} cannot be written to"
    except OSError as error:
        return f"{place}: {error.strerror or error}"


def _open_at_once(path: str, flags: int) -> int:
    """What is no file, such as a FIFO, is not waited for."""
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))


def _cache_of_user() -> Path:
    given = os.environ.get("XDG_CACHE_HOME")
    if given:
        return Path(given).expanduser()
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches"
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local")
    return Path.home() / ".cache"


def _digest(name: str, code: bytes) -> bytes:
    """Of the name too, so that a file under the name of another one is not taken for it."""
    return hashlib.sha256(name.encode() + b"\0" + code).digest()


def _note_use(path: Path, found: os.stat_result) -> None:
    with contextlib.suppress(OSError):  # the file may be another's, or on a file system that is only read
        if time.time() - found.st_mtime > _USED_SECONDS:
            os.utime(path)


def _write_whole(path: Path, content: bytes) -> None:
    part = path.with_name(f"{path.name}-{os.urandom(8).hex()}{_PART}")
    descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0), 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
        part.chmod(0o644)  # the folder decides who may read it, whatever the umask is
        part.replace(path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise


def _make_room(place: Path, nbytes: int) -> None:
    """Remove what killed processes have left and, beyond the most that may be kept, what was not used for longest."""
    kept = []
    with os.scandir(place) as entries:
        for entry in entries:
            with contextlib.suppress(FileNotFoundError):  # another process removes files, too
                if entry.name.endswith(SUFFIX):
                    found = entry.stat(follow_symlinks=False)
                    kept.append((found.st_mtime_ns, found.st_size, Path(entry.path)))
                elif entry.name.endswith(_PART) and time.time() - entry.stat().st_mtime > _PART_SECONDS:
                    Path(entry.path).unlink()
    excess = sum(size for _, size, _ in kept) + nbytes - _MOST_NBYTES
    for used, size, path in sorted(kept):
        if excess <= 0:
            break
        with contextlib.suppress(FileNotFoundError):
            if path.stat().st_mtime_ns == used:  # no other process has written or used it meanwhile
                path.unlink()
        excess -= size
