"""What an array in a file is like: the lengths of its rows, mean and deviation of its elements."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy

from anynorm._files.boxes import Box, Rows, cuts, groups, rows_of
from anynorm._files.job import ArrayJob
from anynorm._files.passes import visit
from anynorm._files.rows import lengths_of
from anynorm._files.sources import Advance, Entry, Source
from anynorm._moments import Moments, arrays_of, of_arrays
from anynorm._norms import moments

Array = Any

# Lengths are kept up to here, 8 bytes each, so that their median is exact; of more rows they are counted by size.
_EXACT_ROWS = 1 << 20
_BITS = 10  # of a length after its leading one, when they are counted: the median is then known to a thousandth
_PLACE = numpy.uint64(1 << 52 - _BITS)  # what the rest of its bits are a remainder of
# How far from 1 the length of a unit vector may be: rounding its elements makes it half an eps, forming the length they
# were divided by in the dtype itself some more.
_UNIT_OFF = 4.5
_EPS = {"float16": 2.0**-10, "bfloat16": 2.0**-7, "float32": 2.0**-23, "float64": 2.0**-52}


@dataclass(frozen=True)
class Shown(Entry):
    """An array of a file with its statistics; without, where ``why`` says so: all from ``rows`` on is None then."""

    axis: tuple[int, ...] = ()  # along which rows lie, none negative
    rows: int | None = None
    least: float | None = None  # length of a row, of those that are finite throughout; None: there are none
    median: float | None = None
    largest: float | None = None
    median_error: float | None = None  # what the median may be off by, relatively; 0: it is exact
    mean: float | None = None  # of all finite elements; None: there are none
    deviation: float | None = None
    unit_rows: int | None = None  # of length 1, as near as the dtype has it
    zero_rows: int | None = None
    not_finite_rows: int | None = None  # that hold NaN or Inf
    not_finite: int | None = None  # elements
    moments: Moments | None = None  # of each row, where the first axis is among those it lies along

    @property
    def unit(self) -> bool:
        """Whether the rows are unit vectors already, those of zeros left aside."""
        return bool(self.unit_rows) and self.unit_rows + (self.zero_rows or 0) == self.rows  # type: ignore[operator]

    def to_dict(self) -> dict[str, Any]:
        """Return what JSON can hold; the moments as `Moments.to_dict` writes them."""
        found = {name: getattr(self, name) for name in self.__dataclass_fields__}
        found |= {"shape": list(self.shape), "axis": list(self.axis), "unit": self.unit}
        return found | {"moments": None if self.moments is None else self.moments.to_dict()}


def show_array(entry: Entry, task: ArrayJob, source: Source, advance: Advance) -> Shown:
    """Read an array once."""
    axes = tuple(sorted(len(task.shape) - 1 - axis for axis in task.axes)) if task.reversed else task.axes
    whole = not cuts(source.ranges, task.axes)
    rows, elements, statistics = _Rows(task), _Elements(), _Pieces(task, kept=0 in axes)
    for group in groups(source.ranges, task.axes):

        def compute(box: Box, x: Array) -> None:
            nbytes = x.nbytes
            nulls = source.nulls.pop(box[0].start, None)
            if nulls is not None:
                x = x[~nulls]
            if x.size:
                finite = numpy.isfinite(x)
                elements.add(x, finite)
                part, bad = moments(x, axis=task.axes), ~finite.all(axis=task.axes)
                if whole:
                    rows.add(part, bad)
                if not whole or statistics.kept:
                    statistics.add(rows_of(box, task.axes), part, bad)
            advance(nbytes)

        visit(source, group, compute)
        if not whole:
            for part, bad in statistics.taken():
                rows.add(part, bad)
    found = statistics.joined()
    return Shown(
        entry.name, entry.shape, entry.dtype, entry.nbytes, None, axes, rows.count, *rows.lengths.found(),
        *elements.found(), rows.unit, rows.zero, rows.not_finite, elements.not_finite, found,
    )  # fmt: skip


class _Elements:
    """The moments of all finite elements so far."""

    def __init__(self) -> None:
        self.not_finite = 0
        self._moments: Moments | None = None

    def add(self, x: Array, finite: Array) -> None:
        kept = x.reshape(-1) if finite.all() else x[finite]
        self.not_finite += x.size - kept.size
        if kept.size:
            part = moments(kept)
            self._moments = part if self._moments is None else self._moments.merge(part)

    def found(self) -> tuple[float | None, float | None]:
        """Mean and deviation."""
        if self._moments is None:
            return None, None
        return float(self._moments.mean[0]), float(self._moments.std[0])


class _Rows:
    """How many rows there are of each kind so far, and how long they are."""

    def __init__(self, task: ArrayJob) -> None:
        self.count = self.unit = self.zero = self.not_finite = 0
        self.lengths = Lengths()
        self._off = _UNIT_OFF * _EPS[task.dtype.name]

    def add(self, part: Moments, bad: Array) -> None:
        self.count += bad.size
        self.not_finite += int(numpy.count_nonzero(bad))
        lengths = lengths_of(part).reshape(-1)[~bad.reshape(-1)]
        self.zero += int(numpy.count_nonzero(lengths == 0))
        self.unit += int(numpy.count_nonzero(numpy.abs(lengths - 1) <= self._off))
        self.lengths.add(lengths)


class _Pieces:
    """The moments of rows that boxes cut, and of all rows where those are asked for."""

    def __init__(self, task: ArrayJob, kept: bool) -> None:
        self.kept = kept
        self._task = task
        self._moments: dict[Rows, Moments] = {}
        self._bad: dict[Rows, Array] = {}

    def add(self, rows: Rows, part: Moments, bad: Array) -> None:
        there = rows in self._moments
        self._moments[rows] = self._moments[rows].merge(part) if there else part
        self._bad[rows] = self._bad[rows] | bad if there else bad

    def taken(self) -> list[tuple[Moments, Array]]:
        """What has been added since, which is forgotten unless it is kept."""
        found = [(part, self._bad[rows]) for rows, part in self._moments.items() if rows in self._bad]
        self._bad = {}
        if not self.kept:
            self._moments = {}
        return found

    def joined(self) -> Moments | None:
        """The moments of all rows, in the array's own order of axes."""
        if not self.kept or not self._moments:
            return None
        task, first = self._task, next(iter(self._moments.values()))
        shape = tuple(1 if axis in task.axes else length for axis, length in enumerate(task.shape))
        arrays = []
        for i, like in enumerate(arrays_of(first)):
            whole: Any = None if like is None else numpy.zeros(shape, like.dtype)
            for rows, part in self._moments.items() if whole is not None else ():
                at = iter(rows)
                box = tuple(slice(None) if axis in task.axes else slice(*next(at)) for axis in range(len(shape)))
                whole[box] = arrays_of(part)[i]
            arrays.append(whole.T if whole is not None and task.reversed else whole)
        return of_arrays(first.count, arrays, first.namespace)


