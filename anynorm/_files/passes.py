"""One pass over an array whose boxes hold whole rows, two where they cut them, with moments between."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Protocol

import numpy

from anynorm._files.boxes import Box, Ranges, Rows, cuts, groups, rows_of, size_of
from anynorm._files.job import Task
from anynorm._files.overlap import overlap
from anynorm._files.rows import RowCounts
from anynorm._moments import Moments
from anynorm._norms import moments

Array = Any
Advance = Callable[[int], Any]
Statistics = dict[Rows, Moments]


class Source(Protocol):
    """An array in a file, of which boxes can be read."""

    ranges: Ranges
    buffers: int  # how many boxes may be in memory
    buffer_nbytes: int  # what `read` wants for each of them; 0: nothing

    def read(self, box: Box, buffer: Array) -> Array:
        """The elements of a box, in the buffer or elsewhere."""


class Sink(Protocol):
    """Where boxes of the result go, one after the other."""

    def write(self, box: Box, y: Array) -> None:
        """Write a box."""


def normalize_array(task: Task, source: Source, sink: Sink, counts: RowCounts, advance: Advance) -> None:
    """Normalize an array from a source into a sink."""
    together = groups(source.ranges, task.axes)
    if not cuts(source.ranges, task.axes):
        _write_boxes(task, source, sink, counts, advance, itertools.chain.from_iterable(together))
        return
    for group in together:
        statistics = _statistics_of(task, source, group, lambda nbytes: advance(nbytes // 2))
        for rows, found in statistics.items():
            counts.look_at_moments(task, rows, found)
        _write_boxes(task, source, sink, counts, lambda nbytes: advance(nbytes - nbytes // 2), group, statistics)


def all_boxes(source: Source) -> Iterator[Box]:
    """The boxes of an array, in C order."""
    return itertools.chain.from_iterable(groups(source.ranges, ()))


def visit(
    source: Source,
    boxes: Iterable[Box],
    compute: Callable[[Box, Array], Any],
    write: Callable[[Box, Any], Any] = lambda box, nothing: None,
) -> None:
    """Read each box, compute something of it, write that, all three at once."""
    buffers = [numpy.empty(source.buffer_nbytes, numpy.uint8) for _ in range(source.buffers)]
    overlap(boxes, source.read, compute, write, buffers)


def _write_boxes(
    task: Task,
    source: Source,
    sink: Sink,
    counts: RowCounts,
    advance: Advance,
    boxes: Iterable[Box],
    statistics: Statistics | None = None,
) -> None:
    def compute(box: Box, x: Array) -> Array:
        if statistics is None:
            counts.look_at_x(task, box, x)  # which may be written over
        y = task.normalize(box, x, None if statistics is None else statistics[rows_of(box, task.axes)])
        counts.look_at_y(task, box, y)
        advance(size_of(box) * task.dtype.itemsize)
        return numpy.ascontiguousarray(y)

    visit(source, boxes, compute, sink.write)


def _statistics_of(task: Task, source: Source, boxes: Iterable[Box], advance: Advance) -> Statistics:
    """The moments of each row, merged from those of its pieces."""
    found: Statistics = {}

    def compute(box: Box, x: Array) -> None:
        part, rows = moments(task.widened(x), axis=task.axes), rows_of(box, task.axes)
        found[rows] = found[rows].merge(part) if rows in found else part
        advance(size_of(box) * task.dtype.itemsize)

    visit(source, boxes, compute)
    return found
