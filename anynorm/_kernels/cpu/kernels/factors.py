"""Step 2 of the definition, for a group of rows: moments about a shift -> factor and constant.

x_hat is (x - shift) * factor + constant, where constant is -factor times what lies between mean and shift. So a mean
far from 0 costs nothing. Where factor and constant are pairs, x_hat is x * factor + constant.
"""

from __future__ import annotations

import math

from anynorm._kernels.cpu.kernels.chunks import uses_pairs
from anynorm._kernels.cpu.kernels.values import TaskValues
from anynorm._kernels.cpu.language.dtypes import FLOAT64, SCALE, Lanes, Number
from anynorm._kernels.cpu.language.lanes import alike, cases, load, loop, number, root, store, where_less

# Below the first, a mean square is that of a row of zeros and of an eps too small to divide by; so is a norm below the
# second.
_EMPTY_SQUARE, _EMPTY_NORM = 2.0**-960, 1e-300
_LARGEST = 1.7976931348623157e308
_STEP = 4  # rows that share the latency of their roots and divisions; more would fill more registers than there are


def find_factors(task: TaskValues, count: int) -> None:
    """Turn shifts, sums and squares of so many rows into factors and constants."""
    for is_scale in cases(task.rule == SCALE):
        for i in loop(0, count * 8, _STEP * 8):
            shifts, sums, squares = (
                load(room + i, None, FLOAT64, FLOAT64, _STEP)
                for room in (task.scratch.shifts, task.scratch.sums, task.scratch.squares)
            )
            if is_scale:
                factor, constant = _factor_of_norm(squares, task.eps, task.scale), alike(0.0, squares)
            else:
                factor, constant = _factor_of_variance(sums, squares, number(task.features), task.eps)
            if uses_pairs(task.dtype, task.compute_dtype):
                # A constant row has no deviations at all, and x * factor + constant would leave noise of it.
                zero = alike(0.0, squares)
                factor, constant = (where_less(zero, squares, value, zero) for value in (factor, constant))
            # Squares of finite numbers are finite here, so a row that holds NaN or Inf is one whose squares are not.
            factor = where_less(squares, alike(math.inf, squares), factor, alike(math.nan, squares))
            if uses_pairs(task.dtype, task.compute_dtype):
                constant = constant - shifts * factor
            store(task.scratch.factors + i, FLOAT64, factor)
            store(task.scratch.constants + i, FLOAT64, constant)


def _factor_of_norm(squares: Lanes, eps: Number, scale: Number) -> Lanes:
    norm, least = root(squares), alike(eps, squares)
    norm = where_less(norm, least, least, norm)
    factor = where_less(norm, alike(_EMPTY_NORM, norm), alike(0.0, norm), alike(scale, norm) / norm)
    # Infinity times a zero of the row would be NaN.
    factor = where_less(factor, alike(_LARGEST, norm), factor, alike(_LARGEST, norm))
    return where_less(alike(-_LARGEST, norm), factor, factor, alike(-_LARGEST, norm))


def _factor_of_variance(sums: Lanes, squares: Lanes, count: Number, eps: Number) -> tuple[Lanes, Lanes]:
    zero, count = alike(0.0, sums), alike(count, sums)
    between = sums / count
    variance = (squares - sums * between) / count
    mean_square = where_less(variance, zero, zero, variance) + alike(eps, sums)
    factor = where_less(mean_square, alike(_EMPTY_SQUARE, sums), zero, alike(1.0, sums) / root(mean_square))
    return factor, zero - between * factor
