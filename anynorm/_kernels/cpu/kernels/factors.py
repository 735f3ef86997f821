"""Step 2 of the definition, for a group of rows: moments about a shift -> factor and constant.

x_hat is (x - shift) * factor + constant, where constant is -factor times what lies between mean and shift. So a mean
far from 0 costs nothing. Where factor and constant are split, x_hat is x * factor + constant.
"""

from __future__ import annotations

import math

from anynorm._kernels.cpu.kernels.values import TaskValues
from anynorm._kernels.cpu.language.arithmetic import number, root, rounded, splat, where
from anynorm._kernels.cpu.language.dtypes import FLOAT64, FLOOR, INSIDE, ONCE, OUTSIDE, SCALE, Lanes, Number
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
        factor, constant = _factor_of(task, squares), splat(0.0, FLOAT64, len(squares))
    else:
        between = sums / number(task.features)
        factor = _factor_of(task, _energy_of_deviations(task, sums, squares, between))
        constant = 0.0 - between * factor
    if task.splits_factors:
        # A constant row has no deviations at all, and x * factor + constant would leave noise of it.
        factor, constant = (where(squares > 0.0, value, 0.0) for value in (factor, constant))
    # Squares of finite numbers are finite here, so a row that holds NaN or Inf is one whose squares are not.
    return where(squares < math.inf, factor, math.nan), constant


def _energy_of_deviations(task: TaskValues, sums: Lanes, squares: Lanes, between: Lanes) -> Lanes:
    """The mean square about the mean; or the sum of squares, where eps is compared with lengths."""
    energy = squares - sums * between
    energy = energy if task.variant.eps_place == FLOOR else energy / number(task.features)
    return where(energy < 0.0, 0.0, energy)


def _factor_of(task: TaskValues, energy: Lanes) -> Lanes:
    """What rows are multiplied by; 0 for one of zeros, where eps is too small to divide by."""
    if task.variant.eps_place == INSIDE:
        energy = energy + task.eps
        return where(energy < _EMPTY_SQUARE, 0.0, 1.0 / _root_of(task, energy))
    length = _root_of(task, energy)
    length = length + task.eps if task.variant.eps_place == OUTSIDE else where(length < task.eps, task.eps, length)
    factor = where(length < _EMPTY_NORM, 0.0, _numerator(task) / length)
    # Infinity times a zero of the row would be NaN.
    factor = where(factor < _LARGEST, factor, _LARGEST)
    return where(factor > -_LARGEST, factor, -_LARGEST)


def _root_of(task: TaskValues, energy: Lanes) -> Lanes:
    found = root(energy)
    return rounded(found, task.dtype) if task.variant.rounds_root else found


def _numerator(task: TaskValues) -> Number:
    """How long rows are to be; for what is multiplied by more once it is rounded, 1."""
    if task.rule == SCALE:
        return task.scale if task.variant.rounding == ONCE else number(1)
    is_length = task.variant.eps_place == FLOOR and not task.variant.makes_unit_vectors
    return root(number(task.features)) if is_length else number(1)
