"""What an array in a file is like: the lengths of its rows, mean and deviation of its elements."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from anynorm._moments import Moments


@dataclass(frozen=True)
class Shown:
    """An array of a file. All from ``rows`` on is None where it has no statistics, and ``why`` says why."""

    name: str  # "" where the format has no names
    shape: tuple[int, ...]
    dtype: str
    nbytes: int  # of its elements, before compression
    why: str | None = None  # there are no statistics: say integers, text, a single number
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
