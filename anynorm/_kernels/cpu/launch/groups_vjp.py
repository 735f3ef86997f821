"""The derivative of calls whose weight or bias differs from row to row, for NumPy arrays and CPU tensors alike.

What each group has of the gradients of the parameters is summed in float64, and rounded once.
"""

from __future__ import annotations

from typing import Any

import numpy

from anynorm._check import Call, Gradient
from anynorm._kernels.cpu.compiler.entries import Kernel, kernel
from anynorm._kernels.cpu.kernels.group_task import OF_GROUP
from anynorm._kernels.cpu.kernels.task import Task, Variant
from anynorm._kernels.cpu.language.dtypes import FLOAT64, RULES, TILES
from anynorm._kernels.cpu.launch import turns, turns_vjp
from anynorm._kernels.cpu.launch.groups import (
    VARIANT,
    Groups,
    groups_of,
    part_of,
    parts_of,
    pays_to_share,
    repeated_nbytes,
    task_of_groups,
)
from anynorm._kernels.cpu.launch.layout import lay_out
from anynorm._kernels.cpu.launch.machine import empty_like, give_back_scratch, take_scratch
from anynorm._kernels.cpu.launch.tasks import dtype_of, features_of, task_of
from anynorm._kernels.cpu.launch.vjp import portions_of, scratch_length
from anynorm._kernels.cpu.threads import crew
from anynorm._libraries.numpy_arrays import NumPy
from anynorm._threads import get_threads

Array = Any


class _Sums:
    """The gradient of a weight or a bias: the sums of all groups."""

    def __init__(self, call: Call, parameter: Array) -> None:
        self._call, self._parameter = call, parameter
        own = tuple(parameter.shape)
        if len(own) < call.x.ndim:
            own = tuple(call.x.shape[axis] if axis in call.axes else 1 for axis in range(call.x.ndim))
        self._sums = numpy.zeros(own)

    def add(self, groups: Groups, at: tuple[slice, ...], found: Array) -> None:
        """Add what the groups of a part have, by group and feature."""
        call, sums = self._call, self._sums
        part = sums[tuple([one if n != 1 else slice(None) for one, n in zip(at, sums.shape, strict=False)])]
        order = (*groups.axes, *call.axes)
        spread = numpy.transpose(found, numpy.argsort(order))
        for axis in range(call.x.ndim):
            if axis not in order:
                spread = numpy.expand_dims(spread, axis)
        over = tuple(axis for axis in range(call.x.ndim) if part.shape[axis] == 1)
        part += spread.sum(over, keepdims=True)

    def gradient(self) -> Array:
        """The gradient, of the shape and dtype of the parameter."""
        return turns_vjp.rounded(self._call, self._sums, self._parameter)


def vjp(gradient: Gradient) -> tuple[Any, ...]:
    """Return dx, dweight and dbias."""
    call, dy, dtotal, are_wanted = gradient
    dx = empty_like(call.library.memory, call.x)
    plan = turns.plan_for(call, dy, dtotal, dx)
    if plan is not None:
        return dx, *turns_vjp.differentiate(gradient, dx, plan)
    whole = groups_of(call)
    wanted = [_Sums(call, one) if are_wanted and one is not None else None for one in (call.weight, call.bias)]
    of_sums = 16 * (whole.number if any(wanted) else 0) * features_of(call)
    for at in parts_of(call, repeated_nbytes(call) + of_sums):
        part, groups = gradient, whole
        if at:
            rest = dy[at], None if dtotal is None else dtotal[at]
            part = Gradient(part_of(call, at), *rest, are_wanted)
            groups = groups_of(part.call)
        shape = *groups.lengths, *[part.call.x.shape[axis] for axis in call.axes]
        found = [None if one is None else numpy.empty(shape) for one in wanted]
        _differentiate(part, groups, dx[at] if at else dx, found)
        for one, of_part in zip(wanted, found, strict=True):
            if one is not None:
                one.add(groups, at, of_part)
    return dx, *(None if one is None else one.gradient() for one in wanted)


def _differentiate(gradient: Gradient, groups: Groups, dx: Array, sums: list[numpy.ndarray | None]) -> None:
    """Write dx, and the sums that each group has of the gradients of weight and bias."""
    call, dy, dtotal, _ = gradient
    one, dtype = groups.call_of(call, 0), dtype_of(call.x.dtype)
    of_dy, of_dx, of_dtotal = (groups.part_of(array, 0) for array in (dy, dx, dtotal))
    layout = lay_out(one, dtype.itemsize, of_dy, of_dx, of_dtotal, columns=True, tiles=TILES)
    task, of_task = task_of(one, of_dy, of_dx, of_dtotal, layout)
    name, (task.portion, portions) = "derivative", portions_of(task.rows)
    if layout is not None and layout.in_columns:
        name, (task.portion, portions) = "derivative_columns", portions_of(layout.units, 1)
    for place, found in zip(("dweight", "dbias"), sums, strict=True):
        if found is not None:
            setattr(task, place, NumPy.address(found))
            setattr(task, f"{place}_code", FLOAT64.code)
    variant = Variant(RULES[call.rule.name], dtype.code, True, dtotal is not None, layout is not None)
    strides = [None if one is None else list(one.strides[: len(groups.axes)]) for one in sums]
    of_groups, table = task_of_groups(call, groups, kernel(name, variant), task, (dy, dx, dtotal), strides)
    length = scratch_length(task.features, portions, has_sums=any(one is not None for one in sums))
    is_shared = pays_to_share(call, groups)
    of_groups.shares = shares = min(groups.number, get_threads()) if is_shared else 1
    scratch, of_groups.work = take_scratch(shares * length)
    of_groups.work_nbytes, of_groups.first, of_groups.last = 8 * length, -1, portions + 1
    kept = gradient, of_task, task, table, scratch, sums
    if is_shared:
        crew.launch(kernel("derivative_groups", VARIANT), of_groups, shares, call.x.nbytes, kept)
    else:
        _differentiate_one_by_one(kernel(name, variant), task, groups, table, portions, of_groups.work, kept)
    give_back_scratch(scratch, of_groups.work)


def _differentiate_one_by_one(
    compute: Kernel, task: Task, groups: Groups, table: numpy.ndarray, portions: int, work: int, kept: Any
) -> None:
    """The same, where the portions of one group after the other are shared among threads."""
    nbytes = task.rows * task.features * 2  # or more
    first, task.work = [getattr(task, name) for name in OF_GROUP], work
    for group in range(groups.number):
        offsets = table[1:] @ groups.places_of(group)
        for name, address, offset in zip(OF_GROUP, first, offsets, strict=True):
            setattr(task, name, address and address + int(offset))
        compute.run(task, -1, 0)
        crew.launch(compute, task, portions, nbytes, kept)
        compute.run(task, portions, portions + 1)
