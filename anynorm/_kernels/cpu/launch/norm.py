"""A checked call -> a fused kernel on the CPU, for NumPy arrays and torch tensors alike.

Kernels are handed addresses, so both libraries run the same machine code and get the same bits.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

from anynorm._check import Call
from anynorm._kernels.cpu import scale_of
from anynorm._kernels.cpu.compiler.entries import kernel
from anynorm._kernels.cpu.fast_path.offers import offer
from anynorm._kernels.cpu.kernels.task import Task, Variant
from anynorm._kernels.cpu.language.dtypes import CACHE_LINE_NBYTES, CHUNK, CODES, FEW_ROWS, RULES
from anynorm._kernels.cpu.launch import extreme
from anynorm._kernels.cpu.launch.layout import Layout, lay_out
from anynorm._kernels.cpu.launch.machine import empty_like, last_cache_nbytes
from anynorm._kernels.cpu.threads.crew import LEAST_SHARED_NBYTES, launch
from anynorm._libraries import Memory, dtype_name
from anynorm._libraries.numpy_arrays import NumPy

Array = Any

# To fetch what will be read next gains where it comes from afar, and elsewhere takes room in the first cache: rms_norm
# of float32 without and with it, ns an element, 2 MB 0.29 and 0.34, 8 MB 0.58 and 0.49, 12 MB 0.81, 0.56 (EPYC 7003).
LEAST_FETCHED_NBYTES = 4 << 20


class _Kind(NamedTuple):
    """How a kernel is told of a dtype."""

    code: int
    in_float64: bool  # or in float32
    itemsize: int


_kinds: dict[Any, _Kind] = {}


def kind_of(dtype: Any) -> _Kind:
    """What a kernel is told of a dtype."""
    kind = _kinds.get(dtype)
    if kind is None:
        name = dtype_name(dtype)
        itemsize = {"float32": 4, "float64": 8}.get(name, 2)
        kind = _kinds[dtype] = _Kind(CODES[name], itemsize > 4, itemsize)
    return kind


def packed(memory: type[Memory], parameter: Array) -> Array:
    """A parameter whose elements lie one after the other."""
    return parameter if memory.is_contiguous(parameter) else memory.contiguous(parameter)


def _kind_of_call(call: Call) -> _Kind:
    kind = kind_of(call.x.dtype)
    if kind.itemsize == 4 and call.rule.averaged:
        # Pairs of float32 are formed of factors alone: what float32 does not hold of a parameter needs float64.
        parameters: tuple[Any, ...] = (call.weight, call.bias)
        wider = [one for one in parameters if one is not None and kind_of(one.dtype).itemsize > 4]
        if wider or call.weight_offset:
            return kind._replace(in_float64=True)
    return kind


def run(call: Call) -> Any:
    """Return y, or (y, total) where the call has a residual."""
    return _run_from(call, 0)


def _run_from(call: Call, first: int) -> Any:
    """The same, where the fast path has written the rows before the first one."""
    memory, x, residual = call.library.memory, call.x, call.residual
    shape, kind = x.shape, _kind_of_call(call)
    features = shape[call.axes[0]] if len(call.axes) == 1 else math.prod([shape[axis] for axis in call.axes])
    size = math.prod(shape)
    nbytes = size * kind.itemsize
    if call.out is None:
        y = empty_like(memory, x, nbytes)
        total = None if residual is None else empty_like(memory, x, nbytes)
    else:
        y, total = call.out if len(call.out) == 2 else (call.out[0], None)
    # Past the caches where x and y fill half of the last one together: streaming saves reading what is overwritten.
    # ns an element of rms_norm and then of a sum over y, float32 rows of 1024, stored and streamed, for a last cache of
    # 32 MB: 4 MB 0.54 and 0.69, 8 MB 0.82 and 0.71, 12 MB 1.15 and 0.84, 16 MB 1.14 and 0.92 (EPYC 7003, one core).
    streaming = 4 * nbytes >= last_cache_nbytes()
    # What is streamed fills cache lines, which elements that are not aligned never do.
    streaming = streaming and memory.address(y) % kind.itemsize == 0
    # The beginning of a row is read once more after it was written, so nothing may be in place.
    streaming = streaming and not _shares_address(memory, (y, total), (x, residual))
    layout = lay_out(call, kind.itemsize, residual, y, total, streaming=streaming, columns=True)
    streaming = streaming if layout is None else layout.streaming
    rows = size // features
    task, keepalive = _task(call, memory, kind, features, rows, y, total, layout, streaming)
    in_columns = layout is not None and layout.in_columns
    name = "float64" if kind.itemsize == 8 else "columns" if in_columns else "rows"
    variant = Variant(RULES[call.rule.name], kind.code, kind.in_float64, residual is not None, layout is not None)
    units = rows if layout is None else layout.units

    def resume(first: int, last: int) -> None:
        normalize(call, name, variant, layout, task, first, last)

    if first:
        resume(first, units)
    else:
        compiled = kernel(name, variant)
        launch(compiled, task, units, rows, nbytes, resume, keepalive)
        used = (x, y) if residual is None else (x, residual, y, total)
        if 4 * nbytes < last_cache_nbytes() and nbytes < LEAST_SHARED_NBYTES and all(map(memory.is_contiguous, used)):
            offer(call, variant, compiled.address, layout, task.layout, _run_from)
    if call.out is not None:
        for one in call.out:
            memory.written(one)
    return y if residual is None else (y, total)


def _shares_address(memory: type[Memory], outs: tuple[Array | None, ...], inputs: tuple[Array | None, ...]) -> bool:
    """Whether some out begins where an input does; the checks have seen to it that they are the same memory then."""
    read = [memory.address(one) for one in inputs if one is not None]
    return any(one is not None and memory.address(one) in read for one in outs)


def normalize(
    call: Call, name: str, variant: Variant, layout: Layout | None, task: Task, first: int, last: int
) -> None:
    """Run a kernel on rows, or blocks of columns, first to last."""
    while first < last:
        done = kernel(name, variant).run(task, first, last)
        if done == last:
            return
        # A row, or a block of them, is out of the range of the kernel; or, with such weights, all are.
        end = done + 1 if done >= 0 else last
        done = max(done, first)
        if name == "float64":
            addresses = task.x, task.residual or None, task.y, task.total or None
            for row in range(done, end):
                extreme.normalize_row(call, layout, task.features, addresses, row)
        elif name == "columns" and layout is not None and end == done + 1:
            rows = layout.rows_of(done)
            normalize(call, "rows", variant, layout, task, rows.start, rows.stop)
        else:
            kernel(name, variant._replace(in_float64=True)).run(task, done, end)
        first = end


def _task(
    call: Call,
    memory: type[Memory],
    kind: _Kind,
    features: int,
    rows: int,
    y: Array,
    total: Array | None,
    layout: Layout | None,
    streaming: bool,
) -> tuple[Task, Any]:
    """What a kernel is called with, and what must live as long as that."""
    weight: Any = call.weight
    bias, scale = call.bias, 1.0
    if not call.rule.averaged:
        weight, scale = None, scale_of(call)
    weight_code = bias_code = kind.code
    if weight is not None:
        weight_code = kind_of(weight.dtype).code
        weight = packed(memory, weight)
    if bias is not None:
        bias_code = kind_of(bias.dtype).code
        bias = packed(memory, bias)
    alike = weight_code == bias_code == kind.code and not call.weight_offset
    # Read where they lie, unless something is to be made of them or lanes would reach behind them.
    direct = (
        alike
        and kind.itemsize * features >= CACHE_LINE_NBYTES
        and (kind.itemsize == 4 or features > CHUNK or rows < FEW_ROWS)
    )
    task = Task(
        features=features, rows=rows, eps=call.eps, scale=scale, weight_offset=call.weight_offset,
        x=memory.address(call.x), residual=0 if call.residual is None else memory.address(call.residual),
        y=memory.address(y), total=0 if total is None else memory.address(total),
        layout=0 if layout is None else NumPy.address(layout.numbers),
        weight=0 if weight is None else memory.address(weight), weight_code=weight_code,
        bias=0 if bias is None else memory.address(bias), bias_code=bias_code,
        direct=direct, streaming=streaming, fetching=rows * features * kind.itemsize >= LEAST_FETCHED_NBYTES,
        block=0 if layout is None else layout.block, head=0 if layout is None else layout.head,
    )  # fmt: skip
    return task, (call, weight, bias, y, total, layout)
