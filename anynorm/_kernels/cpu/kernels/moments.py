"""Step 1 of the definition alone, row after row: what moments are made of is left in memory.

For each row that is a shift, the sum of deviations from it and the sum of their squares; of float64 the sums are pairs.
"""

from __future__ import annotations

from anynorm._kernels.cpu.compiler.jit import kernel
from anynorm._kernels.cpu.kernels.float64 import reduce_row as reduce_paired
from anynorm._kernels.cpu.kernels.rows import ROOMS_NBYTES, furnish, reduce_row
from anynorm._kernels.cpu.kernels.scatter import X, place, place_numbers
from anynorm._kernels.cpu.kernels.task import Task
from anynorm._kernels.cpu.language import buffer, cases, loop, peek, poke, traced
from anynorm._kernels.cpu.language.dtypes import LAYER, REDUCED, WIDE64, Address, Number, Tag


@traced
def _reduce(
    tag: Tag, first: int, last: int, rule: int, zero: Number, features: int, x: int, layout: Address, numbers: int,
    room: int,
) -> int:  # fmt: skip
    rooms = furnish(room)
    task = Task(
        rule, zero, zero, features, x, None, x, None, layout, 0, 0, 0, 0, zero, widened=False, direct=False,
        streaming=False,
    )  # fmt: skip
    for row in loop(first, last, 1):
        to = place_numbers(task, numbers, row, REDUCED)
        if tag is WIDE64:
            start = place(task, tag, X, row)
            for centred in cases(task.rule == LAYER):
                shift, sums = reduce_paired(task, rooms, start, None, centred)
                found = (shift, sums.sums, sums.sums_low, sums.squares, sums.squares_low)
                for number, one in enumerate(found):
                    poke(to + 8 * number, WIDE64, one)
        else:
            reduce_row(task, tag, WIDE64, rooms, row, 0)
            for number, one in enumerate((rooms.shifts, rooms.sums, rooms.squares)):
                poke(to + 8 * number, WIDE64, peek(one, None, WIDE64))
    return last


@kernel
def reduce_rows(tag, wide, first, last, rule, zero, features, x, layout, numbers):
    """Reduce rows first to last; return the last. ``numbers`` has room for REDUCED float64 numbers a row."""
    return _reduce(tag, first, last, rule, zero, features, x, layout, numbers, buffer(ROOMS_NBYTES))
