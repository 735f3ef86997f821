"""Step 1 of the definition alone, row after row: what moments are made of is left in memory.

For each row that is a shift, the sum of deviations from it and the sum of their squares; of float64 the sums are pairs.
"""

from __future__ import annotations

from anynorm._kernels.cpu.kernels.float64 import reduce_row as reduce_float64
from anynorm._kernels.cpu.kernels.rows import reduce_row
from anynorm._kernels.cpu.kernels.scatter import X, place, place_numbers
from anynorm._kernels.cpu.kernels.task import Variant
from anynorm._kernels.cpu.kernels.values import load_task, word
from anynorm._kernels.cpu.language.dtypes import FLOAT64, LAYER, REDUCED
from anynorm._kernels.cpu.language.lanes import cases, loop, peek, poke


def reduce_rows(variant: Variant, address: int, first: int, last: int) -> int:
    """Reduce rows first to last; return the last. The task's numbers have room for REDUCED of them a row."""
    task, numbers = load_task(address, variant), word(address, "numbers")
    for row in loop(first, last, 1):
        to = place_numbers(task, numbers, row, REDUCED)
        if task.dtype is FLOAT64:
            start = place(task, X, row)
            for centred in cases(task.rule == LAYER):
                shift, sums = reduce_float64(task, start, None, centred)
                found = (shift, sums.sums, sums.sums_low, sums.squares, sums.squares_low)
                for number, one in enumerate(found):
                    poke(to + 8 * number, FLOAT64, one)
        else:
            reduce_row(task, row, 0)
            for number, one in enumerate((task.scratch.shifts, task.scratch.sums, task.scratch.squares)):
                poke(to + 8 * number, FLOAT64, peek(one, None, FLOAT64))
    return last
