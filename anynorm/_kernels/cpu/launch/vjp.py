"""The derivative of a checked call -> the fused kernel for it, for NumPy arrays and CPU tensors alike."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable
from typing import Any

import numpy

from anynorm._check import Gradient
from anynorm._kernels.cpu import scale_of
from anynorm._kernels.cpu.compiler import entries
from anynorm._kernels.cpu.language.dtypes import RULES
from anynorm._kernels.cpu.launch.extreme import pull_row
from anynorm._kernels.cpu.launch.layout import Layout
from anynorm._kernels.cpu.launch.machine import empty_like
from anynorm._kernels.cpu.launch.norm import LEAST_SHARED_NBYTES, kind_of, lay_out
from anynorm._kernels.cpu.threads.crew import share
from anynorm._libraries.numpy_arrays import NumPy
from anynorm._threads import get_threads

Array = Any

# Rows whose shares are added up in one go, and how many such sums there are at most. They depend on the shape alone,
# and so do the bits of the whole sum. 16 sums of 8192 features take 2 MB.
_LEAST_BLOCK = 64
_MOST_BLOCKS = 16
# Memory of a call that is kept for the next one of its thread. Taken anew each time, it would be what has the C library
# give freed results back to the system, whose pages then come one by one again.
_MOST_KEPT_NBYTES = 2 << 20
_LEAST_ROOM = 4096
_spare = threading.local()


def pull(gradient: Gradient) -> tuple[Any, ...]:
    """Return dx, dweight and dbias."""
    call, dy, dtotal, _ = gradient
    access, kind = call.library.memory, kind_of(call.x.dtype)
    dx = empty_like(access, call.x, call.x.nbytes)
    layout = lay_out(call, access, (dy, dx, dtotal), kind.itemsize, 0, False, columns=False)
    return dx, *run(gradient, dx, layout, None, pull_row)


def run(
    gradient: Gradient, dx: Array, layout: Layout | None, numbers: numpy.ndarray | None, rescue: Callable[..., Array]
) -> tuple[Array | None, Array | None]:
    """Write dx, and return dweight and dbias; numbers of given moments become sums. The rest is as for `_rescue`."""
    call, dy, dtotal, wanted = gradient
    x: Array = call.x
    access, kind, shape = call.library.memory, kind_of(x.dtype), x.shape
    features = shape[-1] if call.axes == (len(shape) - 1,) else math.prod([shape[axis] for axis in call.axes])
    size = math.prod(shape)
    rows, nbytes = size // features, size * kind.itemsize
    weight, weight_code, dweight = _parameter(access, call.weight, x, wanted)
    _, bias_code, dbias = _parameter(access, call.bias, x, wanted)
    block = max(_LEAST_BLOCK, -(-rows // _MOST_BLOCKS))
    blocks = -(-rows // block)
    sums = 0 if dweight is None and dbias is None else 2 * blocks * features
    refusals = blocks * (block + 1) if kind.itemsize == 8 else 0
    work = _take_room(2 * features + sums + refusals)
    arguments = (
        RULES[call.rule.name], call.eps, scale_of(call), features,
        access.address(x), access.address(dy), access.address(dx), None if dtotal is None else access.address(dtotal),
        None if layout is None else NumPy.address(layout.numbers), rows, block,
        0 if weight is None else access.address(weight), weight_code, call.weight_offset,
        0 if dweight is None else access.address(dweight), weight_code,
        0 if dbias is None else access.address(dbias), bias_code, NumPy.address(work),
        None if numbers is None else NumPy.address(numbers),
    )  # fmt: skip
    variant = "backward", kind.code, True, dtotal is not None, layout is not None, numbers is not None
    compute = entries.entry(*variant)
    if not refusals and (blocks == 1 or nbytes < LEAST_SHARED_NBYTES):
        compute(-1, blocks + 1, *arguments)
        _give_back(work)
        return dweight, dbias
    # What is not given to the kernel as an array is to live as long as a thread may be at work.
    held = gradient, weight, dx, work, layout, numbers
    _share(variant, arguments, held, blocks, nbytes)
    if refusals:
        refused = work[2 * features + sums :][:refusals].view(numpy.int64).reshape(blocks, -1)
        _rescue(gradient, layout, arguments, refused, work[2 * features :][:sums], rescue)
    compute(blocks, blocks + 1, *arguments)
    _give_back(work)
    return dweight, dbias


def _take_room(length: int) -> numpy.ndarray:
    """Room for so many float64 numbers: what an earlier call of this thread has given back, if that is as long."""
    room, _spare.room = getattr(_spare, "room", None), None
    return room if room is not None and len(room) >= length else numpy.empty(max(length, _LEAST_ROOM))


def _give_back(room: numpy.ndarray) -> None:
    if room.nbytes <= _MOST_KEPT_NBYTES:
        _spare.room = room


def _parameter(
    access: Any, parameter: Array | float | None, x: Array, wanted: bool
) -> tuple[Array | None, int, Array | None]:
    """A parameter as the kernel reads it, the code of its dtype, and room for its gradient."""
    if parameter is None:
        return None, 0, None
    held: Array = x[(0,) * x.ndim] if isinstance(parameter, float) else parameter
    if not access.is_contiguous(held):
        held = access.contiguous(held)
    gradient = access.empty_like(held) if wanted else None
    return held if held.ndim else None, kind_of(held.dtype).code, gradient  # a scale goes as a number


def _share(variant: tuple[Any, ...], arguments: tuple[Any, ...], held: Any, blocks: int, nbytes: int) -> None:
    """Widen the weights and work through all blocks, in several threads where that pays."""
    compute, rows = entries.entry(*variant), arguments[9]
    threads = get_threads() if nbytes >= LEAST_SHARED_NBYTES else 1
    if threads == 1 or blocks == 1:
        compute(-1, blocks, *arguments)
        return
    compute(-1, 0, *arguments)

    def work(first: int, last: int, held: Any = held) -> None:
        compute(first, last, *arguments)

    share(entries.job(*variant), arguments, work, blocks, rows, nbytes, threads)


def _rescue(
    gradient: Gradient, layout: Layout | None, arguments: tuple[Any, ...], refused: numpy.ndarray, sums: numpy.ndarray,
    rescue: Callable[..., Array],
) -> None:  # fmt: skip
    """Have ``rescue``, such as `pull_row`, take the rows that are left, and add what they are of the sums."""
    features = arguments[3]
    for unit, (count, *rows) in enumerate(refused):
        for row in rows[:count]:
            shares = rescue(gradient, layout, features, arguments[4:8], int(row))
            if not len(sums):
                continue
            with numpy.errstate(all="ignore"):
                sums[2 * unit * features :][: 2 * features] += shares
