"""Rows that hold NaN or Inf, and so are NaN in the result: counted, reported, or refused."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy

from anynorm._files.boxes import Box
from anynorm._files.job import Task

Array = Any


@dataclass
class NanRows:
    """How many rows of a file are NaN so far, and where the first of them is."""

    count: int = 0
    first: str = ""

    def look(self, task: Task, box: Box, y: Array) -> None:
        """Count those of a block of the result; ValueError where the job is to fail on them."""
        probe = _probe(task)
        if not all(box[axis].start <= probe[axis] < box[axis].stop for axis in task.axes):
            return  # another piece of the same rows tells
        at = tuple(probe[axis] - box[axis].start if axis in probe else slice(None) for axis in range(y.ndim))
        found = numpy.isnan(y[at])
        if not found.any():
            return
        if not self.count:
            free = [part.start for axis, part in enumerate(box) if axis not in probe]
            row = [int(i[0]) + start for i, start in zip(numpy.nonzero(numpy.atleast_1d(found)), free, strict=False)]
            self.first = _described(task, row)
        self.count += int(numpy.count_nonzero(found))
        if task.job.fails_on_nan:
            raise ValueError(f"{self.first} holds NaN or Inf; --on-nan keep makes such rows NaN throughout")

    def report(self) -> str:
        """A sentence for the user."""
        rows = "1 row holds NaN or Inf and is" if self.count == 1 else f"{self.count} rows hold NaN or Inf and are"
        return f"{rows} NaN throughout, the first is {self.first}"


def _probe(task: Task) -> dict[int, int]:
    """A place in each row, by axis, where finite parameters leave the row's NaN alone."""
    finite: Any = True
    for parameter in (task.weight, task.bias):
        if isinstance(parameter, numpy.ndarray):
            finite = numpy.isfinite(parameter) & finite
    place = numpy.unravel_index(int(numpy.argmax(finite)), numpy.shape(finite)) if numpy.ndim(finite) else None
    return {axis: int(place[i]) if place is not None else 0 for i, axis in enumerate(task.axes)}


def _described(task: Task, row: list[int]) -> str:
    row = row[::-1] if task.reversed else row
    if not row:
        return f"the only row of {task.name}"
    return f"row {row[0] if len(row) == 1 else tuple(row)} of {task.name}"
