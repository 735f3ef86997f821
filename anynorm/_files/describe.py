"""The statistics of an array in a file, over all of its finite elements."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy

from anynorm._files.boxes import Box, Rows, cuts, rows_of
from anynorm._files.job import Task
from anynorm._files.passes import Advance, Source, all_boxes, visit
from anynorm._moments import Moments
from anynorm._norms import moments

Array = Any


@dataclass(frozen=True)
class Description:
    """What `--moments` prints."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    moments: Moments | None  # of the finite elements; None: there are none
    not_finite: int  # elements
    nan_rows: int  # rows that hold such

    def lines(self) -> list[str]:
        """A line for each."""
        found = self.moments
        values = [] if found is None else [
            ("mean", found.mean), ("variance", found.variance), ("mean square", found.mean_square)
        ]  # fmt: skip
        return [
            f"{self.name}: {self.dtype} of shape {self.shape}",
            f"  count        {0 if found is None else found.count}",
            *[f"  {what:13}{float(value[0])!r}" for what, value in values],
            f"  not finite   {self.not_finite}, in rows: {self.nan_rows}",
        ]


def describe_array(task: Task, source: Source, advance: Advance) -> Description:
    """Read an array once."""
    found: Moments | None = None
    not_finite = nan_rows = 0
    cut = cuts(source.ranges, task.axes)
    bad: dict[Rows, Array] = {}  # which rows hold what is not finite, where boxes hold pieces of them

    def compute(box: Box, x: Array) -> None:
        nonlocal found, not_finite, nan_rows
        finite = numpy.isfinite(x)
        if finite.all():
            kept = x.reshape(-1)
        else:
            kept = x[finite]
            rows = ~finite.all(axis=task.axes)
            not_finite += x.size - kept.size
            if cut:
                key = rows_of(box, task.axes)
                bad[key] = bad[key] | rows if key in bad else rows
            else:
                nan_rows += int(numpy.count_nonzero(rows))
        if kept.size:
            part = moments(kept)
            found = part if found is None else found.merge(part)
        advance(x.nbytes)

    visit(source, all_boxes(source), compute)
    nan_rows += sum(int(numpy.count_nonzero(rows)) for rows in bad.values())
    shape = task.shape[::-1] if task.reversed else task.shape
    return Description(task.name, shape, str(task.dtype), found, not_finite, nan_rows)
