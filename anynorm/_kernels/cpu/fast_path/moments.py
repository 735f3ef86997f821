"""Moments of small NumPy arrays, from the second call on: a task that is known in place of check, choose and run."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy

from anynorm._check import Call
from anynorm._kernels.cpu.fast_path.functions import program_of
from anynorm._kernels.cpu.fast_path.kept import Kept, keep, known, table
from anynorm._kernels.cpu.kernels.task import Task
from anynorm._kernels.cpu.launch.layout import Layout
from anynorm._moments import Moments, may_keep, of_arrays

Array = Any


class _Reduction(NamedTuple):
    """What moments of arrays that lie alike have in common."""

    known: Kept
    shape: tuple[int, ...]  # of the numbers
    features: int


def quick_moments(x: Array, axis: int | tuple[int, ...]) -> Moments | None:
    """The moments of an ndarray with the bits of `run_moments`; None where no such call was made before."""
    if type(axis) is int:
        if not -x.ndim <= axis < x.ndim:
            return None
        axis = (axis % x.ndim,)
    kept: _Reduction | None = table.get(("moments", axis, x.shape, x.strides, x.dtype))
    if kept is None:
        return None
    numbers, program = numpy.empty(kept.shape), program_of("numpy")
    if program(kept.known.address, 0, 0, 0.0, 1.0, x, None, None, None, numbers, None, None, None) is None:
        return None
    return moments_of_numbers(numbers, kept.features)


def keep_moments(call: Call, kernel: int, task: Task, layout: Layout | None, numbers: Array) -> None:
    """Keep what later calls like this one need."""
    units, size = task.rows if layout is None else layout.units, math.prod(call.x.shape)
    kept = known(kernel, 0, units, size, task, None, layout, y="numbers")
    key = "moments", call.axes, call.x.shape, call.x.strides, call.x.dtype
    keep(key, _Reduction(kept, numbers.shape, int(task.features)))


def moments_of_numbers(numbers: Array, count: int) -> Moments:
    """Moments of what the kernel has left."""
    parts = [numbers[..., place] for place in range(numbers.shape[-1])]
    if len(parts) == 3:
        mean, low, squares = parts
        return may_keep(of_arrays(count, (mean, low, None, squares, None, None), numpy))
    mean, low, squares, squares_low, unit = parts
    return may_keep(of_arrays(count, (mean, low, None, squares, squares_low, unit), numpy))
