"""Files rewritten in place: killed at any moment, the same command completes them, and no row is normalized twice."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any

import numpy

from anynorm._files.boxes import Box, Rows
from anynorm._files.job import Job, Task
from anynorm._files.journal import Journal, UnfinishedError, note_done, path_of_journal, read_head
from anynorm._files.locks import lock
from anynorm._files.nans import NanRows
from anynorm._files.passes import Advance, Sink, Statistics, normalize_array
from anynorm._files.raw import RawArray, RawFile, RawSource, as_bytes
from anynorm._moments import PARTS, Moments, arrays_of, of_arrays

Array = Any

# Larger than elsewhere, for each block waits for the disk three times.
BLOCK_NBYTES = 16 << 20
_ARRAYS = 1 + len(PARTS)  # that moments are kept as


def rewrites(file: RawFile, job: Job) -> bool:
    """Whether the result takes the place of the data, byte for byte."""
    return all(task.dtype == task.dtype_out for task in file.tasks(job).values())


def normalize_in_place(file: RawFile, job: Job, said: str, nans: NanRows, advance: Advance) -> None:
    """Normalize arrays of a file where they lie.

    ``said``: the command, which is told to whoever comes with another one before the file is complete.
    """
    path = file.path
    digest, tasks = job.digest(), file.tasks(job)
    with open(path, "r+b") as target, open(path, "rb", buffering=0) as source:
        if not lock(target):
            raise ValueError(f"{path} is being normalized in place by another process")
        head = read_head(path)
        if job.fails_on_nan and (head is None or head["finished"]):
            for array, task in _those_in(file, tasks):
                normalize_array(task, RawSource(source, array, task, BLOCK_NBYTES), _Nowhere(), NanRows(), _nothing)
        journal = Journal.begin(path, digest, said, BLOCK_NBYTES)
        sink = _JournaledSink(target, journal)
        try:
            with journal:
                sink.replay(nans)
                for array, task in _those_in(file, tasks):
                    raw = sink.source = RawSource(source, array, task, journal.block_nbytes)
                    normalize_array(task, raw, sink, nans, advance)
            note_done(path, digest, said)
        except (Exception, KeyboardInterrupt) as error:
            if sink.began:
                raise _unfinished(path, error) from error
            path_of_journal(path).unlink()
            raise


def _those_in(file: RawFile, tasks: dict[str, Task]) -> Iterator[tuple[RawArray, Task]]:
    return ((array, tasks[array.name]) for array in file.arrays if array.name in tasks)


def _nothing(nbytes: int) -> None:
    pass


class _Nowhere(Sink):
    """For a look at what would be written."""

    def write(self, box: Box, y: Array, nans: tuple[int, str]) -> None:
        """Leave it."""


class _JournaledSink(Sink):
    """Writes blocks into the file once they are in the journal."""

    def __init__(self, target: IO[bytes], journal: Journal) -> None:
        self.source: RawSource  # the array at work
        self._target = target
        self._journal = journal
        self._number = 0  # of the next block
        self.began = False  # whether anything of the file may be overwritten

    def replay(self, nans: NanRows) -> None:
        """Write the block again that a run before may have been stopped at, and go on behind it."""
        newest = self._journal.newest()
        if newest is None:
            return
        told, data = newest
        self.began = True
        self._put(told["start"], data)
        nans.count, nans.first = told["nans"]
        self.done = self._number = told["number"] + 1

    def write(self, box: Box, y: Array, nans: tuple[int, str]) -> None:
        """Keep a block in the journal, then write it."""
        start, data = self.source.start_of(box), as_bytes(y)
        self._journal.put(self._number, {"start": start, "nans": nans}, data)
        self.began = True
        self._put(start, data)
        self._number += 1

    def keep(self, statistics: Statistics) -> None:
        """Keep the statistics of rows whose blocks are the next to be written."""
        self._journal.put_statistics(self._number, [one for each in statistics.values() for one in _arrays_of(each)])

    def kept(self, rows: Iterable[Rows], boxes_done: int) -> Statistics:
        """Those that a run before has kept."""
        arrays = self._journal.statistics(self._number - boxes_done)
        each = [arrays[first : first + _ARRAYS] for first in range(0, len(arrays), _ARRAYS)]
        return dict(zip(rows, map(_moments_of, each), strict=True))

    def _put(self, start: int, data: memoryview) -> None:
        self._target.seek(start)
        self._target.write(data)
        self._target.flush()
        os.fsync(self._target.fileno())


def _arrays_of(statistics: Moments) -> list[Array]:
    """Moments as arrays, of which empty ones stand for None."""
    parts = arrays_of(statistics)
    return [numpy.asarray(statistics.count), *(numpy.empty(0) if part is None else part for part in parts)]


def _moments_of(arrays: Sequence[Array]) -> Moments:
    count, *parts = arrays
    return of_arrays(int(count), [part if part.size else None for part in parts], numpy)


def _unfinished(path: Path, error: BaseException) -> UnfinishedError:
    reason = getattr(error, "strerror", None) or str(error) or "interrupted"
    status = 130 if isinstance(error, KeyboardInterrupt) else 1
    return UnfinishedError(f"{reason}; {path} is half normalized, run the same command again to complete it", status)
