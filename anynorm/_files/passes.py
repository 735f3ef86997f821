"""One pass over an array whose boxes hold whole rows, two where they cut them, with moments between."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy

from anynorm._files.boxes import Box, Rows, cuts, groups, rows_of, size_of
from anynorm._files.job import ArrayJob
from anynorm._files.pipeline import pipelined
from anynorm._files.rows import RowCounts
from anynorm._files.sources import Advance, Sink, Source
from anynorm._moments import Moments
from anynorm._norms import moments

Array = Any
RowMoments = dict[Rows, Moments]


def normalize_array(task: ArrayJob, source: Source, sink: Sink, counts: RowCounts, advance: Advance) -> None:
    """Normalize an array from a source into a sink."""
    together = groups(source.ranges, task.axes)
    if not takes_statistics(task, source):
        _write_boxes(task, source, sink, counts, advance, itertools.chain.from_iterable(together))
        return
    for group in together:
        statistics = moments_of_rows(task, source, group, counts, lambda nbytes: advance(nbytes // 2))
        _write_boxes(task, source, sink, counts, lambda nbytes: advance(nbytes - nbytes // 2), group, statistics)


def takes_statistics(task: ArrayJob, source: Source) -> bool:
    """Whether moments must be known before the first row can be written."""
    needed = task.moments is None and cuts(source.ranges, task.axes)
    if needed and source.once:
        raise ValueError("statistics along this --axis take a pass of their own; name a file in place of -")
    return needed


def moments_of_rows(
    task: ArrayJob, source: Source, boxes: Iterable[Box], counts: RowCounts, advance: Advance
) -> RowMoments:
    """The moments of each row, merged from those of its pieces."""
    found: RowMoments = {}

    def compute(box: Box, x: Array) -> None:
        part, rows = moments(task.widened(x), axis=task.axes), rows_of(box, task.axes)
        found[rows] = found[rows].merge(part) if rows in found else part
        advance(size_of(box) * task.dtype.itemsize)

    visit(source, boxes, compute)
    for rows, one in found.items():
        counts.look_at_moments(task, rows, one)
    return found


def normalized(task: ArrayJob, box: Box, x: Array, counts: RowCounts, statistics: RowMoments | None) -> Array:
    """The result for a box, in C order; x may be written over."""
    if not x.size:
        return x.astype(task.dtype_out)
    if statistics is None:
        counts.look_at_x(task, box, x)
    y = task.normalize(box, x, None if statistics is None else statistics[rows_of(box, task.axes)])
    counts.look_at_y(task, box, y)
    return numpy.ascontiguousarray(y)


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
    pipelined(boxes, source.read, compute, write, buffers, endless=source.once)


def _write_boxes(
    task: ArrayJob,
    source: Source,
    sink: Sink,
    counts: RowCounts,
    advance: Advance,
    boxes: Iterable[Box],
    statistics: RowMoments | None = None,
) -> None:
    def compute(box: Box, x: Array) -> Array:
        y = normalized(task, box, x, counts, statistics)
        advance(size_of(box) * task.dtype.itemsize)
        return y

    visit(source, boxes, compute, sink.write)
