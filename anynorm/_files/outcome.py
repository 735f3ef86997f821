"""What a run has written, or would write."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from anynorm._files.job import ArrayJob
from anynorm._files.rows import RowCounts


@dataclass(frozen=True)
class Written:
    """A normalized array as it stands in the target."""

    name: str  # "" where the format has no names: .npy, and a .zarr folder that is one array
    shape: tuple[int, ...]
    dtype: str
    nbytes: int  # of its elements, before compression

    def to_dict(self) -> dict[str, Any]:
        """Return what JSON can hold."""
        return {"name": self.name, "shape": list(self.shape), "dtype": self.dtype, "nbytes": self.nbytes}


@dataclass(frozen=True)
class Outcome:
    """All of a run."""

    arrays: tuple[Written, ...]  # those normalized
    left: tuple[str, ...]  # other arrays of the source, which a target of another format does not hold
    counts: RowCounts

    @property
    def nbytes(self) -> int:
        """The size of the normalized arrays."""
        return sum(one.nbytes for one in self.arrays)

    def to_dict(self) -> dict[str, Any]:
        """Return what JSON can hold."""
        return {"arrays": [one.to_dict() for one in self.arrays], "left": list(self.left), **self.counts.to_dict()}


def written(name: str, task: ArrayJob) -> Written:
    """What becomes of an array."""
    shape = task.shape[::-1] if task.reversed else task.shape
    return Written(name, shape, str(task.dtype_out), math.prod(shape) * int(task.dtype_out.itemsize))
