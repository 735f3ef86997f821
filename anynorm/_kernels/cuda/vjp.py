"""The derivative of a checked call -> kernels, one after the other on the array's own stream."""

from __future__ import annotations

from typing import Any

from anynorm._check import Gradient
from anynorm._kernels.cuda.device import device, kernel, launch
from anynorm._kernels.cuda.launch import SLOT_NBYTES
from anynorm._kernels.cuda.launch_derivative import STATIC_NBYTES, DerivativeSettings, slots_of_sums
from anynorm._kernels.cuda.run import describe, lay_out
from anynorm._kernels.cuda.task import (
    ADD_BLOCKS,
    ADD_ROWS,
    CODES,
    DERIVE,
    NOTHING,
    RULES,
    STREAM,
    STREAM_AND_ADD,
    Choice,
    Task,
)
from anynorm._libraries import Memory, dtype_name

Array = Any
Step = tuple[Choice, tuple[int, int], int]  # a kernel, its blocks, and the threads of each

_STATISTICS = 5  # float64 numbers for each row, as in gradient.cuh
_THREADS = 128  # of the kernel that adds up rows; a thread takes a feature
_ADD_THREADS, _ADD_FEATURES = 1024, 32  # of a block of that which adds up blocks, as in add_blocks.cuh


def vjp(gradient: Gradient) -> tuple[Array, Array | None, Array | None]:
    """Return dx, dweight and dbias."""
    call, dy, dtotal, wanted = gradient
    memory, x = call.library.memory, call.x
    with memory.current(x):
        dx = memory.empty_like(x)
        arrays = x, dy, dx, dx if dtotal is None else dtotal
        rows = lay_out(memory, call, arrays)
        keepalive, task, choice = describe(memory, call, rows, arrays, dtotal is not None)
        dweight = memory.empty_gradient(call.weight, x) if wanted else None
        dbias = memory.empty_gradient(call.bias, x) if wanted else None
        ordinal, stream = memory.ordinal(x), memory.stream(x)
        how = rows.derivative_settings(device(ordinal).most_cluster)
        task.teams, task.blocks = how.teams, how.blocks(rows.total)
        choice = choice._replace(threads=how.threads, neighbours=how.neighbours, held=how.held)
        choice = choice._replace(paired=False)  # all of it is formed in float64
        are_wanted = dweight is not None or dbias is not None
        steps = _steps(task, choice, how, rows.itemsize, are_wanted, device(ordinal).shared_nbytes)
        scratch = _prepare_sums(memory, x, task, steps, dweight, dbias) if are_wanted else None
        for step, grid, block in steps:
            launch(kernel(step, block, ordinal), grid, block, task, stream)
    del keepalive, scratch
    return dx, dweight, dbias


def _steps(
    task: Task, choice: Choice, how: DerivativeSettings, itemsize: int, are_wanted: bool, shared_nbytes: int
) -> list[Step]:
    """The kernels, in order; ``are_wanted``: the gradients of the parameters."""
    is_scale = choice.rule == RULES["scale_norm"]
    steps: list[Step] = []
    slots = 0 if is_scale or not are_wanted else _sums(choice) * slots_of_sums(itemsize)
    if how.is_streamed and slots * SLOT_NBYTES * how.block + STATIC_NBYTES <= shared_nbytes:
        step = STREAM_AND_ADD if are_wanted else STREAM
        streamed = choice._replace(step=step, cluster=how.parts, held=slots, in_shared=slots > 0)
        steps.append((streamed, (task.blocks * how.parts, 1), how.block))
    else:
        steps.append((choice._replace(step=DERIVE), (-(-task.rows // how.rows), 1), how.single_block))
        if are_wanted:
            across, down = (task.blocks, 1) if is_scale else (task.features, task.blocks)
            steps.append((choice._replace(step=ADD_ROWS), (-(-across // _THREADS), down), _THREADS))
    if are_wanted:
        across = 1 if is_scale else -(-task.features // _ADD_FEATURES)
        steps.append((choice._replace(step=ADD_BLOCKS), (across, 1), _ADD_THREADS))
    return steps


def _sums(choice: Choice) -> int:
    """How many sums there are for each feature, or for the scale."""
    return (choice.weight != NOTHING) + (choice.bias != NOTHING)


def _prepare_sums(
    memory: type[Memory], x: Array, task: Task, steps: list[Step], dweight: Array | None, dbias: Array | None
) -> Array:
    """Scratch for statistics and sums, and where all of it lies; it must live until the kernels are started."""
    choice = steps[0][0]
    features = 1 if choice.rule == RULES["scale_norm"] else task.features
    count = task.blocks * features * _sums(choice)
    statistics = _STATISTICS * task.rows if choice.step == DERIVE else 0
    scratch = memory.float64s(x, count + statistics)
    task.sums = memory.address(scratch)
    if statistics:
        task.statistics = memory.address(scratch) + 8 * count
    if dweight is not None:
        task.dweight, task.dweight_code = memory.address(dweight), CODES[dtype_name(dweight.dtype)]
    if dbias is not None:
        task.dbias, task.dbias_code = memory.address(dbias), CODES[dtype_name(dbias.dtype)]
    return scratch
