"""One pass over an array whose boxes hold whole rows, two where they cut them, with moments between."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Protocol

import numpy

from anynorm._files.boxes import Box, Ranges, Rows, cuts, groups, rows_of, size_of
from anynorm._files.job import Task
from anynorm._files.nans import NanRows
from anynorm._files.overlap import overlap
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


class Sink:
    """Where boxes of the result go, one after the other; this one knows nothing of a run before."""

    done = 0  # boxes that a run before has written, of the arrays still to come

    def write(self, box: Box, y: Array, nans: tuple[int, str]) -> None:
        """Write a box; ``nans``: count and place of rows that are NaN, up to this one."""
        raise NotImplementedError

    def keep(self, statistics: Statistics) -> None:
        """Keep the statistics of rows of which no box is written yet."""

    def kept(self, rows: Iterable[Rows], boxes_done: int) -> Statistics:
        """The statistics that a run before has kept, of rows of which that many boxes are written."""
        raise NotImplementedError


def normalize_array(task: Task, source: Source, sink: Sink, nans: NanRows, advance: Advance) -> None:
    """Normalize an array from a source into a sink."""
    together = groups(source.ranges, task.axes)
    if not cuts(source.ranges, task.axes):
        boxes = itertools.chain.from_iterable(together)
        _write_boxes(task, source, sink, nans, advance, _after_those_done(boxes, sink))
        return
    for group in together:
        remaining = list(_after_those_done(group, sink))
        if not remaining:
            continue
        if len(remaining) == len(group):
            statistics = _statistics_of(task, source, group, lambda nbytes: advance(nbytes // 2))
            sink.keep(statistics)
        else:
            rows = dict.fromkeys(rows_of(box, task.axes) for box in group)
            statistics = sink.kept(rows, len(group) - len(remaining))
        _write_boxes(task, source, sink, nans, lambda nbytes: advance(nbytes - nbytes // 2), remaining, statistics)


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


def _after_those_done(boxes: Iterable[Box], sink: Sink) -> Iterator[Box]:
    for box in boxes:
        if sink.done:
            sink.done -= 1
        else:
            yield box


def _write_boxes(
    task: Task,
    source: Source,
    sink: Sink,
    nans: NanRows,
    advance: Advance,
    boxes: Iterable[Box],
    statistics: Statistics | None = None,
) -> None:
    def compute(box: Box, x: Array) -> tuple[Array, tuple[int, str]]:
        y = task.normalize(box, x, None if statistics is None else statistics[rows_of(box, task.axes)])
        nans.look(task, box, y)
        advance(size_of(box) * task.dtype.itemsize)
        return numpy.ascontiguousarray(y), (nans.count, nans.first)

    visit(source, boxes, compute, lambda box, result: sink.write(box, *result))


def _statistics_of(task: Task, source: Source, boxes: Iterable[Box], advance: Advance) -> Statistics:
    """The moments of each row, merged from those of its pieces."""
    found: Statistics = {}

    def compute(box: Box, x: Array) -> None:
        part, rows = moments(task.widened(x), axis=task.axes), rows_of(box, task.axes)
        found[rows] = found[rows].merge(part) if rows in found else part
        advance(size_of(box) * task.dtype.itemsize)

    visit(source, boxes, compute)
    return found
