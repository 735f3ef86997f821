"""Step 3 of the definition alone, row after row, with what step 2 has made of given moments.

For each row that is a shift, a factor and a constant, as in finish.py; of float64 the shift and the factor as pairs.
"""

from __future__ import annotations

from anynorm._kernels.cpu.kernels.chunks import apply_chunk, chunks_of
from anynorm._kernels.cpu.kernels.float64 import PairedFactors, apply_row, prepare_parameters
from anynorm._kernels.cpu.kernels.parameters import widen_parameters
from anynorm._kernels.cpu.kernels.scatter import X, Y, gather, is_gathered, place, place_numbers, scatter, target
from anynorm._kernels.cpu.kernels.streaming import flush, reset
from anynorm._kernels.cpu.kernels.task import Variant
from anynorm._kernels.cpu.kernels.values import TaskValues, load_task, word
from anynorm._kernels.cpu.language.dtypes import CHUNK, FINISHED, FLOAT64, LAYER, Number, lanes_of
from anynorm._kernels.cpu.language.lanes import cases, cell, fence, larger, loop, peek, when, where


def _apply_wide(task: TaskValues, row: int, numbers: list[Number]) -> None:
    """Apply a row of 16 or 32 bits, in float64, which has room for any factor."""
    (x, y), (shift, factor, constant) = (place(task, which, row) for which in (X, Y)), numbers[:3]
    ahead = where(is_gathered(task), 0, place(task, X, row + 1) - x)
    for start, count in chunks_of(task):
        for _ in when(task.widened & (count != task.features)):
            widen_parameters(task, start, count, task.weight_offset)
        apply_chunk(
            task, FLOAT64, gather(task, X, x, start, count, task.scratch.x), None,
            target(task, y, start, task.scratch.y), None,
            where(task.weight == 0, 0, task.scratch.weights), where(task.bias == 0, 0, task.scratch.biases),
            larger(count, lanes_of(task.dtype)), shift, factor, constant, ahead,
        )  # fmt: skip
        scatter(task, Y, y, start, count, task.scratch.y)


def _apply_float64(task: TaskValues, row: int, numbers: list[Number]) -> None:
    """Apply a row of float64."""
    x, y = (place(task, which, row) for which in (X, Y))
    for centred in cases(task.rule == LAYER):
        apply_row(task, row, x, None, y, None, PairedFactors(centred, *numbers))


def apply_rows(variant: Variant, address: int, first: int, last: int) -> int:
    """Apply the task's numbers, FINISHED of them a row, to rows first to last; return the last.

    That is -1 where weights of float64 are extreme.
    """
    task, numbers = load_task(address, variant), word(address, "numbers")
    # Shorter rows are put together in buffers.
    task = task._replace(
        direct=False, fetching=True, streaming=task.streaming & (task.features >= lanes_of(task.dtype))
    )
    following, safe = cell(-1), cell(True)
    if task.dtype is FLOAT64:
        safe[...] = prepare_parameters(task)
    else:
        for _ in when(task.widened & (task.features < CHUNK + lanes_of(task.dtype))):
            widen_parameters(task, 0, task.features, task.weight_offset)
    for _ in when(safe):
        following[...] = last
        reset(task.scratch.open_line)
        for row in loop(first, last, 1):
            at = place_numbers(task, numbers, row, FINISHED)
            of_row = [peek(at + 8 * number, None, FLOAT64) for number in range(FINISHED)]
            (_apply_float64 if task.dtype is FLOAT64 else _apply_wide)(task, row, of_row)
        for _ in when(task.streaming):
            flush(task.dtype, task.scratch.open_line)
            fence()
    return following
