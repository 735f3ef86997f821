"""Moments of small NumPy arrays, from the second call on: a task that is known in place of check, choose and run."""

from __future__ import annotations

from collections.abc import Callable
from ctypes import addressof
from typing import Any, NamedTuple

import numpy

from anynorm._check import Call
from anynorm._kernels.cpu.kernels.task import Task
from anynorm._kernels.cpu.launch.layout import Layout
from anynorm._libraries.numpy_arrays import NumPy
from anynorm._moments import Moments, may_keep, of_arrays

Array = Any

_MOST_PLANS = 1000


class _Plan(NamedTuple):
    """What moments of arrays that lie alike have in common."""

    run: Callable[[int, int, int], int]  # the kernel: the address of a task, first, last
    task: Task  # without addresses of arrays; each call copies it
    units: int
    shape: tuple[int, ...]  # of the numbers
    features: int
    layout: Layout | None  # which the task has an address of


_plans: dict[tuple[Any, ...], _Plan] = {}


def quick_moments(x: Array, axis: int | tuple[int, ...]) -> Moments | None:
    """The moments of an ndarray with the bits of `run_moments`; None where no such call was made before."""
    if type(axis) is int:
        if not -x.ndim <= axis < x.ndim:
            return None
        axis = (axis % x.ndim,)
    plan = _plans.get((axis, x.shape, x.strides, x.dtype))
    if plan is None:
        return None
    numbers, task = numpy.empty(plan.shape), Task.from_buffer_copy(plan.task)
    task.x, task.numbers = NumPy.address(x), NumPy.address(numbers)
    plan.run(addressof(task), 0, plan.units)
    return moments_of_numbers(numbers, plan.features)


def keep(call: Call, run: Callable[[int, int, int], int], task: Task, layout: Layout | None, numbers: Array) -> None:
    """Keep what later calls like this one need."""
    held = Task.from_buffer_copy(task)
    held.x = held.numbers = 0
    units = task.rows if layout is None else layout.units
    if len(_plans) >= _MOST_PLANS:
        _plans.clear()  # a call that goes by one of them holds it
    key = call.axes, call.x.shape, call.x.strides, call.x.dtype
    _plans[key] = _Plan(run, held, units, numbers.shape, int(task.features), layout)


def moments_of_numbers(numbers: Array, count: int) -> Moments:
    """Moments of what the kernel has left."""
    parts = [numbers[..., place] for place in range(numbers.shape[-1])]
    if len(parts) == 3:
        mean, low, squares = parts
        return may_keep(of_arrays(count, (mean, low, None, squares, None, None), numpy))
    mean, low, squares, squares_low, unit = parts
    return may_keep(of_arrays(count, (mean, low, None, squares, squares_low, unit), numpy))
