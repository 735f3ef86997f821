"""Files and folders that appear whole or not at all."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import secrets
import shutil
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from anynorm._files.locks import can_lock, lock


def require_regular(path: Path) -> None:
    """Raise ValueError for what is neither a file nor a folder: opening a pipe waits for whoever writes into it."""
    mode = path.stat().st_mode
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
        raise ValueError(f"{path} is not a regular file; give the data in a file")


def resolved(path: Path) -> Path:
    """The file that a path leads to; FileNotFoundError for a loop of symbolic links."""
    try:
        return path.resolve()
    except RuntimeError:  # so does Python before 3.13 call a loop of symbolic links
        raise FileNotFoundError(f"{path} is a loop of symbolic links") from None


def require_apart(source: Path, target: Path) -> None:
    """Raise ValueError where a target is the source under whatever name, or lies within it."""
    if source.is_dir() and resolved(source) in resolved(target).parents:
        raise ValueError(f"{target} lies within {source}; name another place")
    if target.exists() and os.path.samefile(source, target):
        raise ValueError(f"{target} is {source} itself; pass --in-place, without OUT, to normalize it where it is")


@contextmanager
def replacing(target: Path, overwrite: bool, before: Callable[[Path], Any] = lambda part: None) -> Iterator[IO[bytes]]:
    """A file beside the target that takes its place once it is whole and on disk; removed on any failure.

    ``before`` is called with its path when all that is left is to rename it.
    """
    target = resolved(target)
    _require_absent(target, overwrite)
    part = _part_of(target)
    try:
        open(part, "xb").close()
        with _held(part):
            if target.exists():  # nobody may read the new file who may not read the old one
                shutil.copymode(target, part)
            with open(part, "wb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            _require_absent(target, overwrite)
            before(part)
            os.replace(part, target)
        sync_folder(target.parent)
    finally:
        part.unlink(missing_ok=True)


@contextmanager
def replacing_folder(target: Path, overwrite: bool) -> Iterator[Path]:
    """The same of a folder; between the old and the new one there is a moment in which there is neither."""
    target = resolved(target)
    for old in target.parent.glob(f"{_prefix_of(target)}*.old"):  # of a process that was killed in that moment
        if not target.exists():
            os.replace(old, target)
    _require_absent(target, overwrite, folder=True)
    part = _part_of(target)
    old = part.with_suffix(".old")
    try:
        part.mkdir()
        with _held(part):
            yield part
            for path in [*part.rglob("*"), part]:
                _sync(path)
            _require_absent(target, overwrite, folder=True)
            if target.exists():
                os.replace(target, old)
            os.replace(part, target)
        sync_folder(target.parent)
    finally:
        if old.exists() and not target.exists():
            os.replace(old, target)
        for path in (part, old):
            shutil.rmtree(path, ignore_errors=True)


def reserve(file: IO[bytes], nbytes: int) -> None:
    """Have a full disk say so before the work rather than after, where the system can reserve space."""
    if not nbytes or not hasattr(os, "posix_fallocate"):
        return
    try:
        os.posix_fallocate(file.fileno(), file.tell(), nbytes)
    except OSError as error:
        if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL):  # what file systems say that cannot reserve
            raise OSError(error.errno, f"{error.strerror}; the result takes {nbytes} bytes", file.name) from None


def sync_folder(folder: Path) -> None:
    """Have the names in a folder on disk, where the system can."""
    if os.name == "posix":
        _sync(folder)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _require_absent(target: Path, overwrite: bool, folder: bool = False) -> None:
    if not target.parent.is_dir():
        raise FileNotFoundError(f"{target.parent} is not a directory; make it first")
    if not folder and target.is_dir():
        raise IsADirectoryError(f"{target} is a directory; name a file")
    if folder and target.is_file():
        raise FileExistsError(f"{target} is a file, and is left as it is; name a folder")
    if target.is_symlink() or (target.exists() and not (target.is_file() or target.is_dir())):
        raise FileExistsError(f"{target} is not a regular file, and is left as it is")
    if target.exists() and not overwrite:
        raise FileExistsError(f"{target} exists; pass --force to overwrite it")


def _part_of(target: Path) -> Path:
    """A name for what is not whole yet, once what killed processes have left of the same target is away."""
    prefix = _prefix_of(target)
    for left in target.parent.glob(f"{prefix}*") if can_lock() else ():
        with contextlib.suppress(OSError), _held(left) as free:
            if free and left.is_dir():
                shutil.rmtree(left)
            elif free:
                left.unlink()
    return target.with_name(f"{prefix}{secrets.token_hex(8)}.part")


def _prefix_of(target: Path) -> str:
    return f".anynorm-{hashlib.sha256(os.fsencode(target.name)).hexdigest()[:16]}-"


@contextmanager
def _held(path: Path) -> Iterator[bool]:
    """Lock a file or a folder, which on Windows cannot be opened; whether nobody else holds it."""
    if not can_lock():
        yield True
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        yield lock(descriptor)
    finally:
        os.close(descriptor)
