"""The derivative of a checked call -> the fused kernel for it, for NumPy arrays and CPU tensors alike."""

from __future__ import annotations

from typing import Any

import numpy

from anynorm._check import Gradient
from anynorm._kernels.cpu.compiler.entries import kernel
from anynorm._kernels.cpu.fast_path.derivative import run_portions
from anynorm._kernels.cpu.fast_path.offers import offer_derivative
from anynorm._kernels.cpu.kernels.task import Variant
from anynorm._kernels.cpu.language.dtypes import RULES, TILES
from anynorm._kernels.cpu.launch.layout import Layout, lay_out
from anynorm._kernels.cpu.launch.machine import empty_like, give_back_scratch, take_scratch
from anynorm._kernels.cpu.launch.tasks import dtype_of, may_stream, task_of

Array = Any

# Rows whose shares are added up in one go, and how many such sums there are at most. They depend on the shape alone,
# and so do the bits of the whole sum. 16 sums of 8192 features take 2 MB.
_LEAST_PORTION = 64
_MOST_PORTIONS = 16


def vjp(gradient: Gradient) -> tuple[Any, ...]:
    """Return dx, dweight and dbias."""
    call = gradient.call
    dx = empty_like(call.library.memory, call.x)
    # Columns are not streamed: how they are cut, and with it the sums over rows, would depend on where dx begins.
    layout, streaming = _lay_out(gradient, dx, streaming=False), may_stream(call, dx, None)
    if streaming and (layout is None or not layout.in_columns):
        layout = _lay_out(gradient, dx, streaming)
    return dx, *differentiate(gradient, dx, layout, None, streaming)


def _lay_out(gradient: Gradient, dx: Array, streaming: bool) -> Layout | None:
    call, dy, dtotal, _ = gradient
    itemsize = dtype_of(call.x.dtype).itemsize
    return lay_out(call, itemsize, dy, dx, dtotal, streaming=streaming, columns=True, tiles=TILES)


def differentiate(
    gradient: Gradient, dx: Array, layout: Layout | None, numbers: numpy.ndarray | None, streaming: bool = False
) -> tuple[Array | None, Array | None]:
    """Write dx, and return dweight and dbias; numbers of given moments become sums."""
    call, dy, dtotal, are_wanted = gradient
    memory, dtype = call.library.memory, dtype_of(call.x.dtype)
    task, keepalive = task_of(call, dy, dx, dtotal, layout, numbers=numbers, streaming=streaming)
    dweight, dbias = (memory.empty_gradient(one, call.x) if are_wanted else None for one in (call.weight, call.bias))
    if dweight is not None:
        task.dweight, task.dweight_code = memory.address(dweight), dtype_of(dweight.dtype).code
    if dbias is not None:
        task.dbias, task.dbias_code = memory.address(dbias), dtype_of(dbias.dtype).code
    name, (task.portion, portions) = "derivative", portions_of(task.rows)
    if layout is not None and layout.in_columns:
        # A portion is some blocks instead.
        name, (task.portion, portions) = "derivative_columns", portions_of(layout.units, 1)
    length = scratch_length(task.features, portions, has_sums=dweight is not None or dbias is not None)
    scratch, task.work = take_scratch(length)
    compute = kernel(
        name,
        Variant(RULES[call.rule.name], dtype.code, True, dtotal is not None, layout is not None, numbers is not None),
    )
    run_portions(compute, task, portions, call.x.nbytes, (gradient, keepalive, scratch))
    give_back_scratch(scratch, task.work)
    if numbers is None:
        offer_derivative(gradient, compute, task, portions, length, dweight, layout)
    return dweight, dbias


def portions_of(rows: int, least: int = _LEAST_PORTION) -> tuple[int, int]:
    """How many rows make a portion, no fewer than the least, and how many portions there are."""
    portion = max(least, -(-rows // _MOST_PORTIONS))
    return portion, -(-rows // portion)


def scratch_length(features: int, portions: int, has_sums: bool) -> int:
    """How much memory the kernel works in, in numbers of 8 bytes: the weights, and the sums of each portion."""
    return 2 * features * (1 + portions * has_sums)
