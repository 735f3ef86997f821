"""The derivative of a checked call -> the fused kernel for it, for NumPy arrays and CPU tensors alike."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy

from anynorm._check import Gradient
from anynorm._kernels.cpu.compiler.entries import kernel
from anynorm._kernels.cpu.kernels.task import Task, Variant
from anynorm._kernels.cpu.language.dtypes import FLOAT64, RULES, TILES
from anynorm._kernels.cpu.launch.extreme import vjp_row
from anynorm._kernels.cpu.launch.layout import Layout, lay_out
from anynorm._kernels.cpu.launch.machine import empty_like
from anynorm._kernels.cpu.launch.tasks import dtype_of, task_of
from anynorm._kernels.cpu.threads import crew
from anynorm._libraries.numpy_arrays import NumPy

Array = Any

# Rows whose shares are added up in one go, and how many such sums there are at most. They depend on the shape alone,
# and so do the bits of the whole sum. 16 sums of 8192 features take 2 MB.
_LEAST_BLOCK = 64
_MOST_BLOCKS = 16
# Scratch of a call that is kept for another one, no more of it than calls were made at once. Taken anew each time, it
# would be what has the C library give freed results back to the system, whose pages then come one by one again.
_MOST_KEPT_NBYTES = 2 << 20
_LEAST_SCRATCH = 4096
_spare: list[tuple[numpy.ndarray, int]] = []


def vjp(gradient: Gradient) -> tuple[Any, ...]:
    """Return dx, dweight and dbias."""
    call, dy, dtotal, _ = gradient
    dx = empty_like(call.library.memory, call.x)
    layout = lay_out(call, dtype_of(call.x.dtype).itemsize, dy, dx, dtotal, columns=True, tiles=TILES)
    return dx, *differentiate(gradient, dx, layout, None, vjp_row)


def differentiate(
    gradient: Gradient, dx: Array, layout: Layout | None, numbers: numpy.ndarray | None, vjp_row: Callable[..., Array]
) -> tuple[Array | None, Array | None]:
    """Write dx, and return dweight and dbias; numbers of given moments become sums.

    Rows that the kernel leaves are for ``vjp_row``, such as that of `extreme`.
    """
    call, dy, dtotal, are_wanted = gradient
    memory, dtype = call.library.memory, dtype_of(call.x.dtype)
    task, keepalive = task_of(call, dy, dx, dtotal, layout, numbers=numbers)
    dweight, dbias = (memory.empty_gradient(one, call.x) if are_wanted else None for one in (call.weight, call.bias))
    if dweight is not None:
        task.dweight, task.dweight_code = memory.address(dweight), dtype_of(dweight.dtype).code
    if dbias is not None:
        task.dbias, task.dbias_code = memory.address(dbias), dtype_of(dbias.dtype).code
    name, (task.block_rows, blocks) = "derivative", blocks_of(task.rows)
    rows = task.block_rows
    if layout is not None and layout.in_columns:
        # Blocks of columns are put together instead; the last one of an axis is less than lanes wider.
        name, (task.block_rows, blocks) = "derivative_columns", blocks_of(layout.units, 1)
        rows = task.block_rows * (layout.block + dtype.lanes)
    # After the weights are the sums of each block, and after those the rows that are left, see kernels/derivative.py.
    sums = 2 * task.features
    left = left_rows_at(task.features, blocks, has_sums=dweight is not None or dbias is not None)
    length = left + left_rows_length(rows, blocks) * (dtype is FLOAT64)
    scratch, task.work = take_scratch(length)
    compute = kernel(
        name,
        Variant(RULES[call.rule.name], dtype.code, True, dtotal is not None, layout is not None, numbers is not None),
    )
    if dtype is not FLOAT64 and (blocks == 1 or call.x.nbytes < crew.LEAST_SHARED_NBYTES):
        compute.run(task, -1, blocks + 1)
    else:
        compute.run(task, -1, 0)
        crew.launch(compute, task, blocks, call.x.nbytes, (gradient, keepalive, scratch))
        if dtype is FLOAT64:
            rows_left = scratch[left:length].view(numpy.int64).reshape(blocks, -1)
            _take_rows_left(gradient, layout, task, rows_left, scratch[sums:left], vjp_row)
        compute.run(task, blocks, blocks + 1)
    give_back_scratch(scratch, task.work)
    return dweight, dbias


def blocks_of(rows: int, least: int = _LEAST_BLOCK) -> tuple[int, int]:
    """How many rows make a block, no fewer than the least, and how many blocks there are."""
    block = max(least, -(-rows // _MOST_BLOCKS))
    return block, -(-rows // block)


def left_rows_at(features: int, blocks: int, has_sums: bool) -> int:
    """Where in scratch the kernel notes which rows it leaves to the definition, in numbers of 8 bytes."""
    return 2 * features * (1 + blocks * has_sums)


def left_rows_length(block_rows: int, blocks: int) -> int:
    """And how many numbers those are: of each block how many rows, and which."""
    return blocks * (block_rows + 1)


def take_scratch(length: int) -> tuple[numpy.ndarray, int]:
    """Memory for so many float64 numbers, and its address: what a call has given back, if that is as long."""
    try:
        spare = _spare.pop()
        if len(spare[0]) >= length:
            return spare
    except IndexError:
        pass
    scratch = numpy.empty(max(length, _LEAST_SCRATCH))
    return scratch, NumPy.address(scratch)


def give_back_scratch(scratch: numpy.ndarray, address: int) -> None:
    """Keep scratch for another call."""
    if scratch.nbytes <= _MOST_KEPT_NBYTES:
        _spare.append((scratch, address))


def _take_rows_left(
    gradient: Gradient, layout: Layout | None, task: Task, rows_left: numpy.ndarray, sums: numpy.ndarray,
    vjp_row: Callable[..., Array],
) -> None:  # fmt: skip
    """Have ``vjp_row`` take the rows that the kernel has left, and add their shares to the sums of their block."""
    features, addresses = task.features, (task.x, task.residual, task.y, task.total or None)
    for block, of_block in enumerate(rows_left):
        for row in of_block[1 : 1 + of_block[0]]:
            shares = vjp_row(gradient, layout, features, addresses, int(row))
            if len(sums):
                with numpy.errstate(all="ignore"):
                    sums[2 * block * features :][: 2 * features] += shares
