"""The derivative of a checked call -> the fused kernel for it, for NumPy arrays and CPU tensors alike."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy

from anynorm._check import Gradient
from anynorm._kernels.cpu import scale_of
from anynorm._kernels.cpu.compiler.entries import kernel
from anynorm._kernels.cpu.kernels.task import Task, Variant
from anynorm._kernels.cpu.language.dtypes import RULES
from anynorm._kernels.cpu.launch.extreme import pull_row
from anynorm._kernels.cpu.launch.layout import Layout, lay_out
from anynorm._kernels.cpu.launch.machine import empty_like
from anynorm._kernels.cpu.launch.norm import kind_of, packed
from anynorm._kernels.cpu.threads.crew import LEAST_SHARED_NBYTES, launch
from anynorm._libraries import Memory
from anynorm._libraries.numpy_arrays import NumPy

Array = Any

# Rows whose shares are added up in one go, and how many such sums there are at most. They depend on the shape alone,
# and so do the bits of the whole sum. 16 sums of 8192 features take 2 MB.
_LEAST_BLOCK = 64
_MOST_BLOCKS = 16
# Memory of a call that is kept for another one, no more of it than calls were made at once. Taken anew each time, it
# would be what has the C library give freed results back to the system, whose pages then come one by one again.
_MOST_KEPT_NBYTES = 2 << 20
_LEAST_ROOM = 4096
_spare: list[tuple[numpy.ndarray, int]] = []


def pull(gradient: Gradient) -> tuple[Any, ...]:
    """Return dx, dweight and dbias."""
    call, dy, dtotal, _ = gradient
    memory, kind = call.library.memory, kind_of(call.x.dtype)
    dx = empty_like(memory, call.x, call.x.nbytes)
    layout = lay_out(call, kind.itemsize, dy, dx, dtotal)
    return dx, *run(gradient, dx, layout, None, pull_row)


def run(
    gradient: Gradient, dx: Array, layout: Layout | None, numbers: numpy.ndarray | None, rescue: Callable[..., Array]
) -> tuple[Array | None, Array | None]:
    """Write dx, and return dweight and dbias; numbers of given moments become sums. The rest is as for `_rescue`."""
    call, dy, dtotal, wanted = gradient
    x: Array = call.x
    memory, kind, shape = call.library.memory, kind_of(x.dtype), x.shape
    features = shape[-1] if call.axes == (len(shape) - 1,) else math.prod([shape[axis] for axis in call.axes])
    size = math.prod(shape)
    rows, nbytes = size // features, size * kind.itemsize
    weight, weight_code, dweight = _parameter(memory, call.weight, x, wanted)
    _, bias_code, dbias = _parameter(memory, call.bias, x, wanted)
    block, blocks = blocks_of(rows)
    sums = 0 if dweight is None and dbias is None else 2 * blocks * features
    refusals = blocks * (block + 1) if kind.itemsize == 8 else 0
    work, place_of_work = take_room(2 * features + sums + refusals)
    task = Task(
        features=features, rows=rows, eps=call.eps, scale=scale_of(call), weight_offset=call.weight_offset,
        x=memory.address(x), residual=memory.address(dy), y=memory.address(dx),
        total=0 if dtotal is None else memory.address(dtotal),
        layout=0 if layout is None else NumPy.address(layout.numbers),
        weight=0 if weight is None else memory.address(weight), weight_code=weight_code,
        dweight=0 if dweight is None else memory.address(dweight), dweight_code=weight_code,
        dbias=0 if dbias is None else memory.address(dbias), dbias_code=bias_code,
        block_rows=block, work=place_of_work, numbers=0 if numbers is None else NumPy.address(numbers),
    )  # fmt: skip
    compute = kernel(
        "derivative",
        Variant(RULES[call.rule.name], kind.code, True, dtotal is not None, layout is not None, numbers is not None),
    )
    if not refusals and (blocks == 1 or nbytes < LEAST_SHARED_NBYTES):
        compute.run(task, -1, blocks + 1)
        give_back(work, place_of_work)
        return dweight, dbias

    def resume(first: int, last: int) -> None:
        compute.run(task, first, last)

    compute.run(task, -1, 0)
    launch(compute, task, blocks, rows, nbytes, resume, (gradient, weight, dx, work, layout, numbers))
    if refusals:
        refused = work[2 * features + sums :][:refusals].view(numpy.int64).reshape(blocks, -1)
        _rescue(gradient, layout, task, refused, work[2 * features :][:sums], rescue)
    compute.run(task, blocks, blocks + 1)
    give_back(work, place_of_work)
    return dweight, dbias


def blocks_of(rows: int) -> tuple[int, int]:
    """How many rows make a block, and how many blocks there are."""
    block = max(_LEAST_BLOCK, -(-rows // _MOST_BLOCKS))
    return block, -(-rows // block)


def take_room(length: int) -> tuple[numpy.ndarray, int]:
    """Room for so many float64 numbers, and its address: what a call has given back, if that is as long."""
    try:
        spare = _spare.pop()
        if len(spare[0]) >= length:
            return spare
    except IndexError:
        pass
    room = numpy.empty(max(length, _LEAST_ROOM))
    return room, NumPy.address(room)


def give_back(room: numpy.ndarray, address: int) -> None:
    """Keep room for another call."""
    if room.nbytes <= _MOST_KEPT_NBYTES:
        _spare.append((room, address))


def _parameter(
    memory: type[Memory], parameter: Array | float | None, x: Array, wanted: bool
) -> tuple[Array | None, int, Array | None]:
    """A parameter as the kernel reads it, the code of its dtype, and room for its gradient."""
    if parameter is None:
        return None, 0, None
    held: Array = x[(0,) * x.ndim] if isinstance(parameter, float) else parameter
    held = packed(memory, held)
    gradient = memory.empty_like(held) if wanted else None
    return held if held.ndim else None, kind_of(held.dtype).code, gradient  # a scale goes as a number


def _rescue(
    gradient: Gradient, layout: Layout | None, task: Task, refused: numpy.ndarray, sums: numpy.ndarray,
    rescue: Callable[..., Array],
) -> None:  # fmt: skip
    """Have ``rescue``, such as `pull_row`, take the rows that are left, and add what they are of the sums."""
    features, addresses = task.features, (task.x, task.residual, task.y, task.total or None)
    for unit, (count, *rows) in enumerate(refused):
        for row in rows[:count]:
            shares = rescue(gradient, layout, features, addresses, int(row))
            if not len(sums):
                continue
            with numpy.errstate(all="ignore"):
                sums[2 * unit * features :][: 2 * features] += shares
