"""Moments of rows, as `layer_norm` has them, are left in memory: step 1 of the definition, row after row.

For each row that is the mean, what it lacks, and the sum of squared deviations from it; of float64 also what that sum
lacks, and the unit of the row.
"""

from __future__ import annotations

from anynorm._kernels.cpu.kernels.float64 import reduce_row as reduce_float64
from anynorm._kernels.cpu.kernels.pairs import PairSum, multiply_pairs, renormalize, two_sum
from anynorm._kernels.cpu.kernels.rows import reduce_row
from anynorm._kernels.cpu.kernels.scatter import numbers_address, row_of
from anynorm._kernels.cpu.kernels.task import Variant
from anynorm._kernels.cpu.kernels.units import find_in_units, size_of, unit_of_moments
from anynorm._kernels.cpu.kernels.values import TaskValues, load_task
from anynorm._kernels.cpu.language.arithmetic import fma, magnitude, number, where
from anynorm._kernels.cpu.language.dtypes import FLOAT64, Lanes
from anynorm._kernels.cpu.language.flow import cell, loop
from anynorm._kernels.cpu.language.memory import real, store_real

# Of rows whose unit is 1, or which are constant.
_LEAST_SQUARES, _MOST_SQUARES = 2.0**-400, 2.0**360
_LEAST_SHIFT, _MOST_SHIFT = 2.0**-200, 2.0**180


def reduce_rows(variant: Variant, address: int, first: int, last: int) -> int:
    """Reduce rows first to last to ``numbers``, as many as their dtype says; return the last."""
    task = load_task(address, variant)
    for row in loop(first, last, 1):
        to = numbers_address(task, row, task.dtype.reduced)
        if task.dtype is FLOAT64:
            _reduce_float64(task, row, to)
        else:
            reduce_row(task, row, 0)
            scratch = task.scratch
            _store(to, moments_of(task, *(real(one) for one in (scratch.shifts, scratch.sums, scratch.squares))))
    return last


def _reduce_float64(task: TaskValues, row: int, to: int) -> None:
    """Moments of a row: in the unit 1, or in another one where its magnitude is extreme."""
    unit, addresses = cell(1.0), row_of(task, row)

    def find(unit: Lanes) -> bool:
        *found, is_ordinary = paired_moments_of(task, *reduce_float64(task, addresses, unit))
        _store(to, (*found, unit))
        return is_ordinary

    find_in_units(unit, find, lambda: unit_of_moments(size_of(task, addresses)))


def _store(to: int, numbers: tuple[Lanes, ...]) -> None:
    for i, one in enumerate(numbers):
        store_real(to + 8 * i, one)


def moments_of(task: TaskValues, shift: Lanes, sums: Lanes, squares: Lanes) -> tuple[Lanes, Lanes, Lanes]:
    """The mean as a pair and the squares about it, of sums about a shift; of a row, or of rows side by side."""
    between = sums / number(task.features)
    squares = squares - sums * between
    # A row that is constant has no deviations, and rounding could leave less.
    return (*two_sum(shift, between), where(squares < 0.0, 0.0, squares))


def paired_moments_of(
    task: TaskValues, shift: Lanes, of_sums: PairSum, of_squares: PairSum
) -> tuple[Lanes, Lanes, Lanes, Lanes, Lanes]:
    """The mean and the squares about it as pairs; and whether the row needs no unit."""
    raw_sums, raw_squares = of_sums.high + 0.0, of_squares.high + 0.0
    is_constant = (raw_squares == 0.0) & (raw_sums == 0.0) & (magnitude(shift) > _LEAST_SHIFT)
    is_ordinary = (raw_squares > _LEAST_SQUARES) & (raw_squares < _MOST_SQUARES) | is_constant
    sums, squares = renormalize(raw_sums, of_sums.low + 0.0), renormalize(raw_squares, of_squares.low + 0.0)
    count = number(task.features)
    share = 1.0 / count
    between = multiply_pairs(sums, (share, fma(0.0 - share, count, number(1)) / count))
    high, low = two_sum(shift, between[0])
    mean = renormalize(high, low + between[1])
    of_shift = multiply_pairs(sums, between)
    high, low = two_sum(squares[0], -of_shift[0])
    squares = renormalize(high, low + (squares[1] - of_shift[1]))
    return (*mean, *squares, is_ordinary & (magnitude(shift) < _MOST_SHIFT))
