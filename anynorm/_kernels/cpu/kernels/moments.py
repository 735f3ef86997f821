"""Step 1 of the definition alone, row after row: what moments are made of is left in memory.

For each row that is a shift, the sum of deviations from it and the sum of their squares; of float64 the sums are pairs.
"""

from __future__ import annotations

from anynorm._kernels.cpu.kernels.float64 import reduce_row as reduce_float64
from anynorm._kernels.cpu.kernels.rows import ROOMS_NBYTES, furnish, reduce_row
from anynorm._kernels.cpu.kernels.scatter import X, place, place_numbers
from anynorm._kernels.cpu.kernels.task import Variant
from anynorm._kernels.cpu.kernels.values import values_of, word
from anynorm._kernels.cpu.language.dtypes import LAYER, REDUCED, WIDE64
from anynorm._kernels.cpu.language.lanes import buffer, cases, loop, peek, poke


def reduce_rows(variant: Variant, task: int, first: int, last: int) -> int:
    """Reduce rows first to last; return the last. The task's numbers have room for REDUCED of them a row."""
    tag, values, numbers = variant.dtypes[0], values_of(task, variant, False, False), word(task, "numbers")
    rooms = furnish(buffer(ROOMS_NBYTES))
    for row in loop(first, last, 1):
        to = place_numbers(values, numbers, row, REDUCED)
        if tag is WIDE64:
            start = place(values, tag, X, row)
            for centred in cases(values.rule == LAYER):
                shift, sums = reduce_float64(values, rooms, start, None, centred)
                found = (shift, sums.sums, sums.sums_low, sums.squares, sums.squares_low)
                for number, one in enumerate(found):
                    poke(to + 8 * number, WIDE64, one)
        else:
            reduce_row(values, tag, WIDE64, rooms, row, 0)
            for number, one in enumerate((rooms.shifts, rooms.sums, rooms.squares)):
                poke(to + 8 * number, WIDE64, peek(one, None, WIDE64))
    return last
