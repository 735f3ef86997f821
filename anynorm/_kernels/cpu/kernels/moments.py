"""Step 1 of the definition alone, row after row: what moments are made of is left in memory.

For each row that is a shift, the sum of deviations from it and the sum of their squares; of float64 the sums are pairs.
"""

from __future__ import annotations

from anynorm._kernels.cpu.kernels.float64 import reduce_row as reduce_float64
from anynorm._kernels.cpu.kernels.rows import reduce_row
from anynorm._kernels.cpu.kernels.scatter import numbers_address, row_of
from anynorm._kernels.cpu.kernels.task import Variant
from anynorm._kernels.cpu.kernels.values import load_task
from anynorm._kernels.cpu.language.dtypes import FLOAT64, REDUCED
from anynorm._kernels.cpu.language.flow import loop
from anynorm._kernels.cpu.language.memory import real, store_real


def reduce_rows(variant: Variant, address: int, first: int, last: int) -> int:
    """Reduce rows first to last; return the last. ``numbers`` becomes REDUCED of them a row."""
    task = load_task(address, variant)
    for row in loop(first, last, 1):
        to = numbers_address(task, row, REDUCED)
        if task.dtype is FLOAT64:
            shift, sums, squares = reduce_float64(task, row_of(task, row))
            for i, number in enumerate((shift, sums.high, sums.low, squares.high, squares.low)):
                store_real(to + 8 * i, number)
        else:
            reduce_row(task, row, 0)
            for i, numbers in enumerate((task.scratch.shifts, task.scratch.sums, task.scratch.squares)):
                store_real(to + 8 * i, real(numbers))
    return last
