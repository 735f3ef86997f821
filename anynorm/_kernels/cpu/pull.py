"""The derivative of a checked call -> the fused kernel for it, for NumPy arrays and CPU tensors alike."""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable
from functools import cache, partial
from typing import Any

import numpy

from anynorm._check import Call, Gradient
from anynorm._kernels.cpu import scale_of
from anynorm._kernels.cpu.call import ACCESS, LEAST_SHARED_NBYTES, kind_of
from anynorm._kernels.cpu.crew import Job, job_of, share
from anynorm._kernels.cpu.layout import Layout, plan
from anynorm._kernels.cpu.memory import NumPy
from anynorm._kernels.cpu.rescue import pull_row
from anynorm._kernels.cpu.tags import RULES, TAGS, WIDE64
from anynorm._threads import get_threads

Array = Any

# Rows whose shares are added up in one go, and how many such sums there are at most. They depend on the shape alone, and
# so do the bits of the whole sum. Sums of float64 for so few rows take a quarter of the memory that rows of float32 do.
_LEAST_BLOCK = 16
_MOST_BLOCKS = 64


def pull(gradient: Gradient) -> tuple[Array, Array | None, Array | None]:
    """Return dx, dweight and dbias."""
    call, dy, dtotal, wanted = gradient
    access, x, kind = ACCESS[call.library.name], call.x, kind_of(call.x.dtype)
    features = math.prod([x.shape[axis] for axis in call.axes])
    size = math.prod(x.shape)
    rows, nbytes = size // features, size * kind.itemsize
    dx = access.empty_like(x, nbytes)
    weight, weight_code, dweight, dweight_code = _parameter(access, call.weight, x, wanted)
    bias, _, dbias, dbias_code = _parameter(access, call.bias, x, wanted)
    block = max(_LEAST_BLOCK, -(-rows // _MOST_BLOCKS))
    blocks = -(-rows // block)
    has_sums = dweight is not None or dbias is not None
    refusals = blocks * (block + 1) if kind.itemsize == 8 else 0
    work = numpy.empty(2 * features + 2 * blocks * features * has_sums + refusals)
    layout = _layout(call, access, dy, dx, dtotal, kind.itemsize)
    arguments = (
        RULES[call.rule.name], call.eps, scale_of(call), features,
        access.address(x), access.address(dy), access.address(dx), None if dtotal is None else access.address(dtotal),
        None if layout is None else NumPy.address(layout.numbers), rows, block,
        0 if weight is None else access.address(weight), weight_code, call.weight_offset,
        0 if dweight is None else access.address(dweight), dweight_code,
        0 if dbias is None else access.address(dbias), dbias_code, NumPy.address(work),
    )  # fmt: skip
    variant = kind.code, dtotal is not None, layout is not None
    compute = _kernel(*variant)
    threads = get_threads() if nbytes >= LEAST_SHARED_NBYTES and blocks > 1 else 1
    if threads > 1:
        compute(-1, 0, *arguments)

        def work_alone(first: int, last: int, held: Any = (gradient, weight, dx, work, layout)) -> None:
            # Holds the memory too, as in call.py.
            compute(first, last, *arguments)

        share(_job(*variant), arguments, work_alone, blocks, rows, nbytes, threads)
    elif not refusals:
        compute(-1, blocks + 1, *arguments)
        return dx, dweight, dbias
    else:
        compute(-1, blocks, *arguments)
    if refusals:
        _rescue(gradient, layout, features, arguments[4:8], work[-refusals:].view(numpy.int64).reshape(blocks, -1), work[2 * features :] if has_sums else None)
    compute(blocks, blocks + 1, *arguments)
    return dx, dweight, dbias


def _parameter(
    access: Any, parameter: Array | float | None, x: Array, wanted: bool
) -> tuple[Array | None, int, Array | None, int]:
    """A parameter as the kernel reads it, and room for its gradient; each with the code of its dtype."""
    if parameter is None:
        return None, 0, None, 0
    if type(parameter) is float:
        return None, 0, access.empty_like(x[(0,) * x.ndim], 0) if wanted else None, kind_of(x.dtype).code
    code = kind_of(parameter.dtype).code
    parameter = parameter if access.is_contiguous(parameter) else access.contiguous(parameter)
    gradient = access.empty_like(parameter, 0) if wanted else None
    return parameter if parameter.ndim else None, code, gradient, code  # a scale is passed as a number


def _rescue(
    gradient: Gradient,
    layout: Layout | None,
    features: int,
    addresses: tuple[int | None, ...],
    refusals: numpy.ndarray,
    sums: numpy.ndarray | None,
) -> None:
    """Have the definition take the rows that the kernel has left, and add what they are of the sums."""
    for unit, (count, *rows) in enumerate(refusals):
        for row in rows[:count]:
            share_of_row = pull_row(gradient, layout, features, addresses, int(row))
            if sums is not None:
                sums[2 * unit * features :][:features] += share_of_row


@cache
def _kernel(code: int, has_dtotal: bool, has_layout: bool) -> Callable[..., int]:
    jit, (function, *tags) = _jit(), _types(code)
    return partial(jit.entry(function, jit.signature_of_pull(*tags, has_dtotal, has_layout)), *tags)


@cache
def _job(code: int, has_dtotal: bool, has_layout: bool) -> Job | None:
    """The same, to be shared among threads."""
    _kernel(code, has_dtotal, has_layout)
    jit, (function, *tags) = _jit(), _types(code)
    return job_of(jit.native(function, jit.signature_of_pull(*tags, has_dtotal, has_layout)))


def _jit() -> Any:
    return importlib.import_module("anynorm._kernels.cpu.jit")


def _types(code: int) -> tuple[Any, Any, Any]:
    """The kernel, and the numbers by whose types it is compiled."""
    backward = importlib.import_module("anynorm._kernels.cpu.backward")
    return backward.pull_rows, list(TAGS.values())[code], WIDE64


def _layout(call: Call, access: Any, dy: Array, dx: Array, dtotal: Array | None, itemsize: int) -> Layout | None:
    arrays = [call.x, dy, dx, *(() if dtotal is None else (dtotal,))]
    if call.axes[0] == call.x.ndim - len(call.axes) and all(map(access.is_contiguous, arrays)):
        return None
    strides = [access.strides(array) for array in (*arrays, *arrays[: 4 - len(arrays)])]
    return plan(call.x.shape, list(zip(*strides, strict=True)), call.axes, itemsize, 0, False, columns=False)
