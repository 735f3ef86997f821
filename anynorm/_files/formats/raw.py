"""Arrays that lie in a file byte after byte, as those of .npy and .safetensors do: read, copied, written."""

from __future__ import annotations

import itertools
import math
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any

import numpy

from anynorm._files.boxes import Box, cut_runs, shape_of, size_of
from anynorm._files.contents import chosen
from anynorm._files.job import ArrayJob, Job, dtype_named, fit
from anynorm._files.passes import normalize_array, takes_statistics
from anynorm._files.rows import RowCounts
from anynorm._files.sources import Advance, Entry, Source
from anynorm._files.target import reserve

Array = Any

# So large that handing over takes no time, and so small that what is read is still in cache when it is computed, and
# the result when it is written: 2 GB in the page cache were computed and handed to the system in 0.9 to 1.4 s in blocks
# of 2 MB, 1.3 to 2.3 of 1 MB, 3.1 of 4 MB (stored past the cache by the kernels), 4 to 5 of 8 MB, with 32 MB of L3.
BLOCK_NBYTES = 2 << 20
# Of an array that is turned round on the way: the longer the pieces are that lie in the file, the better.
_TURNED_NBYTES = 32 << 20
# How far ahead the system is asked to read, which made 4 GB that were not in memory take 0.87 of the time.
_AHEAD_NBYTES = 32 << 20
# How much is written before the system is told that it can go to the disk: in four pairs of runs 4 GB, on disk when the
# command ended, took 0.78 to 0.92 of the time of leaving that to the end.
_SENT_NBYTES = 64 << 20


@dataclass(frozen=True)
class RawArray:
    """Where an array lies, in C order; ``in_reverse``: its transpose does."""

    name: str
    shape: tuple[int, ...]
    dtype: Any  # the name in the file, where NumPy has no such dtype
    start: int  # bytes from the begin of the file
    nbytes: int
    in_reverse: bool = False


@dataclass(frozen=True)
class RawFile:
    """A header, and arrays without gaps between them, in the order in which they lie."""

    path: Path
    arrays: tuple[RawArray, ...]
    header: Callable[[Mapping[str, Any]], bytes]  # for arrays of these dtypes


UNTYPED = "elements of two bytes without a type (|V2), as numpy.save writes bfloat16"


def is_untyped(dtype: Any) -> bool:
    """Whether elements may be bfloat16 as NumPy saves it."""
    return isinstance(dtype, numpy.dtype) and dtype.type is numpy.void and dtype.itemsize == 2 and dtype.names is None


class RawReader:
    """The arrays of a header, to be read from a file that is open; of a stream, in the order in which they come."""

    def __init__(self, header: RawFile, file: IO[bytes], stream: bool = False) -> None:
        self.header = header
        self.file = file
        self.stream = stream
        self.entries = [Entry(one.name, one.shape, str(one.dtype), one.nbytes) for one in header.arrays]

    @property
    def unnamed(self) -> bool:
        """Whether all it holds is an array without a name."""
        return [array.name for array in self.header.arrays] == [""]

    def left(self, sources: Mapping[str, tuple[ArrayJob, Source]]) -> list[str]:
        """The names of its other arrays."""
        return [array.name for array in self.header.arrays if array.name not in sources]

    def sources(self, job: Job, *, plain: bool) -> dict[str, tuple[ArrayJob, Source]]:
        """The arrays that a job is for."""
        names = chosen(job, [array.name for array in self.header.arrays], self.header.path)
        return {array.name: self._source(job, array, plain) for array in self.header.arrays if array.name in names}

    def _source(self, job: Job, array: RawArray, plain: bool) -> tuple[ArrayJob, Source]:
        name = str(self.header.path) if array.name == "" else array.name
        if is_untyped(array.dtype):
            if job.dtype is None:
                do = "normalize --dtype float32 reads them as that, --dtype bfloat16 too, for an OUT of .safetensors"
                raise ValueError(f"{name} holds {UNTYPED}; {do}")
            array = replace(array, dtype=dtype_named("bfloat16"))
        dtype_out = dtype_named(job.dtype) if job.dtype else array.dtype
        task = fit(job, name, array.shape, array.dtype, dtype_out, array.in_reverse and not plain)
        if array.in_reverse and plain:
            if self.stream:
                raise ValueError(f"{name} is in Fortran order; for another format name a file in place of -")
            return task, _TurnedSource(self.file, array)
        return task, RawSource(self.file, array, task, self.stream)


