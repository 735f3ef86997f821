"""The derivative of a checked call -> three kernels, one after the other on the array's own stream."""

from __future__ import annotations

from typing import Any

from anynorm._check import Gradient
from anynorm._kernels.cuda.arrays import ACCESS
from anynorm._kernels.cuda.device import kernel, launch
from anynorm._kernels.cuda.run import describe, lay_out
from anynorm._kernels.cuda.task import ADD_BLOCKS, ADD_ROWS, CODES, DERIVE, Choice, Task
from anynorm._libraries import dtype_name

Array = Any

_STATISTICS = 5  # float64 numbers for each row, as in derive.cuh
# Rows whose shares are added up in one go, and how many such sums there are at most. They depend on the shape alone,
# and so do the bits of the whole sum.
_LEAST_BLOCK = 64
_MOST_BLOCKS = 256
_THREADS = 128  # of the kernels that add up; a thread takes a feature
_MOST_GRID = 65535  # in the second direction


def pull(gradient: Gradient) -> tuple[Array, Array | None, Array | None]:
    """Return dx, dweight and dbias."""
    call, dy, dtotal, wanted = gradient
    access, x = ACCESS[call.library.name], call.x
    with access.current(x):
        dx = access.empty_like(x)
        arrays = x, dy, dx, dx if dtotal is None else dtotal
        rows = lay_out(access, call, arrays)
        how = rows.settings()
        held, task, choice = describe(access, call, rows, arrays, dtotal is not None)
        choice = choice._replace(paired=False)  # all of it is formed in float64
        dweight = _gradient_of(access, call.weight, x) if wanted else None
        dbias = _gradient_of(access, call.bias, x) if wanted else None
        room = None
        if dweight is not None or dbias is not None:
            room = _prepare_sums(access, x, task, dweight, dbias)
        choice = choice.started(how, rows)
        ordinal, stream = access.ordinal(x), access.stream(x)
        function = kernel(choice._replace(step=DERIVE, held=how.held_by_derivative, full=False), how.block, ordinal)
        launch(function, (how.blocks(rows.total), 1), how.block, task, stream)
        if room is not None:
            _add_up(choice._replace(held=0), ordinal, task, stream)
    del held, room
    return dx, dweight, dbias


def _gradient_of(access: Any, parameter: Array | float | None, x: Array) -> Array | None:
    """Room for the gradient of a parameter; of a number, for one of x's dtype."""
    if parameter is None:
        return None
    like = x[(0,) * x.ndim] if isinstance(parameter, float) else parameter
    return access.empty_like(like if access.is_contiguous(like) else access.contiguous(like))


def _prepare_sums(access: Any, x: Array, task: Task, dweight: Array | None, dbias: Array | None) -> Array:
    """Room for statistics and sums, and where all of it lies; it must live until the kernels are started."""
    task.rows_of_block = max(_LEAST_BLOCK, -(-task.rows // _MOST_BLOCKS))
    task.blocks = -(-task.rows // task.rows_of_block)
    count = _STATISTICS * task.rows
    room = access.numbers(x, count + 2 * task.blocks * task.features)
    task.statistics = access.address(room)
    task.sums = access.address(room) + 8 * count
    if dweight is not None:
        task.dweight, task.dweight_code = access.address(dweight), CODES[dtype_name(dweight.dtype)]
    if dbias is not None:
        task.dbias, task.dbias_code = access.address(dbias), CODES[dtype_name(dbias.dtype)]
    return room


def _add_up(choice: Choice, ordinal: int, task: Task, stream: int) -> None:
    across = -(-task.features // _THREADS)
    for step, down in ((ADD_ROWS, min(task.blocks, _MOST_GRID)), (ADD_BLOCKS, 1)):
        launch(kernel(choice._replace(step=step), _THREADS, ordinal), (across, down), _THREADS, task, stream)
