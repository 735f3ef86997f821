"""Which rows float32 holds: the factors, squares and parameters that are in its range, and rows without deviations."""

from __future__ import annotations

import math

from anynorm._kernels.cpu.kernels.chunks import chunks_of, is_flat_chunk
from anynorm._kernels.cpu.kernels.scatter import gather, row_of
from anynorm._kernels.cpu.kernels.turns import is_turn_safe
from anynorm._kernels.cpu.kernels.values import Arrays, TaskValues
from anynorm._kernels.cpu.language.arithmetic import is_false, magnitude, where
from anynorm._kernels.cpu.language.dtypes import FLOAT64, Lanes, Number
from anynorm._kernels.cpu.language.flow import cell, loop, when
from anynorm._kernels.cpu.language.memory import real, store_real


def count_safe(task: TaskValues, first: int, count: int, begin: int = 0) -> int:
    """How many rows of a group there are, from one on, before the first on which float32 would leave its range.

    ``first`` is the first row of the group, and ``begin`` how many of its rows are known.
    """
    if task.compute_dtype is FLOAT64:
        return count
    scratch, safe, ended = task.scratch, cell(begin), cell(False)
    for k in loop(begin, count, 1, ended):
        squares, factor, constant = (
            real(numbers + 8 * k) for numbers in (scratch.squares, scratch.factors, scratch.constants)
        )
        safe_row = cell(is_held(task, squares, factor, constant))
        if not task.splits_factors:
            for _ in when(squares == 0.0):
                safe_row[...] = _flatten(task, first + k, 8 * k)
        if task.takes_turns:
            safe_row[...] = safe_row & is_turn_safe(task, first + k)
        ended[...] = is_false(safe_row)
        safe[...] = where(safe_row, k + 1, safe)
    return safe


def is_held(task: TaskValues, squares: Lanes, factor: Lanes, constant: Lanes) -> bool:
    """Whether float32 holds a row, or which of rows side by side; of 16 bits none whose squares are 0 is held."""
    size = magnitude(factor)
    near_one = (size > 2.0**-60) & (size < 2.0**60)
    if task.splits_factors:
        near_one = (near_one & (magnitude(constant) < 2.0**20)) | (factor == 0.0)
        return where(squares < math.inf, near_one, True)  # rows that hold NaN or Inf come out as NaN
    return near_one & (squares > 2.0**-80) & (squares < 2.0**100)


def is_flat(task: TaskValues, row: Arrays, shift: Number) -> bool:
    """Whether a row has no deviations at all, rather than such as have squares of 0."""
    flat = cell(True)
    for start, count in chunks_of(task):
        flat[...] = flat & is_flat_chunk(task, gather(task, row, start, count), count, shift)
    return flat


def _flatten(task: TaskValues, row: int, offset: int) -> bool:
    """Whether a row is flat; it becomes one of zeros then."""
    flat = is_flat(task, row_of(task, row), real(task.scratch.shifts + offset))
    for numbers in (task.scratch.factors, task.scratch.constants):
        store_real(numbers + offset, where(flat, 0.0, real(numbers + offset)))
    return flat
