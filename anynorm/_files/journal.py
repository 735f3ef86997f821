"""The journal of a file that is rewritten in place, beside that file.

Before a block is overwritten its result is in the journal and on disk, in one of two places that take turns, each with
a checksum. So whenever a process is killed, the newest whole record tells how far the file is certain to be done, and
with it what the last block is: written once more it is the same. Statistics of rows that many blocks hold pieces of are
kept likewise before the first of those blocks is overwritten.

In the end the journal becomes a note by which file is known as done, should the process be killed before it can tell
anybody: the same command then finds nothing left to do. A file that was changed since is none of the note's business.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import struct
from pathlib import Path
from typing import IO, Any

import numpy

from anynorm._files.target import reserve, sync_folder

Array = Any
State = dict[str, Any]

_HEAD_NBYTES = 1 << 16
_LENGTHS = struct.Struct("<QQ")  # of what is told about the bytes kept, and of those
_DIGEST_NBYTES = 32
_TOLD_NBYTES = 1 << 14
_SAID_LENGTH = 1000  # of the command, which is for people


class UnfinishedError(RuntimeError):
    """A file is half normalized, and the same command completes it; ``status``: the one to exit with."""

    def __init__(self, message: str, status: int = 1) -> None:
        super().__init__(message)
        self.status = status


def path_of_journal(path: Path) -> Path:
    """Where the journal of a file is."""
    return path.with_name(f".{path.name}.anynorm-journal")


def require_whole(path: Path) -> None:
    """Raise ValueError for a file that is half normalized."""
    head = read_head(path)
    if head is not None and not head["finished"]:
        raise ValueError(f"{path} is half normalized in place; run the command that did so again: {head['said']}")


def is_done(path: Path, digest: str) -> bool:
    """Whether a file is as a command with this digest has left it."""
    head = read_head(path)
    return head is not None and head["finished"] and head["digest"] == digest and head["file"] == _identity(path)


def note_done(path: Path, digest: str, said: str, result: Path | None = None) -> None:
    """Note that a file is done, or is about to be replaced by its result."""
    _put_head(path, {"finished": True, "digest": digest, "said": said, "file": _identity(result or path)}, 0)


def read_head(path: Path) -> State | None:
    """What the journal of a file says of itself; None where there is none."""
    journal = path_of_journal(path)
    try:
        with open(journal, "rb") as file:
            head = file.read(_HEAD_NBYTES)
    except FileNotFoundError:
        return None
    found = _unpacked(io.BytesIO(head), _HEAD_NBYTES)
    if found is None:
        raise ValueError(f"{journal} is no journal of anynorm; move it away if {path} is whole")
    return found[0]


class Journal:
    """The journal of a file while it is rewritten."""

    def __init__(self, path: Path, block_nbytes: int) -> None:
        self.block_nbytes = block_nbytes  # at most, and the same whoever goes on
        self._path = path
        self._slot_nbytes = _slot_nbytes(block_nbytes)
        self._file: IO[bytes] = open(path_of_journal(path), "r+b")  # noqa: SIM115  # closed by __exit__

    @staticmethod
    def begin(path: Path, digest: str, said: str, block_nbytes: int) -> Journal:
        """Go on with the journal of a file, or begin one; ValueError where another command has left one."""
        head = read_head(path)
        if head is None or head["finished"]:
            head = {"finished": False, "digest": digest, "said": said, "file": _inode(path), "block": block_nbytes}
            _put_head(path, head, 2 * _slot_nbytes(block_nbytes))
        elif head["file"] != _inode(path):
            journal = path_of_journal(path)
            raise ValueError(f"{journal} belongs to another file of this name; move it away if {path} is whole")
        elif head["digest"] != digest:
            raise ValueError(f"{path} is half normalized by another command; run that again first: {head['said']}")
        return Journal(path, head["block"])

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def put(self, number: int, told: State, data: memoryview) -> None:
        """Keep a block that is about to be written, the ``number``-th of the file."""
        self._put_at(_HEAD_NBYTES + number % 2 * self._slot_nbytes, {"number": number, **told}, data)

    def newest(self) -> tuple[State, memoryview] | None:
        """The last block that was kept, with what was told of it; None where there is none yet."""
        found = [self._at(_HEAD_NBYTES + slot * self._slot_nbytes, self._slot_nbytes) for slot in range(2)]
        return max((one for one in found if one is not None), key=lambda one: one[0]["number"], default=None)

    def put_statistics(self, number: int, arrays: list[Array]) -> None:
        """Keep the statistics of rows, of which the ``number``-th block is the first to be written."""
        file = io.BytesIO()
        numpy.savez(file, *arrays)
        self._put_at(_HEAD_NBYTES + 2 * self._slot_nbytes, {"number": number}, file.getbuffer())

    def statistics(self, number: int) -> list[Array]:
        """Those that are kept; ValueError where they are not of these rows, which only a damaged journal has."""
        found = self._at(_HEAD_NBYTES + 2 * self._slot_nbytes, None)
        if found is None or found[0]["number"] != number:
            raise ValueError(f"{path_of_journal(self._path)} is damaged, and {self._path} cannot be completed")
        with numpy.load(io.BytesIO(found[1]), allow_pickle=False) as arrays:
            return [arrays[name] for name in arrays.files]

    def _put_at(self, start: int, told: State, data: memoryview) -> None:
        self._file.seek(start)
        for part in _packed(told, data):
            self._file.write(part)
        self._file.flush()
        os.fsync(self._file.fileno())

    def _at(self, start: int, most: int | None) -> tuple[State, memoryview] | None:
        end = self._file.seek(0, os.SEEK_END)
        self._file.seek(start)
        return _unpacked(self._file, end - start if most is None else most)


def _put_head(path: Path, head: State, nbytes: int) -> None:
    """Have a journal appear whole, with room for so many bytes behind its head."""
    head["said"] = head["said"][:_SAID_LENGTH]
    journal = path_of_journal(path)
    part = journal.with_name(journal.name + ".part")
    try:
        with open(part, "wb") as file:
            file.write(b"".join(_packed(head, memoryview(b""))).ljust(_HEAD_NBYTES if nbytes else 0, b"\0"))
            reserve(file, nbytes)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, journal)
        sync_folder(journal.parent)
    finally:
        part.unlink(missing_ok=True)


def _packed(told: State, data: memoryview) -> list[Any]:
    text = json.dumps(told).encode()
    lengths = _LENGTHS.pack(len(text), len(data))
    digest = hashlib.blake2b(lengths + text, digest_size=_DIGEST_NBYTES)
    digest.update(data)
    return [digest.digest(), lengths, text, data]


def _unpacked(file: IO[bytes], most: int) -> tuple[State, memoryview] | None:
    """What was packed; None where it is not whole."""
    start = file.read(_DIGEST_NBYTES + _LENGTHS.size)
    if len(start) < _DIGEST_NBYTES + _LENGTHS.size:
        return None
    lengths = start[_DIGEST_NBYTES:]
    told_nbytes, data_nbytes = _LENGTHS.unpack(lengths)
    if told_nbytes + data_nbytes > most - len(start):
        return None
    text, data = file.read(told_nbytes), file.read(data_nbytes)
    digest = hashlib.blake2b(lengths + text, digest_size=_DIGEST_NBYTES)
    digest.update(data)
    if digest.digest() != start[:_DIGEST_NBYTES]:
        return None
    state: State = json.loads(text)
    return state, memoryview(data)


def _slot_nbytes(block_nbytes: int) -> int:
    return _DIGEST_NBYTES + _LENGTHS.size + _TOLD_NBYTES + block_nbytes


def _inode(path: Path) -> list[int]:
    found = path.stat()
    return [found.st_ino, found.st_size]


def _identity(path: Path) -> list[int]:
    return [*_inode(path), path.stat().st_mtime_ns]
