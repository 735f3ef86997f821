"""A checked call -> a kernel on the array's own device and current stream."""

from __future__ import annotations

from typing import Any

from anynorm._check import Call
from anynorm._kernels.cuda.device import Device, clusters_at_once, device, kernel, launch, starter
from anynorm._kernels.cuda.launch import SLOT_NBYTES, settings_abreast, slots_of_parameters
from anynorm._kernels.cuda.repeat import remember
from anynorm._kernels.cuda.task import (
    CODES,
    NORMALIZE_LONG,
    NOTHING,
    NUMBER,
    RULES,
    Choice,
    Rows,
    Task,
    as_rows,
    fill,
    is_aligned,
    is_aligned_across,
)
from anynorm._libraries import Memory, dtype_name

Array = Any


def run(call: Call) -> Any:
    """Return y, or (y, total) where the call has a residual."""
    memory, x, residual = call.library.memory, call.x, call.residual
    with memory.current(x):
        if call.out is None:
            y = memory.empty_like(x)
            total = None if residual is None else memory.empty_like(x)
        else:
            y, total = call.out if len(call.out) == 2 else (call.out[0], None)
        arrays = x, x if residual is None else residual, y, y if total is None else total
        rows = lay_out(memory, call, arrays)
        keepalive, task, choice = describe(memory, call, rows, arrays, residual is not None)
        choice, block, blocks = started(rows, choice, task, device(memory.ordinal(x)))
        function = kernel(choice, block, memory.ordinal(x))
        if choice.step == NORMALIZE_LONG:  # blocks that take one row after the other, as many as run at a time
            blocks = min(blocks, clusters_at_once(function, block, choice.cluster) * choice.cluster)
        # Whatever is freed here is freed on the same stream, so it may be before the kernel has run.
        launch(function, (blocks, 1), block, task, memory.stream(x))
        remember(call, y, starter(function, (blocks, 1), block), task)
    del keepalive
    if call.out is not None:
        for one in call.out:
            memory.written(one)
    return y if residual is None else (y, total)


def started(rows: Rows, choice: Choice, task: Task, on: Device) -> tuple[Choice, int, int]:
    """What is compiled in the end, the threads of a block, and how many blocks there are."""
    is_plain = not choice.paired and choice.dtype != "float64"
    how = None
    if is_plain and is_aligned_across(rows, (*task.arrays, task.weight, task.bias)):
        how = settings_abreast(rows.normalized.length, rows.itemsize, on.shared_nbytes)
    how = how or rows.settings(on.clusters)
    choice, blocks = choice.started(how, rows), how.blocks(rows.total)
    if not (is_plain and how.cluster > 1 and how.held and choice.aligned):
        return choice, how.block, blocks
    is_weighted = choice.rule != RULES["scale_norm"] and choice.weight != NOTHING
    arrays = is_weighted * (1 + choice.offset) + (choice.bias != NOTHING)
    slots = slots_of_parameters(how.held, rows.itemsize, arrays)
    is_wide = (is_weighted and choice.weight == CODES["float64"]) or choice.bias == CODES["float64"]
    if is_wide or slots * how.block * SLOT_NBYTES > on.most_shared_nbytes:
        return choice, how.block, blocks
    return choice._replace(step=NORMALIZE_LONG, of_parameters=slots), how.block, blocks


def lay_out(memory: type[Memory], call: Call, arrays: tuple[Array, ...]) -> Rows:
    """Arrays as rows, in the order of the task."""
    itemsize = call.x.dtype.itemsize
    rows = as_rows(tuple(call.x.shape), [memory.strides(one) for one in arrays], call.axes, itemsize)
    if isinstance(rows, str):  # results and gradients may be laid out in another way than what was asked about
        raise RuntimeError(f"the CUDA kernels cannot take these arrays: {rows}; pass contiguous ones")
    return rows


def describe(
    memory: type[Memory], call: Call, rows: Rows, arrays: tuple[Array, ...], has_residual: bool
) -> tuple[tuple[Array, ...], Task, Choice]:
    """What must live until the kernel is started, what it is handed, and what it is compiled for."""
    weight, number, weight_code = _weight(memory, call)
    bias, bias_code = None, NOTHING
    if call.bias is not None:
        bias, bias_code = memory.contiguous(call.bias), CODES[dtype_name(call.bias.dtype)]
    addresses = [memory.address(one) for one in arrays]
    task = fill(rows, addresses)
    task.eps, task.number = call.eps, number
    task.weight, task.bias = (None if one is None else memory.address(one) for one in (weight, bias))
    dtype = dtype_name(call.x.dtype)
    paired = dtype != "float64" and device(memory.ordinal(call.x)).slow_float64
    aligned = is_aligned(rows, [*addresses, task.weight, task.bias])
    rule = RULES[call.rule.name]
    offset = call.weight_offset != 0.0
    return (weight, bias), task, Choice(dtype, rule, weight_code, bias_code, offset, aligned, has_residual, paired)


def _weight(memory: type[Memory], call: Call) -> tuple[Array | None, float, int]:
    """The weight, the number that goes with it, and its code; a scale on the device is read there."""
    if call.weight is None:
        return None, 0.0, NOTHING
    if isinstance(call.weight, float):
        return None, call.weight, NUMBER
    return memory.contiguous(call.weight), call.weight_offset, CODES[dtype_name(call.weight.dtype)]
