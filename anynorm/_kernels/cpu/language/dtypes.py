"""Constants that the CPU kernels and their callers share; imports no compiler."""

from __future__ import annotations

import os
from typing import Any, NamedTuple

Number = Any  # a float64
Lanes = Any  # a vector of numbers
Address = Any  # an int, or None where there is nothing

# Kernels run as plain Python, for a debugger and to see which lines are run.
INTERPRETED = os.environ.get("ANYNORM_INTERPRET", "") not in ("", "0")

CACHE_LINE_NBYTES = 64
GROUP = 32  # rows at most that go through each step together
CHUNK = 1024  # features whose parameters are widened at a time
FINISHED = 4  # numbers that a row is applied with, see given.py
WIDEST_BLOCK = 256  # rows that are taken side by side
TILE_NBYTES = (CHUNK + 64) * CACHE_LINE_NBYTES  # a chunk of rows side by side; see block.py
TILES = 4  # parts of that for the arrays of a derivative


class Dtype(NamedTuple):
    """A dtype of elements in memory, or one that is computed in."""

    name: str
    code: int  # where it is known only when the kernel runs
    itemsize: int

    @property
    def lanes(self) -> int:
        """How many elements are taken at a time: as many as fill a cache line."""
        return CACHE_LINE_NBYTES // self.itemsize

    @property
    def reduced(self) -> int:
        """How many numbers a row is reduced to, see moments.py."""
        return 5 if self.itemsize == 8 else 3


FLOAT16, BFLOAT16 = Dtype("float16", 0, 2), Dtype("bfloat16", 1, 2)
FLOAT32, FLOAT64 = Dtype("float32", 2, 4), Dtype("float64", 3, 8)
BY_CODE = FLOAT16, BFLOAT16, FLOAT32, FLOAT64
CODES = {dtype.name: dtype.code for dtype in BY_CODE}

LAYER, RMS, SCALE = 0, 1, 2
RULES = {"layer_norm": LAYER, "rms_norm": RMS, "scale_norm": SCALE}
# What a convention says of a norm, see Rule in anynorm/_definition/norms.py.
INSIDE, OUTSIDE, FLOOR = 0, 1, 2
PLACES = {"inside": INSIDE, "outside": OUTSIDE, "floor": FLOOR}
ONCE, NORMALIZED, EACH = 0, 1, 2
# Which weight and bias a row has: those of all rows, those of its turn, a number of each, or its own, in x's dtype.
FOR_ALL, OF_TURN, NUMBERS, OF_ROW = 0, 1, 2, 3
ROUNDINGS = {"once": ONCE, "normalized": NORMALIZED, "each": EACH}
