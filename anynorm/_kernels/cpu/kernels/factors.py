"""Step 2 of the definition, for a group of rows: moments about a shift -> factor and constant.

x_hat is (x - shift) * factor + constant, where constant is -factor times what lies between mean and shift. So a mean
far from 0 costs nothing. Where factor and constant are split, x_hat is x * factor + constant.
"""

from __future__ import annotations

import math

from anynorm._kernels.cpu.kernels.values import TaskValues
from anynorm._kernels.cpu.language.arithmetic import number, root, splat, where
from anynorm._kernels.cpu.language.dtypes import FLOAT64, SCALE, Lanes
from anynorm._kernels.cpu.language.flow import loop
from anynorm._kernels.cpu.language.memory import load, store_real

# Below the first, a mean square is that of a row of zeros and of an eps too small to divide by; so is a norm below the
# second.
_EMPTY_SQUARE, _EMPTY_NORM = 2.0**-960, 1e-300
_LARGEST = 1.7976931348623157e308
_STEP = 4  # rows that share the latency of their roots and divisions; more would fill more registers than there are


def find_factors(task: TaskValues, count: int) -> None:
    """Turn shifts, sums and squares of so many rows into factors and constants."""
    scratch = task.scratch
    for i in loop(0, count * 8, _STEP * 8):
        shifts, sums, squares = (
            load(numbers + i, FLOAT64, lanes=_STEP) for numbers in (scratch.shifts, scratch.sums, scratch.squares)
        )
        factor, constant = factor_and_constant(task, sums, squares)
        if task.splits_factors:
            constant = constant - shifts * factor
        store_real(scratch.factors + i, factor)
        store_real(scratch.constants + i, constant)


def factor_and_constant(task: TaskValues, sums: Lanes, squares: Lanes) -> tuple[Lanes, Lanes]:
    """Those of rows side by side; eps may be lanes too."""
    if task.rule == SCALE:
        factor, constant = _factor_of_norm(task, squares), splat(0.0, FLOAT64, len(squares))
    else:
        factor, constant = _factor_of_variance(task, sums, squares)
    if task.splits_factors:
        # A constant row has no deviations at all, and x * factor + constant would leave noise of it.
        factor, constant = (where(squares > 0.0, value, 0.0) for value in (factor, constant))
    # Squares of finite numbers are finite here, so a row that holds NaN or Inf is one whose squares are not.
    return where(squares < math.inf, factor, math.nan), constant


def _factor_of_norm(task: TaskValues, squares: Lanes) -> Lanes:
    norm = root(squares)
    norm = where(norm < task.eps, task.eps, norm)
    factor = where(norm < _EMPTY_NORM, 0.0, task.scale / norm)
    # Infinity times a zero of the row would be NaN.
    factor = where(factor < _LARGEST, factor, _LARGEST)
    return where(factor > -_LARGEST, factor, -_LARGEST)


def _factor_of_variance(task: TaskValues, sums: Lanes, squares: Lanes) -> tuple[Lanes, Lanes]:
    count = number(task.features)
    between = sums / count
    variance = (squares - sums * between) / count
    mean_square = where(variance < 0.0, 0.0, variance) + task.eps
    factor = where(mean_square < _EMPTY_SQUARE, 0.0, 1.0 / root(mean_square))
    return factor, 0.0 - between * factor
