"""Calls whose weight or bias differs from row to row: groups of rows that share them, each normalized as a call is.

The axes along which a parameter varies are cut off. What is left is the call of a group, with one weight and one bias,
and so with the bits that they give; a kernel goes from group to group, for that in Python would take longer than to
normalize a few rows.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from ctypes import addressof
from typing import Any, NamedTuple

import numpy

from anynorm._check import Call
from anynorm._kernels.cpu.compiler.entries import Kernel, kernel
from anynorm._kernels.cpu.fast_path.offers import offer_own_rows
from anynorm._kernels.cpu.kernels.group_task import OF_GROUP, GroupTask
from anynorm._kernels.cpu.kernels.task import Task, Variant
from anynorm._kernels.cpu.language.dtypes import CACHE_LINE_NBYTES, LAYER
from anynorm._kernels.cpu.launch import norm, turns
from anynorm._kernels.cpu.launch.layout import lay_out
from anynorm._kernels.cpu.launch.machine import empty_like
from anynorm._kernels.cpu.launch.tasks import dtype_of, features_of, may_stream, task_of, y_and_total_of
from anynorm._kernels.cpu.threads import crew
from anynorm._libraries.numpy_arrays import NumPy
from anynorm._parameters import part_for
from anynorm._threads import get_threads

Array = Any

VARIANT = Variant(LAYER, 0, False)  # it is the same for all norms and dtypes
# Groups of fewer bytes are not stored past the caches: at the end of each it is waited for what is on its way.
_LEAST_STREAMED_NBYTES = 64 << 10
# What parameters take that are repeated along normalized axes; where they would take more, groups are cut into parts.
_MOST_REPEATED_NBYTES = 1 << 20


class Groups(NamedTuple):
    """How an x is cut into groups of rows."""

    axes: tuple[int, ...]  # those that are cut off, none normalized
    lengths: tuple[int, ...]  # of them
    weight: Array | None  # with these axes first, of length 1 where it does not vary, and then the normalized ones
    bias: Array | None

    @property
    def number(self) -> int:
        """How many there are."""
        return math.prod(self.lengths)

    def part_of(self, array: Array, group: int) -> Array:
        """What a group has of an array like x, or of None."""
        if array is None:
            return None
        index: list[Any] = [slice(None)] * array.ndim
        for axis, place in zip(self.axes, self.places_of(group), strict=True):
            index[axis] = slice(place, place + 1)
        return array[tuple(index)]

    def parameter_of(self, parameter: Array | None, group: int) -> Array | None:
        """The weight or bias of a group."""
        if parameter is None:
            return None
        places = zip(self.places_of(group), parameter.shape, strict=False)
        return parameter[tuple([0 if length == 1 else place for place, length in places])]

    def places_of(self, group: int) -> tuple[int, ...]:
        """Where a group lies along the axes."""
        return tuple(int(place) for place in numpy.unravel_index(group, self.lengths))

    def call_of(self, call: Call, group: int) -> Call:
        """The call of a group, whose results are those of the call."""
        outs = None if call.out is None else tuple([self.part_of(one, group) for one in call.out])
        return call._replace(
            x=self.part_of(call.x, group), residual=self.part_of(call.residual, group), out=outs,
            weight=self.parameter_of(self.weight, group), bias=self.parameter_of(self.bias, group),
        )  # fmt: skip

    def strides_of(self, call: Call, array: Array | None, is_parameter: bool = False) -> list[int]:
        """How far it is from group to group in an array, along each axis, in bytes."""
        if array is None:
            return [0] * len(self.axes)
        strides = call.library.memory.strides(array)
        if is_parameter:
            return [0 if n == 1 else stride for n, stride in zip(array.shape[: len(self.axes)], strides, strict=False)]
        return [strides[axis] for axis in self.axes]


def groups_of(call: Call) -> Groups:
    """Cut x along the free axes along which the weight or the bias varies."""
    shape, ndim = call.x.shape, call.x.ndim
    given = [one for one in _parameters(call) if len(one.shape) == ndim]
    axes = tuple(i for i in range(ndim) if i not in call.axes and any(one.shape[i] != 1 for one in given))
    weight, bias = (None if one is None else _by_group(call, one, axes) for one in (call.weight, call.bias))
    return Groups(axes, tuple(shape[i] for i in axes), weight, bias)


def _by_group(call: Call, parameter: Array, axes: tuple[int, ...]) -> Array:
    """A parameter as `Groups` has it."""
    xp, ndim = call.library.namespace, call.x.ndim
    row = tuple(call.x.shape[axis] for axis in call.axes)
    if len(parameter.shape) == ndim:
        others = [axis for axis in range(ndim) if axis not in axes and axis not in call.axes]
        parameter = xp.permute_dims(parameter, (*others, *axes, *call.axes))
        parameter = parameter[(0,) * len(others)]
        parameter = xp.broadcast_to(parameter, (*parameter.shape[: len(axes)], *row))
    else:
        parameter = xp.reshape(parameter, (*[1] * len(axes), *row))
    return call.library.memory.contiguous(parameter)


def _parameters(call: Call) -> list[Any]:
    return [one for one in (call.weight, call.bias) if one is not None]


def repeated_nbytes(call: Call) -> int:
    """How many bytes parameters take that are repeated along normalized axes."""
    found, features = 0, features_of(call)
    for one in _parameters(call):
        own = math.prod([one.shape[axis] for axis in call.axes]) if len(one.shape) == call.x.ndim else features
        found += one.nbytes // own * features if own != features else 0
    return found


def parts_of(call: Call, nbytes: int) -> Iterator[tuple[slice, ...]]:
    """Cut x along an axis along which parameters vary, where they take more than _MOST_REPEATED_NBYTES together."""
    shape = call.x.shape
    given = [one for one in _parameters(call) if len(one.shape) == len(shape)]
    axes = [i for i in range(len(shape)) if i not in call.axes and any(one.shape[i] != 1 for one in given)]
    cut = max(axes, key=shape.__getitem__, default=None)
    if cut is None or nbytes <= _MOST_REPEATED_NBYTES:
        yield ()
        return
    step = max(1, shape[cut] * _MOST_REPEATED_NBYTES // nbytes)
    for start in range(0, shape[cut], step):
        yield (*(slice(None),) * cut, slice(start, start + step))


def part_of(call: Call, at: tuple[slice, ...]) -> Call:
    """The call of a part of x."""
    ndim = call.x.ndim
    return call._replace(
        x=call.x[at], residual=None if call.residual is None else call.residual[at],
        out=None if call.out is None else tuple([one[at] for one in call.out]),
        weight=part_for(call.weight, at, ndim), bias=part_for(call.bias, at, ndim),
    )  # fmt: skip


def run(call: Call) -> Any:
    """Return y, or (y, total) where the call has a residual."""
    memory, x = call.library.memory, call.x
    if call.out is None:
        outs = (empty_like(memory, x),) if call.residual is None else (empty_like(memory, x), empty_like(memory, x))
    else:
        outs = call.out
    asked, call = call, call._replace(out=outs)
    plan = turns.plan_for(call, call.residual, *outs)
    if plan is None or not turns.run(call, plan, asked):
        for at in parts_of(call, repeated_nbytes(call)):
            _run_part(part_of(call, at) if at else call, None if at else asked)
    for one in outs:
        memory.written(one)
    return outs[0] if call.residual is None else outs


def _run_part(call: Call, asked: Call | None) -> None:
    groups = groups_of(call)
    if pays_to_share(call, groups):
        _run_all(call, groups, asked)
    else:
        for group in range(groups.number):
            norm.run(groups.call_of(call, group))


def pays_to_share(call: Call, groups: Groups) -> bool:
    """Whether threads share the groups, and not the rows of each."""
    count = groups.number
    return count >= 2 * get_threads() if call.x.nbytes // count >= crew.LEAST_SHARED_NBYTES else count > 1


def _run_all(call: Call, groups: Groups, asked: Call | None) -> None:
    """All groups, by one kernel; ``asked`` is the call as it was made, if this is the whole of it."""
    one, dtype = groups.call_of(call, 0), dtype_of(call.x.dtype)
    y, total = y_and_total_of(one)
    of_y = groups.strides_of(call, call.out[0] if call.out else None)
    streaming = (
        may_stream(call, y, total)
        and call.x.nbytes // groups.number >= _LEAST_STREAMED_NBYTES
        and not any(stride % CACHE_LINE_NBYTES for stride in of_y)
    )
    layout = lay_out(one, dtype.itemsize, one.residual, y, total, streaming=streaming, columns=True)
    task, keepalive = task_of(one, one.residual, y, total, layout, streaming=streaming)
    units = task.rows if layout is None else layout.units
    name, variant = norm.kernel_for(one, task, layout)
    if name == "rows":  # by how much is read in all the kernel sees whether to fetch what comes next
        task.rows = math.prod(call.x.shape) // task.features
    compute = kernel(name, variant)
    reached = numpy.zeros(groups.number, numpy.int64)
    of_groups, table = task_of_groups(call, groups, compute, task, (call.residual, *y_and_total_of(call)))
    of_groups.last, of_groups.reached = units, NumPy.address(reached)
    whole = kernel("groups", VARIANT)

    def resume(first: int, last: int) -> None:
        while first < last:
            first = whole.run(of_groups, first, last)
            if first < last:  # the kernel has left this one
                norm.run_from(groups.call_of(call, first), int(reached[first]))
                first += 1

    crew.launch(whole, of_groups, groups.number, call.x.nbytes, (keepalive, task, table, reached, groups), resume)
    address = call.library.memory.address
    pairs = (groups.weight, call.weight), (groups.bias, call.bias)
    if asked is not None and all(own is None or address(own) == address(one) for own, one in pairs):  # none was copied
        kept, fields = (table, layout, compute), ("weight", "bias")
        plan = groups.number, task, of_groups, fields, (None, None), kept
        offer_own_rows(asked, norm.run_from, whole.address, *plan)


def task_of_groups(
    call: Call, groups: Groups, compute: Kernel, task: Task, arrays: tuple[Array | None, ...],
    gradients: Sequence[list[int] | None] = (None, None),
) -> tuple[GroupTask, numpy.ndarray]:  # fmt: skip
    """What the kernel for groups is handed, and its table; ``arrays`` are those like x, as a task has them.

    ``gradients`` are the strides from group to group of those of weight and bias.
    """
    strides = [groups.strides_of(call, one) for one in (call.x, *arrays)]
    strides += [groups.strides_of(call, one, True) for one in (groups.weight, groups.bias)]
    strides += [[0] * len(groups.axes) if one is None else one for one in gradients]
    assert len(strides) == len(OF_GROUP)
    table = numpy.asarray([groups.lengths, *strides], dtype=numpy.int64)
    found = GroupTask(
        kernel=compute.place, task=addressof(task), axes=len(groups.axes), table=NumPy.address(table),
        groups=groups.number, rows=math.prod(call.x.shape) // task.features,
    )  # fmt: skip
    return found, table
