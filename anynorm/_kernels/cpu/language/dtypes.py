"""Constants that the CPU kernels and their callers share; imports no compiler."""

from __future__ import annotations

import os
from typing import Any

import numpy

Dtype = Any  # one of DTYPES
Number = Any  # a float64
Lanes = Any  # a vector of numbers
Address = Any  # an int, or None where there is nothing

# Kernels run as plain Python, for a debugger and to see which lines are run.
INTERPRETED = os.environ.get("ANYNORM_INTERPRET", "") not in ("", "0")

CACHE_LINE_NBYTES = 64
GROUP = 32  # rows at most that go through each step together
CHUNK = 1024  # features whose parameters are widened at a time
FEW_ROWS = 4  # below which it does not pay to widen the parameters beforehand
REDUCED = 5  # numbers that a row is reduced to, see reduce.py
FINISHED = 4  # numbers that a row is applied with, see apply.py
WIDEST_BLOCK = 256  # rows that are taken side by side

# A dtype as a number of which only the type counts. NumPy's own float16 is not used, for it has no bfloat16.
DTYPES = {
    "float16": numpy.uint16(0),
    "bfloat16": numpy.int16(0),
    "float32": numpy.float32(0),
    "float64": numpy.float64(0),
}
# The same where it is known only when the kernel runs.
CODES = {name: code for code, name in enumerate(DTYPES)}
BY_CODE = tuple(DTYPES.values())

LAYER, RMS, SCALE = 0, 1, 2
RULES = {"layer_norm": LAYER, "rms_norm": RMS, "scale_norm": SCALE}

FLOAT32, FLOAT64 = DTYPES["float32"], DTYPES["float64"]


def lanes_of(dtype: Dtype) -> int:
    """How many elements are taken at a time: as many as fill a cache line."""
    return CACHE_LINE_NBYTES // int(dtype.itemsize)
