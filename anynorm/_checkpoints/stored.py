"""What lies where in a file: read piece by piece, never beyond its end, and no more of it than is asked for."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path, PureWindowsPath
from typing import IO, Any

import numpy

from anynorm._files.formats.raw import fill
from anynorm._files.job import dtype_named
from anynorm._files.target import require_regular

Array = Any

FLOATS = ("float16", "bfloat16", "float32", "float64")
_LONGEST_NAME = 65535  # bytes, which is what GGUF allows


@dataclass(frozen=True)
class Tensor:
    """Where the elements of an array lie, in C order and little endian."""

    name: str
    shape: tuple[int, ...]
    dtype: str  # the name that NumPy and ml_dtypes have for it; of others the file's own
    path: Path
    start: int  # bytes from the begin of the file
    nbytes: int
    varints: bool = False  # whether the bits of each element are a number of protobuf's, of one to three bytes


class Source:
    """A file that is open, read from a place that moves on."""

    def __init__(self, file: IO[bytes], path: Path) -> None:
        self.path = path
        self.size = os.fstat(file.fileno()).st_size
        self.at = 0
        self._file = file

    def seek(self, at: int) -> None:
        """Go on at another place."""
        self._file.seek(at)
        self.at = at

    def skip(self, count: int) -> None:
        """Leave out bytes, which have to be there."""
        self._require(count)
        self.seek(self.at + count)

    def take(self, count: int) -> bytes:
        """Read bytes."""
        self._require(count)
        taken = self._file.read(count)
        if len(taken) != count:  # cut since it was opened
            raise self.damaged("it ends too early")
        self.at += count
        return taken

    def integer(self, nbytes: int) -> int:
        """Read an unsigned integer."""
        return int.from_bytes(self.take(nbytes), "little")

    def text(self, nbytes: int) -> str:
        """Read a name or another short text."""
        if nbytes > _LONGEST_NAME:
            raise self.damaged(f"it has a name of {nbytes} bytes")
        try:
            return self.take(nbytes).decode()
        except UnicodeDecodeError:
            raise self.damaged("it has a name that is not UTF-8") from None

    def damaged(self, what: str) -> ValueError:
        """The error about this file."""
        return ValueError(f"{self.path} is damaged: {what}")

    def _require(self, count: int) -> None:
        if count > self.size - self.at:
            raise self.damaged(f"{count} bytes should follow byte {self.at}, and it has {self.size} in all")


@contextmanager
def source(path: Path) -> Iterator[Source]:
    """Open a file; ValueError for what is none, such as a pipe, where reading would wait for a writer."""
    require_regular(path)
    if path.is_dir():
        raise ValueError(f"{path} is a folder where a file is wanted")
    with open(path, "rb") as file:
        yield Source(file, path)


def values(tensor: Tensor) -> Array:
    """Read the elements, whose number and place were checked when the header was read."""
    dtype = dtype_named(tensor.dtype)
    data = numpy.empty(tensor.nbytes, numpy.uint8)
    with open(tensor.path, "rb") as file:
        file.seek(tensor.start)
        fill(file, data)
    if tensor.varints:
        data = _from_varints(tensor, data)
    return data.view(dtype.newbyteorder("<")).astype(dtype, copy=False).reshape(tensor.shape)


def _from_varints(tensor: Tensor, data: Array) -> Array:
    """The 16 bits of each element: seven in a byte, the low ones first, all bytes but the last with the eighth set."""
    first = numpy.concatenate([[0], numpy.flatnonzero(data < 0x80) + 1])  # where each begins, and the end
    lengths = numpy.diff(first)
    if first[-1] == len(data) and len(lengths) == math.prod(tensor.shape) and lengths.max(initial=0) <= 3:
        shift = 7 * (numpy.arange(len(data)) - numpy.repeat(first[:-1], lengths))
        bits = numpy.add.reduceat((data & 0x7F).astype(numpy.uint32) << shift.astype(numpy.uint32), first[:-1])
        if bits.max(initial=0) <= 0xFFFF:
            return bits.astype("<u2")
    raise ValueError(f"{tensor.path} is damaged: {tensor.name} does not hold 16 bits for each element")


def inside(folder: Path, name: str, told_by: Path) -> Path:
    """A file beside another one that names it; ValueError where the name leads out of the folder.

    A link that lies in the folder may lead out of it: Hugging Face's cache is made of such, and whoever can make one
    could have put the file there as well.
    """
    parsed = PureWindowsPath(name)  # which knows the separators and the roots of all systems
    if not name or parsed.drive or parsed.root or ".." in parsed.parts or not name.isprintable():
        raise ValueError(f"{told_by} names the file {name[:200]!r}, which must lie within its own folder")
    path = folder / name
    with suppress(OSError):  # of a name that is longer than names can be
        if path.is_file():
            return path
    raise ValueError(f"{told_by} names the file {name[:200]!r}, which is not there")
