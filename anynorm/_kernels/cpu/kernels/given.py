"""Step 3 of the definition alone, row after row, with what step 2 has made of given moments.

For each row that is a shift, a factor and a constant, as in finish.py; of float64 the shift and the factor as pairs.
"""

from __future__ import annotations

from anynorm._kernels.cpu.kernels.chunks import apply_chunk, chunks_of
from anynorm._kernels.cpu.kernels.float64 import PairedFactors, apply_row, prepare_parameters
from anynorm._kernels.cpu.kernels.parameters import widen_parameters
from anynorm._kernels.cpu.kernels.rows import ROOMS_NBYTES, furnish
from anynorm._kernels.cpu.kernels.scatter import X, Y, gather, is_gathered, place, place_numbers, scatter, target
from anynorm._kernels.cpu.kernels.sweep import clear, settle
from anynorm._kernels.cpu.kernels.task import Variant
from anynorm._kernels.cpu.kernels.values import Rooms, TaskValues, values_of, word
from anynorm._kernels.cpu.language.dtypes import CHUNK, FINISHED, LAYER, WIDE64, Number, Tag, lanes_of
from anynorm._kernels.cpu.language.lanes import buffer, cases, cell, fence, larger, loop, peek, when, where


def _apply_wide(task: TaskValues, tag: Tag, rooms: Rooms, row: int, numbers: list[Number]) -> None:
    """Apply a row of 16 or 32 bits, in float64, which has room for any factor."""
    x, y = (place(task, tag, which, row) for which in (X, Y))
    ahead = where(is_gathered(task, tag), 0, place(task, tag, X, row + 1) - x)
    for start, count in chunks_of(task, tag):
        for _ in when(task.widened & (count != task.features)):
            widen_parameters(task, WIDE64, rooms, start, count, task.weight_offset)
        apply_chunk(
            task, tag, WIDE64, WIDE64, gather(task, tag, X, x, start, count, rooms.x), None,
            target(task, tag, y, start, rooms.y), None,
            where(task.weight == 0, 0, rooms.weights), where(task.bias == 0, 0, rooms.biases),
            larger(count, lanes_of(tag)), *numbers[:3], ahead, rooms.carry,
        )  # fmt: skip
        scatter(task, tag, Y, y, start, count, rooms.y)


def _apply_paired(task: TaskValues, tag: Tag, rooms: Rooms, row: int, numbers: list[Number]) -> None:
    """Apply a row of float64."""
    x, y = (place(task, tag, which, row) for which in (X, Y))
    for centred in cases(task.rule == LAYER):
        apply_row(task, rooms, row, x, None, y, None, PairedFactors(centred, *numbers))


def apply_rows(variant: Variant, task: int, first: int, last: int) -> int:
    """Apply the task's numbers, FINISHED of them a row, to rows first to last; return the last.

    That is -1 where weights of float64 are extreme.
    """
    tag, values, numbers = variant.dtypes[0], values_of(task, variant, False, False), word(task, "numbers")
    # Shorter rows are put together in buffers.
    values = values._replace(
        direct=False, fetching=True, streaming=values.streaming & (values.features >= lanes_of(tag))
    )
    rooms = furnish(buffer(ROOMS_NBYTES))
    following, safe = cell(-1), cell(True)
    if tag is WIDE64:
        safe[...] = prepare_parameters(values, rooms)
    else:
        for _ in when(values.widened & (values.features < CHUNK + lanes_of(tag))):
            widen_parameters(values, WIDE64, rooms, 0, values.features, values.weight_offset)
    for _ in when(safe):
        following[...] = last
        clear(rooms.carry)
        for row in loop(first, last, 1):
            at = place_numbers(values, numbers, row, FINISHED)
            of_row = [peek(at + 8 * number, None, WIDE64) for number in range(FINISHED)]
            (_apply_paired if tag is WIDE64 else _apply_wide)(values, tag, rooms, row, of_row)
        for _ in when(values.streaming):
            settle(tag, rooms.carry)
            fence()
    return following