class Lengths:
    """Lengths of rows: the least, the largest, and in bounded memory the median."""

    def __init__(self) -> None:
        self._least, self._largest = math.inf, -math.inf
        self._kept: list[Array] = []
        self._count = 0
        self._counts: Array = None  # of lengths that have the same leading bits
        self._sums: Array = None  # of the bits that follow, which lengths so alike are linear in

    def add(self, lengths: Array) -> None:
        """Take more of them, none NaN."""
        if not lengths.size:
            return
        self._least, self._largest = min(self._least, float(lengths.min())), max(self._largest, float(lengths.max()))
        self._count += lengths.size
        self._kept.append(lengths)
        if self._count > _EXACT_ROWS:
            self._sort_in()

    def _sort_in(self) -> None:
        if self._counts is None:  # of zeros that take no memory before they are written to
            self._counts, self._sums = numpy.zeros(2 << 10 + _BITS, int), numpy.zeros(2 << 10 + _BITS)
        for lengths in self._kept:
            places, following = numpy.divmod(lengths.view(numpy.uint64), _PLACE)
            numpy.add.at(self._counts, places, 1)
            numpy.add.at(self._sums, places, following)
        self._kept = []

    def found(self) -> tuple[float | None, float | None, float | None, float | None]:
        """The least, the median, the largest, and what the median may be off by."""
        if not self._count:
            return None, None, None, None
        ranks = (self._count - 1) // 2, self._count // 2
        if self._counts is None:
            lengths = numpy.partition(numpy.concatenate(self._kept), ranks)
            return self._least, _halfway(*(float(lengths[rank]) for rank in ranks)), self._largest, 0.0
        median = _halfway(*(self._about(rank) for rank in ranks))
        return self._least, min(max(median, self._least), self._largest), self._largest, 2.0**-_BITS

    def _about(self, rank: int) -> float:
        """The mean of the lengths that share the leading bits of the one of this rank."""
        place = int(numpy.searchsorted(numpy.cumsum(self._counts), rank, "right"))
        following = round(float(self._sums[place]) / int(self._counts[place]))
        return float(numpy.uint64(place * int(_PLACE) + following).view(numpy.float64))


def _halfway(low: float, high: float) -> float:
    """The number in the middle, where the sum of both may be out of range."""
    return low if low == high else low + (high - low) / 2
