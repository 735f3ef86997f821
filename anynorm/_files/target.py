"""Files and folders that appear whole or not at all."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import shutil
import stat
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import IO, Any

from anynorm._files.locks import can_lock, lock


def require_regular(path: Path) -> None:
    """Raise ValueError for what is neither a file nor a folder: opening a pipe waits for a writer."""
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


def require_replaceable(path: Path) -> None:
    """Raise ValueError or PermissionError for a file that a new one cannot stand in for."""
    names = path.stat().st_nlink
    if names > 1:
        raise ValueError(
            f"{path} has {names} names (hard links), and the others would keep the old data; "
            "give OUT, or make this name a file of its own first, with cp and mv"
        )
    if not os.access(path, os.W_OK):
        raise PermissionError(f"{path} may not be written to; give OUT, or change its mode first")


@contextmanager
def replacing(target: Path, overwrite: bool, before: Callable[[], Any] = lambda: None) -> Iterator[IO[bytes]]:
    """A file beside the target that takes its place once it is whole and on disk; removed on any failure.

    ``before`` is called when all that is left is to rename the file, and may raise.
    """
    target = resolved(target)
    require_absent(target, overwrite)
    file = _create(target)
    part = Path(file.name)
    try:
        with file:
            if target.exists():
                _make_like(file, target)
            yield file
            file.flush()
            os.fsync(file.fileno())
            require_absent(target, overwrite)
            before()
            if not can_lock():  # Windows renames no open file; elsewhere the lock keeps others from removing it
                file.close()
            try:
                with _telling_of(target):
                    os.replace(part, target)
                sync_folder(target.parent)
            except KeyboardInterrupt:
                if part.exists():
                    raise
                sync_folder(target.parent)  # it is done, and the command must not say that it is not
    finally:
        part.unlink(missing_ok=True)


@contextmanager
def replacing_folder(target: Path, overwrite: bool, before: Callable[[], Any] = lambda: None) -> Iterator[Path]:
    """The same of a folder; between the old and the new one there is a moment in which there is neither."""
    target = resolved(target)
    for old in target.parent.glob(f"{_prefix_of(target)}*.old"):  # of a process that was killed in that moment
        if not target.exists():
            os.replace(old, target)
    require_absent(target, overwrite, folder=True)
    part, held = _create_folder(target)
    old = part.with_suffix(".old")
    try:
        with held:
            yield part
            if target.exists():
                shutil.copymode(target, part)
            for path in [*part.rglob("*"), part]:
                _sync(path)
            require_absent(target, overwrite, folder=True)
            before()
            if target.exists():
                os.replace(target, old)
            os.replace(part, target)
        sync_folder(target.parent)
    except KeyboardInterrupt:
        if part.exists():
            raise
        sync_folder(target.parent)  # it is done, as above
    finally:
        if old.exists() and not target.exists():
            os.replace(old, target)
        for path in (part, old):
            _remove_folder(path)


def _remove_folder(folder: Path) -> None:
    """Remove a folder in spite of Ctrl-C, and of threads that still write there, as those of Zarr do after an error."""
    for _ in range(100):
        with contextlib.suppress(KeyboardInterrupt):  # what it would stop is over
            if not folder.exists():
                return
            shutil.rmtree(folder, ignore_errors=True)
            time.sleep(0.02)


def reserve(file: IO[bytes], nbytes: int) -> None:
    """Make a full disk fail before the work rather than after, where the system can reserve space.

    For new files alone: one of the user's would be left longer than what is written to it.
    """
    if not nbytes or not hasattr(os, "posix_fallocate"):
        return
    try:
        os.posix_fallocate(file.fileno(), file.tell(), nbytes)
    except OSError as error:
        if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL):  # what file systems say that cannot reserve
            raise OSError(error.errno, f"{error.strerror}; the result takes {nbytes} bytes") from None


def sync_folder(folder: Path) -> None:
    """Make sure that the names in a folder are on disk, where the system can."""
    if os.name == "posix":
        _sync(folder)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def require_absent(target: Path, overwrite: bool, folder: bool = False) -> None:
    """Raise OSError where nothing can be put, or nothing without being told to."""
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


def _create(target: Path) -> IO[bytes]:
    """A new file beside the target, locked, with a name that cannot be foreseen."""
    mode = 0o600 if target.exists() else 0o666  # nobody may read the new file who may not read the old one
    while True:
        _remove_left_of(target)
        with _telling_of(target.parent):
            # "x" takes neither a file that is there nor a link.
            file = open(_part_of(target), "xb", opener=lambda path, flags: os.open(path, flags, mode))  # noqa: SIM115
        if lock(file) and os.fstat(file.fileno()).st_nlink:
            return file
        file.close()  # another run has taken it for left over before it was locked


def _create_folder(target: Path) -> tuple[Path, AbstractContextManager[Any]]:
    """The same of a folder, with what ends its lock."""
    while True:
        _remove_left_of(target)
        part = _part_of(target)
        with _telling_of(target.parent):
            part.mkdir()
        held = contextlib.ExitStack()
        if not can_lock():
            return part, held
        with contextlib.suppress(FileNotFoundError):
            descriptor = os.open(part, os.O_RDONLY)
            held.callback(os.close, descriptor)
            if lock(descriptor) and part.exists():
                return part, held
        held.close()


@contextmanager
def _telling_of(path: Path) -> Iterator[None]:
    """Name this path where a new file cannot be made or renamed, rather than its own name, which no user knows."""
    try:
        yield
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from None


def _make_like(file: IO[bytes], target: Path) -> None:
    """Give a new file the owner, mode and attributes of the one whose place it takes."""
    old, new = target.stat(), os.fstat(file.fileno())
    if not hasattr(os, "fchown"):  # Windows
        shutil.copymode(target, file.name)
        return
    if (old.st_uid, old.st_gid) != (new.st_uid, new.st_gid):
        try:
            os.fchown(file.fileno(), old.st_uid, old.st_gid)
        except OSError:
            raise PermissionError(
                f"{target} belongs to another user or group, which a new file cannot be given; name another OUT"
            ) from None
    os.fchmod(file.fileno(), stat.S_IMODE(old.st_mode))
    for name in os.listxattr(target) if hasattr(os, "listxattr") else ():  # access lists are among them
        with contextlib.suppress(OSError):
            os.setxattr(file.fileno(), name, os.getxattr(target, name))


def _remove_left_of(target: Path) -> None:
    """Remove what killed runs have left of the same target."""
    for left in target.parent.glob(f"{_prefix_of(target)}*") if can_lock() else ():
        with contextlib.suppress(OSError):
            descriptor = os.open(left, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
            try:
                if lock(descriptor):
                    shutil.rmtree(left) if left.is_dir() else left.unlink()
            finally:
                os.close(descriptor)


def _part_of(target: Path) -> Path:
    return target.with_name(f"{_prefix_of(target)}{os.urandom(8).hex()}.part")


def _prefix_of(target: Path) -> str:
    return f".anynorm-{hashlib.sha256(os.fsencode(target.name)).hexdigest()[:16]}-"
