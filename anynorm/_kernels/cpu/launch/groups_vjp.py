"""The derivative of calls whose weight or bias differs from row to row, for NumPy arrays and CPU tensors alike.

The gradient of a parameter of which each group has a row of its own is written by the kernel. Where a parameter is one
for some groups or for several features, what each group has is summed in float64, and rounded once.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy

from anynorm._check import Call, Gradient
from anynorm._kernels.cpu.compiler.entries import Kernel, kernel
from anynorm._kernels.cpu.kernels.group_task import OF_GROUP
from anynorm._kernels.cpu.kernels.task import Task, Variant
from anynorm._kernels.cpu.language.dtypes import FLOAT64, RULES, TILES
from anynorm._kernels.cpu.launch import vjp as of_calls
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
from anynorm._kernels.cpu.launch.machine import empty_like
from anynorm._kernels.cpu.launch.tasks import dtype_of, features_of, task_of
from anynorm._kernels.cpu.threads import crew
from anynorm._libraries.numpy_arrays import NumPy
from anynorm._parameters import part_for
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
        sums, parameter, library = self._sums.reshape(self._parameter.shape), self._parameter, self._call.library
        with numpy.errstate(all="ignore"):
            if library.name == "numpy":
                return sums.astype(parameter.dtype)
            return library.namespace.astype(library.namespace.asarray(sums), parameter.dtype, copy=False)


class _Target(NamedTuple):
    """Where the kernel writes what each group has of the gradient of a parameter."""

    address: int
    code: int  # of the dtype
    strides: list[int]  # from group to group along each axis, in bytes


def _is_own(call: Call, groups: Groups, parameter: Array) -> bool:
    """Whether each group has a row of its own of a parameter, in memory one after the other in a new array like it."""
    own, shape, axes = tuple(parameter.shape), tuple(call.x.shape), call.axes
    return (
        len(own) == len(shape)
        and all(own[axis] == shape[axis] for axis in (*groups.axes, *axes))
        and all(axis in axes or own[axis] == 1 for axis in range(axes[0], len(own)))
    )


def vjp(gradient: Gradient) -> tuple[Any, ...]:
    """Return dx, dweight and dbias."""
    call, dy, dtotal, are_wanted = gradient
    dx = empty_like(call.library.memory, call.x)
    whole, own, wanted = groups_of(call), list[Any](), list[Any]()
    for one in (call.weight, call.bias):
        is_own = are_wanted and one is not None and _is_own(call, whole, one)
        own.append(call.library.memory.empty_gradient(one, call.x) if is_own else None)
        wanted.append(_Sums(call, one) if are_wanted and one is not None and not is_own else None)
    of_sums = 16 * (whole.number if any(wanted) else 0) * features_of(call)
    for at in parts_of(call, repeated_nbytes(call) + of_sums):
        part, groups = gradient, whole
        if at:
            rest = dy[at], None if dtotal is None else dtotal[at]
            part = Gradient(part_of(call, at), *rest, are_wanted)
            groups = groups_of(part.call)
        shape = *groups.lengths, *[part.call.x.shape[axis] for axis in call.axes]
        found = [None if one is None else numpy.empty(shape) for one in wanted]
        targets = [
            _of_sums(groups, sums) if mine is None else _of_own(call, groups, part_for(mine, at, call.x.ndim))
            for mine, sums in zip(own, found, strict=True)
        ]
        _differentiate(part, groups, dx[at] if at else dx, targets, (found, own))
        for one, of_part in zip(wanted, found, strict=True):
            if one is not None:
                one.add(groups, at, of_part)
    return dx, *(mine if one is None else one.gradient() for one, mine in zip(wanted, own, strict=True))


def _of_own(call: Call, groups: Groups, gradient: Array) -> _Target:
    address = call.library.memory.address(gradient)
    return _Target(address, dtype_of(gradient.dtype).code, groups.strides_of(call, gradient))


def _of_sums(groups: Groups, sums: numpy.ndarray | None) -> _Target | None:
    return sums if sums is None else _Target(NumPy.address(sums), FLOAT64.code, list(sums.strides[: len(groups.axes)]))


def _differentiate(
    gradient: Gradient, groups: Groups, dx: Array, targets: list[_Target | None], keepalive: Any
) -> None:  # fmt: skip
    """Write dx, and what each group has of the gradients of the parameters."""
    call, dy, dtotal, _ = gradient
    one, dtype = groups.call_of(call, 0), dtype_of(call.x.dtype)
    of_dy, of_dx, of_dtotal = (groups.part_of(array, 0) for array in (dy, dx, dtotal))
    layout = lay_out(one, dtype.itemsize, of_dy, of_dx, of_dtotal, columns=True, tiles=TILES)
    task, of_task = task_of(one, of_dy, of_dx, of_dtotal, layout)
    name, (task.portion, portions) = "derivative", of_calls.portions_of(task.rows)
    if layout is not None and layout.in_columns:
        name, (task.portion, portions) = "derivative_columns", of_calls.portions_of(layout.units, 1)
    for place, target in zip(("dweight", "dbias"), targets, strict=True):
        if target is not None:
            setattr(task, place, target.address)
            setattr(task, f"{place}_code", target.code)
    variant = Variant(RULES[call.rule.name], dtype.code, True, dtotal is not None, layout is not None)
    strides = [None if one is None else one.strides for one in targets]
    of_groups, table = task_of_groups(call, groups, kernel(name, variant), task, (dy, dx, dtotal), strides)
    length = of_calls.scratch_length(task.features, portions, has_sums=any(targets))
    is_shared = pays_to_share(call, groups)
    of_groups.shares = shares = min(groups.number, get_threads()) if is_shared else 1
    scratch, of_groups.work = of_calls.take_scratch(shares * length)
    of_groups.work_nbytes, of_groups.first, of_groups.last = 8 * length, -1, portions + 1
    kept = gradient, of_task, task, table, scratch, keepalive
    if is_shared:
        crew.launch(kernel("derivative_groups", VARIANT), of_groups, shares, call.x.nbytes, kept)
    else:
        _differentiate_one_by_one(kernel(name, variant), task, groups, table, portions, of_groups.work, kept)
    of_calls.give_back_scratch(scratch, of_groups.work)


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
