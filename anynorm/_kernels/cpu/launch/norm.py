"""A checked call -> a fused kernel on the CPU, for NumPy arrays and torch tensors alike.

Kernels are handed addresses, so both libraries run the same machine code and get the same bits.
"""

from __future__ import annotations

from typing import Any

from anynorm._check import Call
from anynorm._kernels.cpu.compiler.entries import Kernel, kernel
from anynorm._kernels.cpu.fast_path.offers import offer
from anynorm._kernels.cpu.kernels.task import Task, Variant, needs_float64
from anynorm._kernels.cpu.language.dtypes import FLOAT64
from anynorm._kernels.cpu.launch.layout import Layout, lay_out
from anynorm._kernels.cpu.launch.machine import empty_like
from anynorm._kernels.cpu.launch.tasks import dtype_of, may_stream, task_of, y_and_total_of
from anynorm._kernels.cpu.threads.crew import launch

# Where the kernels lie that take what another one cannot hold, by the name and the variant of that one; they are found
# when it has met such a row.
_fallbacks: dict[tuple[str, Variant], int] = {}


def run(call: Call) -> Any:
    """Return y, or (y, total) where the call has a residual."""
    return run_from(call, 0)


def run_from(call: Call, first: int) -> Any:
    """The same, where the fast path has written the rows before the first one."""
    memory, x, residual, dtype = call.library.memory, call.x, call.residual, dtype_of(call.x.dtype)
    if call.out is None:
        y = empty_like(memory, x)
        total = None if residual is None else empty_like(memory, x)
    else:
        y, total = y_and_total_of(call)
    streaming = may_stream(call, y, total)
    layout = lay_out(call, dtype.itemsize, residual, y, total, streaming=streaming, columns=True)
    task, keepalive = task_of(call, residual, y, total, layout, streaming=streaming)
    name, variant = kernel_for(call, task, layout)
    units = task.rows if layout is None else layout.units
    task.float64_kernel = _fallbacks.get((name, variant), 0)

    def resume(first: int, last: int) -> None:
        _normalize(name, variant, task, first, last)

    if first:
        resume(first, units)
    else:
        compiled = kernel(name, variant)
        launch(compiled, task, units, x.nbytes, keepalive, resume)
        offer(call, variant, compiled.address, layout, task.layout, (y, total), run_from)
    if task.float64_kernel:  # small calls go on by themselves from now on
        wide = variant._replace(in_float64=True)
        offer(call, wide, kernel(name, wide).address, layout, task.layout, (y, total), run_from)
    if call.out is not None:
        for one in call.out:
            memory.written(one)
    return y if residual is None else (y, total)


def kernel_for(call: Call, task: Task, layout: Layout | None) -> tuple[str, Variant]:
    """The name and the variant of the kernel for a call, of which this is the task."""
    dtype, is_residual = dtype_of(call.x.dtype), call.residual is not None
    name = "columns" if layout is not None and layout.in_columns else "float64" if dtype is FLOAT64 else "rows"
    variant = Variant.of(
        call.rule, dtype.code, dtype is FLOAT64, has_residual=is_residual, has_layout=layout is not None
    )
    offset = 0.0 if variant.rounds_weight else call.weight_offset
    if needs_float64(variant.rule, dtype.code, task.weight_code, task.bias_code, offset):
        variant = variant._replace(in_float64=True)
    return name, variant


def _normalize(name: str, variant: Variant, task: Task, first: int, last: int) -> None:
    """Normalize rows, or blocks of columns, first to last: where the kernel stops, float64 takes over."""
    done = kernel(name, variant).run(task, first, last)
    if 0 <= done < last:
        _fallbacks[name, variant] = task.float64_kernel = _in_float64(name, variant).place
        kernel(name, variant).run(task, done, last)
    elif done < 0:
        _in_float64(name, variant).run(task, first, last)


def _in_float64(name: str, variant: Variant) -> Kernel:
    """The same kernel in float64."""
    return kernel(name, variant._replace(in_float64=True))
