"""Arrays that lie in a file byte after byte, as those of .npy and .safetensors do: read, copied, written."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy

from anynorm._files.boxes import Box, cut_runs, cuts, shape_of, size_of
from anynorm._files.contents import chosen
from anynorm._files.job import Job, Task, dtype_named, fit
from anynorm._files.passes import Advance, normalize_array
from anynorm._files.rows import RowCounts
from anynorm._files.target import reserve

Array = Any

# So large that handing over takes no time, and so small that what is read is still in cache when it is computed, and
# the result when it is written: 2 GB in the page cache were computed and handed to the system in 0.9 to 1.4 s in blocks
# of 2 MB, 1.3 to 2.3 of 1 MB, 3.1 of 4 MB (stored past the cache by the kernels), 4 to 5 of 8 MB, with 32 MB of L3.
BLOCK_NBYTES = 2 << 20
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

    def tasks(self, job: Job) -> dict[str, Task]:
        """What is to be done to which array; ValueError or TypeError where the job does not fit."""
        names = chosen(job, [array.name for array in self.arrays], self.path)
        return {
            array.name: fit(
                job, str(self.path) if array.name == "" else array.name, array.shape, array.dtype,
                dtype_named(job.dtype) if job.dtype else array.dtype, array.in_reverse,
            )
            for array in self.arrays if array.name in names
        }  # fmt: skip


class RawSource:
    """An array of a file, to be read in runs; of a stream, in the order in which it comes."""

    def __init__(self, file: IO[bytes], array: RawArray, task: Task, stream: bool = False) -> None:
        self.ranges = cut_runs(task.shape, task.dtype.itemsize, BLOCK_NBYTES)
        # One is being read while another waits, one is computed, one is written while another waits.
        self.buffers = min(5, math.prod(map(len, self.ranges)))
        self.buffer_nbytes = min(array.nbytes, max(BLOCK_NBYTES, task.dtype.itemsize))
        self._file = file
        self._array = array
        self._task = task
        self._stream = stream

    def start_of(self, box: Box) -> int:
        """Where a box begins, in bytes from the begin of the file."""
        first = 0
        for part, length in zip(box, self._task.shape, strict=True):
            first = first * length + part.start
        return self._array.start + first * int(self._task.dtype.itemsize)

    def read(self, box: Box, buffer: Array) -> Array:
        """The elements of a box, in the buffer."""
        data = buffer[: size_of(box) * self._task.dtype.itemsize]
        if not self._stream:
            start = self._file.seek(self.start_of(box))
            if hasattr(os, "posix_fadvise"):
                os.posix_fadvise(self._file.fileno(), start + _AHEAD_NBYTES, len(data), os.POSIX_FADV_WILLNEED)
        fill(self._file, data)
        return data.view(self._task.dtype).reshape(shape_of(box))


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
    file: RawFile,
    source: IO[bytes],
    target: IO[bytes],
    job: Job,
    counts: RowCounts,
    advance: Advance,
    *,
    stream: bool,
    ours: bool,
) -> None:
    """Write a file's header and arrays, some of them normalized.

    ``stream``: the source is read from begin to end. ``ours``: the target is a new file, in which space is reserved.
    """  # fmt: skip
    tasks = file.tasks(job)
    target.write(file.header({name: task.dtype_out for name, task in tasks.items()}))
    if ours:
        reserve(target, sum(_nbytes_out(array, tasks.get(array.name)) for array in file.arrays))
    for array in file.arrays:
        if array.name in tasks:
            task = tasks[array.name]
            raw = RawSource(source, array, task, stream)
            if stream and cuts(raw.ranges, task.axes):
                raise ValueError("statistics along this --axis are taken before, which takes a file in place of -")
            normalize_array(task, raw, RawSink(target), counts, advance)
        else:
            _copy(source, target, array, advance)


def _nbytes_out(array: RawArray, task: Task | None) -> int:
    return array.nbytes if task is None else math.prod(array.shape) * int(task.dtype_out.itemsize)


def _copy(source: IO[bytes], target: IO[bytes], array: RawArray, advance: Advance) -> None:
    buffer = numpy.empty(min(BLOCK_NBYTES, array.nbytes), numpy.uint8)
    source.seek(array.start)
    for first in range(0, array.nbytes, BLOCK_NBYTES):
        part = buffer[: min(BLOCK_NBYTES, array.nbytes - first)]
        fill(source, part)
        target.write(part.data)
        advance(len(part))
