"""Step 3 of the definition alone, row after row, with what step 2 has made of given moments.

For each row that is a shift, a factor and a constant, as in factors.py; of float64 the shift as a pair, a factor, and a
unit, which is 0 where the row has none.
"""

from __future__ import annotations

from anynorm._kernels.cpu.kernels import float64, rows
from anynorm._kernels.cpu.kernels.task import Variant
from anynorm._kernels.cpu.kernels.values import load_task
from anynorm._kernels.cpu.language.dtypes import FLOAT64


def apply_rows(variant: Variant, address: int, first: int, last: int) -> int:
    """Apply ``numbers``, FINISHED of them a row, to rows first to last; return the last."""
    task = load_task(address, variant)
    normalize_all = (float64 if task.dtype is FLOAT64 else rows).normalize_all
    return normalize_all(task, first, last, given=True)
