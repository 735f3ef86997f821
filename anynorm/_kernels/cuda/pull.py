"""The derivative of a checked call -> kernels, one after the other on the array's own stream."""

from __future__ import annotations

from typing import Any

from anynorm._check import Gradient
from anynorm._kernels.cuda.arrays import ACCESS
from anynorm._kernels.cuda.device import device, kernel, launch
from anynorm._kernels.cuda.launch_derivative import DerivativeSettings
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
from anynorm._libraries import dtype_name

Array = Any
# What a kernel does, how many of its blocks share a row, how many there are, and the threads of each.
Step = tuple[str, int, tuple[int, int], int]

_STATISTICS = 5  # float64 numbers for each row, as in gradient.cuh
_THREADS = 128  # of the kernel that adds up rows; a thread takes a feature
_ADD_THREADS, _ADD_FEATURES = 1024, 32  # of a block of that which adds up blocks, as in add_blocks.cuh


def pull(gradient: Gradient) -> tuple[Array, Array | None, Array | None]:
    """Return dx, dweight and dbias."""
    call, dy, dtotal, wanted = gradient
    access, x = ACCESS[call.library.name], call.x
    with access.current(x):
        dx = access.empty_like(x)
        arrays = x, dy, dx, dx if dtotal is None else dtotal
        rows = lay_out(access, call, arrays)
        held, task, choice = describe(access, call, rows, arrays, dtotal is not None)
        dweight = _gradient_of(access, call.weight, x) if wanted else None
        dbias = _gradient_of(access, call.bias, x) if wanted else None
        ordinal, stream = access.ordinal(x), access.stream(x)
        how = rows.derivative_settings(device(ordinal).most_cluster)
        task.teams, task.blocks = how.teams, how.blocks(rows.total)
        choice = choice._replace(threads=how.threads, neighbours=how.neighbours, held=how.held)
        choice = choice._replace(paired=False)  # all of it is formed in float64
        room = None
        if dweight is not None or dbias is not None:
            room = _prepare_sums(access, x, task, choice, how, dweight, dbias)
        for step, cluster, grid, block in _steps(task, choice, how, room is not None):
            launch(kernel(choice._replace(step=step, cluster=cluster), block, ordinal), grid, block, task, stream)
    del held, room
    return dx, dweight, dbias


def _steps(task: Task, choice: Choice, how: DerivativeSettings, are_wanted: bool) -> list[Step]:
    """The kernels, in order; ``are_wanted``: the gradients of the parameters."""
    is_scale = choice.rule == RULES["scale_norm"]
    rows: list[Step] = [(DERIVE, 1, (-(-task.rows // how.rows), 1), how.block)]
    if how.is_streamed:
        step = STREAM_AND_ADD if are_wanted else STREAM
        rows = [(step, how.parts, (task.blocks * how.parts, 1), how.block)]
    elif are_wanted:
        across = task.blocks if is_scale else task.features
        rows.append((ADD_ROWS, 1, (-(-across // _THREADS), 1 if is_scale else task.blocks), _THREADS))
    if not are_wanted:
        return rows
    return [*rows, (ADD_BLOCKS, 1, (1 if is_scale else -(-task.features // _ADD_FEATURES), 1), _ADD_THREADS)]


def _gradient_of(access: Any, parameter: Array | float | None, x: Array) -> Array | None:
    """Room for the gradient of a parameter; of a number, for one of x's dtype."""
    if parameter is None:
        return None
    like = x[(0,) * x.ndim] if isinstance(parameter, float) else parameter
    return access.empty_like(like if access.is_contiguous(like) else access.contiguous(like))


def _prepare_sums(
    access: Any,
    x: Array,
    task: Task,
    choice: Choice,
    how: DerivativeSettings,
    dweight: Array | None,
    dbias: Array | None,
) -> Array:
    """Room for statistics and sums, and where all of it lies; it must live until the kernels are started."""
    features = 1 if choice.rule == RULES["scale_norm"] else task.features
    count = task.blocks * features * ((choice.weight != NOTHING) + (choice.bias != NOTHING))
    room = access.numbers(x, count + (0 if how.is_streamed else _STATISTICS * task.rows))
    task.sums = access.address(room)
    if not how.is_streamed:
        task.statistics = access.address(room) + 8 * count
    if dweight is not None:
        task.dweight, task.dweight_code = access.address(dweight), CODES[dtype_name(dweight.dtype)]
    if dbias is not None:
        task.dbias, task.dbias_code = access.address(dbias), CODES[dtype_name(dbias.dtype)]
    return room