class RawSource:
    """An array of a file, to be read in runs; of a stream, in the order in which it comes."""

    def __init__(self, file: IO[bytes], array: RawArray, task: ArrayJob, stream: bool = False) -> None:
        self.ranges = cut_runs(task.shape, task.dtype.itemsize, BLOCK_NBYTES)
        # One is being read while another waits, one is computed, one is written while another waits.
        self.buffers = min(5, math.prod(map(len, self.ranges)))
        self.buffer_nbytes = min(array.nbytes, max(BLOCK_NBYTES, task.dtype.itemsize))
        self._file = file
        self._array = array
        self._task = task
        self.once = stream
        self.nulls: dict[int, Array] = {}

    def start_of(self, box: Box) -> int:
        """Where a box begins, in bytes from the begin of the file."""
        first = 0
        for part, length in zip(box, self._task.shape, strict=True):
            first = first * length + part.start
        return self._array.start + first * int(self._task.dtype.itemsize)

    def read(self, box: Box, buffer: Array) -> Array:
        """The elements of a box, in the buffer."""
        data = buffer[: size_of(box) * self._task.dtype.itemsize]
        if not self.once:
            start = self._file.seek(self.start_of(box))
            if hasattr(os, "posix_fadvise"):
                os.posix_fadvise(self._file.fileno(), start + _AHEAD_NBYTES, len(data), os.POSIX_FADV_WILLNEED)
        fill(self._file, data)
        return data.view(self._task.dtype).reshape(shape_of(box))


class _TurnedSource:
    """An array in Fortran order, to be read in runs of C order: many short pieces of the file each."""

    def __init__(self, file: IO[bytes], array: RawArray) -> None:
        self.ranges = cut_runs(array.shape, array.dtype.itemsize, _TURNED_NBYTES)
        self.buffers = min(3, math.prod(map(len, self.ranges)))
        self.buffer_nbytes = min(array.nbytes, max(_TURNED_NBYTES, array.dtype.itemsize))
        self.once = False
        self.nulls: dict[int, Array] = {}
        self._file = file
        self._array = array

    def read(self, box: Box, buffer: Array) -> Array:
        """The elements of a box, in the buffer."""
        itemsize, shape = int(self._array.dtype.itemsize), shape_of(box)
        data = buffer[: size_of(box) * itemsize]
        pieces = data.reshape(-1, max(1, shape[0] * itemsize))  # each lies in one piece in the file
        strides = [itemsize * math.prod(self._array.shape[:axis]) for axis in range(len(shape))]
        first = self._array.start + sum(part.start * stride for part, stride in zip(box, strides, strict=True))
        steps = itertools.product(*(range(length) for length in shape[:0:-1]))
        for piece, at in zip(pieces, steps, strict=True):
            self._file.seek(first + sum(i * stride for i, stride in zip(at, strides[:0:-1], strict=True)))
            fill(self._file, piece)
        return data.view(self._array.dtype).reshape(shape[::-1]).T


def fill(file: IO[bytes], data: Array) -> None:
    """Read as many bytes as there is room for; ValueError where a file ends before."""
    room, filled = memoryview(data), 0
    while filled < len(room):
        count = file.readinto(room[filled:])  # type: ignore[attr-defined]  # which IO does not tell of
        if not count:
            raise ValueError(f"{_name_of(file)} ends too early: it is cut off, or was cut while it was read")
        filled += count


def _name_of(file: IO[bytes]) -> str:
    return "standard input" if file.name in (0, "<stdin>") else file.name


class RawSink:
    """A file that is written from begin to end."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        on_disk = hasattr(os, "posix_fadvise") and file.seekable()
        self._sent: int | None = file.tell() if on_disk else None  # up to here the disk has been told to write

    def write(self, box: Box, y: Array) -> None:
        """Append a box, and have the disk begin with it now rather than with everything in the end."""
        # NumPy's own view has no name for bfloat16.
        self._file.write(memoryview(y.reshape(-1).view(numpy.uint8)))
        if self._sent is None:
            return
        end = self._file.tell()
        if end - self._sent >= _SENT_NBYTES:
            self._file.flush()
            os.posix_fadvise(self._file.fileno(), self._sent, end - self._sent, os.POSIX_FADV_DONTNEED)
            self._sent = end


def normalize_raw(
    reader: RawReader,
    sources: Mapping[str, tuple[ArrayJob, Source]],
    target: IO[bytes],
    counts: RowCounts,
    advance: Advance,
    *,
    ours: bool,
) -> None:
    """Write a file's header and arrays, some of them normalized.

    ``ours``: the target is a new file, in which space is reserved.
    """
    for task, source in sources.values():
        takes_statistics(task, source)  # raises before anything is written
    arrays = reader.header.arrays
    target.write(reader.header.header({name: task.dtype_out for name, (task, _) in sources.items()}))
    if ours:
        reserve(target, sum(nbytes_out(sources[one.name][0]) if one.name in sources else one.nbytes for one in arrays))
    for array in arrays:
        if array.name in sources:
            task, source = sources[array.name]
            normalize_array(task, source, RawSink(target), counts, advance)
        else:
            _copy(reader.file, target, array, advance)


def nbytes_out(task: ArrayJob) -> int:
    """The size of a result."""
    return math.prod(task.shape) * int(task.dtype_out.itemsize)


def _copy(source: IO[bytes], target: IO[bytes], array: RawArray, advance: Advance) -> None:
    buffer = numpy.empty(min(BLOCK_NBYTES, array.nbytes), numpy.uint8)
    source.seek(array.start)
    for first in range(0, array.nbytes, BLOCK_NBYTES):
        part = buffer[: min(BLOCK_NBYTES, array.nbytes - first)]
        fill(source, part)
        target.write(part.data)
        advance(len(part))
