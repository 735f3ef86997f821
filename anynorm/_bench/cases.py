"""What a benchmark compares: a norm of an array, and who is timed against whom.

A contest is one case for one anynorm call and those rivals that do the same work: fresh results against fresh results,
results in a given buffer against results in a given buffer, torch tensors against torch tensors.
"""

from __future__ import annotations

import math
from typing import NamedTuple

EPS = {"layer_norm": 1e-5, "rms_norm": 1e-6, "scale_norm": 1e-12}
NBYTES = {"float16": 2, "bfloat16": 2, "float32": 4, "float64": 8}
LAYERS = 12  # of the model whose gradient is taken


class Case(NamedTuple):
    """One norm of one array; weight, and for layer_norm bias, have the array's dtype.

    ``of`` is "y", "dx" for the norm and its derivative together, or "model" for those of twelve layers of it. The
    numbers have the standard deviation ``size`` and a mean of so many of it.
    """

    norm: str
    dtype: str
    shape: tuple[int, ...]
    axis: int = -1
    of: str = "y"
    mean: float = 0.0
    size: float = 1.0
    has_eps: bool = True

    @property
    def features(self) -> int:
        return self.shape[self.axis]

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * NBYTES[self.dtype]

    @property
    def eps(self) -> float:
        return EPS[self.norm] if self.has_eps else 0.0

    def __str__(self) -> str:
        axis = "" if self.axis == -1 else f" axis={self.axis}"
        of = {"y": "", "dx": " forward and backward", "model": f" {LAYERS} layers forward and backward"}[self.of]
        return f"{self.norm} {self.dtype} {'x'.join(map(str, self.shape))}{axis}{of}"


class Contest(NamedTuple):
    """An anynorm call, the baseline, and the rivals timed beside it."""

    name: str
    case: Case
    baseline: str
    rivals: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.case} [{self.name}]"
