"""Step 1 of the definition: sums of deviations and of their squares, about a shift that is near the mean.

Of one row, or of as many side by side as there are lanes.
"""

from __future__ import annotations

from typing import Protocol

from anynorm._kernels.cpu.kernels.values import TaskValues
from anynorm._kernels.cpu.language.arithmetic import number
from anynorm._kernels.cpu.language.dtypes import FLOAT64, LAYER, Lanes
from anynorm._kernels.cpu.language.flow import cases, cell, loop
from anynorm._kernels.cpu.language.memory import store_real

# In float32 the square of what lies between shift and mean may be this part of the mean square about the shift.
_NEAR = 0.25


class _Rows(Protocol):
    """One row, of which all that is computed is numbers; or rows side by side, of which it is lanes."""

    zero: Lanes

    # The first element, and the mean of as many as there are lanes. That is rounded to the dtype of the rows, so that a
    # constant row has no deviations.
    def first(self) -> Lanes: ...
    def mean_of_first(self) -> Lanes: ...

    # The sums of deviations from a shift and of their squares; where there is none, 0 and that of squares.
    def sum_up(self, shift: Lanes | None) -> tuple[Lanes, Lanes]: ...

    # Another shift where the first one is far from the mean, rounded too; and whether none of them is.
    def moved(self, shift: Lanes, to: Lanes, is_far: Lanes) -> tuple[Lanes, bool]: ...


def is_far(sums: Lanes, squares: Lanes, between: Lanes) -> Lanes:
    """Whether the mean lies so far from the shift that float32 would lose the deviations from it."""
    return sums * between > squares * _NEAR


def reduce(task: TaskValues, rows: _Rows, offset: int) -> None:
    """Leave shift and sums in scratch, at an offset from those of the first row of a group."""

    def sum_up(shift: Lanes | None) -> tuple[Lanes, Lanes]:
        sums, squares = rows.sum_up(shift)
        store_real(task.scratch.shifts + offset, rows.zero if shift is None else shift)
        store_real(task.scratch.sums + offset, sums)
        store_real(task.scratch.squares + offset, squares)
        return sums, squares

    for centred in cases(task.rule == LAYER):
        if not centred:
            sum_up(None)
        elif task.statistics_dtype is FLOAT64:
            # Any element will do: none is further from the mean than sqrt(features) standard deviations (Samuelson
            # 1968, "How deviant can you be?"), and float64 has the bits to spare.
            sum_up(rows.first())
        else:
            shift, ended = cell(rows.mean_of_first()), cell(False)
            for _ in loop(0, 2, 1, ended):
                sums, squares = sum_up(shift)
                between = sums / number(task.features)
                shift[...], ended[...] = rows.moved(shift, shift + between, is_far(sums, squares, between))
