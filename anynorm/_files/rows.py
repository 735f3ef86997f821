"""Rows of which the user is told: those that hold NaN or Inf, and those that scale_norm leaves short."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy

from anynorm._definition.merging import sum_of_squares
from anynorm._files.boxes import Box, Rows
from anynorm._files.job import ArrayJob
from anynorm._moments import Moments, statistics_of

Array = Any


@dataclass
class _Tally:
    """How many rows of a kind there are so far, and where the first of them is."""

    count: int = 0
    first: str = ""
    unit: str = "row"

    def add(self, task: ArrayJob, starts: Sequence[int], found: Array) -> None:
        """Count the true ones of rows, or elements, that begin there."""
        if not found.any():
            return
        if not self.count:
            at = numpy.argwhere(numpy.atleast_1d(found))[0]
            self.first = _described(self.unit, task, [int(i) + start for i, start in zip(at, starts, strict=False)])
        self.count += int(numpy.count_nonzero(found))


@dataclass
class RowCounts:
    """The rows of a file of which the user is told, so far."""

    nan: _Tally = field(default_factory=_Tally)
    zero: _Tally = field(default_factory=_Tally)  # this and the next: of scale_norm alone
    short: _Tally = field(default_factory=_Tally)
    # Elements that are not finite, where given moments leave the others of their rows alone.
    elements: _Tally = field(default_factory=lambda: _Tally(unit="element"))
    eps: float = 0.0

    def look_at_x(self, task: ArrayJob, box: Box, x: Array) -> None:
        """Count the rows without a length, or with less than eps, of a block of whole rows."""
        if task.job.norm != "scale_norm" or task.moments is not None:
            return
        # A row is at least as long as any of its elements, so that most rows need no more than one, and most others no
        # more than the largest.
        least = max(task.job.eps, 5e-324)
        first = x[tuple(0 if axis in task.axes else slice(None) for axis in range(x.ndim))].astype(numpy.float64)
        maybe = ~(numpy.abs(first) >= least)
        if not maybe.any():
            return
        last = range(x.ndim - len(task.axes), x.ndim)
        rows = numpy.moveaxis(x, task.axes, last).reshape(*first.shape, -1)[maybe]
        largest = numpy.abs(rows).max(axis=-1).astype(numpy.float64)
        near = ~(largest >= least)
        lengths, found = numpy.full(first.shape, numpy.inf), numpy.full(largest.shape, numpy.inf)
        found[near] = _lengths_of(rows[near].astype(numpy.float64), largest[near])
        lengths[maybe] = found
        self._count_short(task, [box[axis].start for axis in _free(task)], lengths)

    def look_at_moments(self, task: ArrayJob, rows: Rows, moments: Moments) -> None:
        """The same of rows that blocks cut."""
        if task.job.norm != "scale_norm":
            return
        self._count_short(task, [start for start, _ in rows], lengths_of(moments).squeeze(task.axes))

    def look_at_y(self, task: ArrayJob, box: Box, y: Array) -> None:
        """Count the rows of NaN in a block of the result; ValueError where the job is to fail on them."""
        if task.moments is not None:
            self.elements.add(task, [part.start for part in box], ~numpy.isfinite(y))
            self._fail_on_nan(task, self.elements)
            return
        probe = _probe(task)
        if not all(box[axis].start <= probe[axis] < box[axis].stop for axis in task.axes):
            return  # another piece of the same rows tells
        at = tuple(probe[axis] - box[axis].start if axis in probe else slice(None) for axis in range(y.ndim))
        self.nan.add(task, [box[axis].start for axis in _free(task)], numpy.isnan(y[at]))
        self._fail_on_nan(task, self.nan)

    def _fail_on_nan(self, task: ArrayJob, tally: _Tally) -> None:
        if tally.count and task.job.fails_on_nan:
            is_row = tally is self.nan
            what = "holds NaN or Inf" if is_row else "is NaN or Inf"
            do = "makes such rows NaN throughout" if is_row else "writes it"
            raise ValueError(f"{tally.first} {what}; --on-nan keep {do}")

    def add(self, other: RowCounts) -> None:
        """Count the rows of another file too."""
        self.eps = other.eps
        for ours, theirs in (
            (self.nan, other.nan), (self.zero, other.zero), (self.short, other.short), (self.elements, other.elements)
        ):  # fmt: skip
            ours.count += theirs.count
            ours.first = ours.first or theirs.first

    def phrases(self) -> list[str]:
        """Words for the user for each kind of which there are some."""
        kinds = (
            (self.nan, "with NaN or Inf"),
            (self.zero, "of zeros"),
            (self.short, f"shorter than --eps {self.eps!r}"),
            (self.elements, "of NaN or Inf in the result"),
        )
        return [
            f"1 {tally.unit} {kind} ({tally.first})" if tally.count == 1 else
            f"{tally.count:,} {tally.unit}s {kind} (the first is {tally.first})"
            for tally, kind in kinds if tally.count
        ]  # fmt: skip

    def to_dict(self) -> dict[str, int]:
        """Return the numbers; of elements, where moments are given."""
        return {
            "nan_rows": self.nan.count,
            "zero_rows": self.zero.count,
            "short_rows": self.short.count,
            "nan_elements": self.elements.count,
        }

    def _count_short(self, task: ArrayJob, starts: Sequence[int], lengths: Array) -> None:
        self.eps = task.job.eps
        self.zero.add(task, starts, lengths == 0)
        self.short.add(task, starts, (lengths > 0) & (lengths < self.eps))


def lengths_of(moments: Moments) -> Array:
    """The lengths of rows, in float64; normalized axes are kept with length 1."""
    with numpy.errstate(all="ignore"):
        found = statistics_of(moments)
        scaled, unit = numpy.sqrt(sum_of_squares(numpy, found)[0].astype(numpy.float64)), found.unit
        lengths: Array = scaled if unit is None else scaled / unit
    return lengths


def _lengths_of(rows: Array, largest: Array) -> Array:
    """The lengths of rows whose largest magnitudes are known, however small their squares would be."""
    with numpy.errstate(all="ignore"):  # of rows with NaN or Inf, which are not short
        scaled = rows / numpy.where(largest > 0, largest, 1.0)[:, None]
        lengths: Array = largest * numpy.sqrt((scaled * scaled).sum(axis=-1))
    return lengths


def _free(task: ArrayJob) -> list[int]:
    """The axes that are not normalized."""
    return [axis for axis in range(len(task.shape)) if axis not in task.axes]


def _probe(task: ArrayJob) -> dict[int, int]:
    """A place in each row, by axis, where finite parameters leave the row's NaN alone."""
    finite: Any = True
    for parameter in (task.weight, task.bias):
        if isinstance(parameter, numpy.ndarray):
            finite = numpy.isfinite(parameter) & finite
    place = numpy.unravel_index(int(numpy.argmax(finite)), numpy.shape(finite)) if numpy.ndim(finite) else None
    return {axis: int(place[i]) if place is not None else 0 for i, axis in enumerate(task.axes)}


def _described(unit: str, task: ArrayJob, row: list[int]) -> str:
    row = row[::-1] if task.reversed else row
    if not row:
        return f"the only {unit} of {task.name}"
    return f"{unit} {row[0] if len(row) == 1 else tuple(row)} of {task.name}"
