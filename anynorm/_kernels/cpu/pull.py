"""The derivative of a checked call -> the fused kernel for it, for NumPy arrays and CPU tensors alike."""

from __future__ import annotations

import importlib
import math
from functools import cache, partial
from collections.abc import Callable
from typing import Any

import numpy

from anynorm._check import Call, Gradient
from anynorm._kernels import definition
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
    call, dy, dtotal = gradient
    access, x, kind = ACCESS[call.library.name], call.x, kind_of(call.x.dtype)
    features = math.prod([x.shape[axis] for axis in call.axes])
    size = math.prod(x.shape)
    rows, nbytes = size // features, size * kind.itemsize
    dx = access.empty_like(x, nbytes)
    block = max(_LEAST_BLOCK, -(-rows // _MOST_BLOCKS))
    blocks = -(-rows // block)
    weights = _weights(call, access, features)
    wanted = call.weight is not None or call.bias is not None
    sums = numpy.empty((blocks, 2, features) if wanted else 0)
    refused = numpy.empty((blocks, block + 1) if kind.itemsize == 8 else 0, numpy.int64)
    layout = _layout(call, access, dy, dx, dtotal, kind.itemsize)
    arguments = (
        RULES[call.rule.name], call.eps, 1.0, features,
        access.address(x), access.address(dy), access.address(dx), None if dtotal is None else access.address(dtotal),
        None if layout is None else NumPy.address(layout.numbers),
        NumPy.address(weights), kind.code, NumPy.address(sums) if wanted else 0, rows, 0.0,
        call.bias is not None, False, block, NumPy.address(refused),
    )  # fmt: skip
    threads = get_threads() if nbytes >= LEAST_SHARED_NBYTES and blocks > 1 else 1
    variant = kind.code, layout is not None, dtotal is not None
    if threads == 1:
        _kernel(*variant)(0, blocks, *arguments)
    else:

        def work(first: int, last: int, held: Any = (gradient, dx, weights, sums, refused, layout)) -> None:
            # Holds the memory too, as in call.py.
            _kernel(*variant)(first, last, *arguments)

        share(_job(*variant), arguments, work, blocks, rows, nbytes, threads)
    for unit, found in enumerate(refused):
        for row in found[1 : 1 + found[0]]:
            share_of_row = pull_row(gradient, layout, features, arguments[4:8], int(row))
            if wanted:
                sums[unit, 0] += share_of_row
    return dx, *_parameters(call, access, sums)


@cache
def _kernel(code: int, has_layout: bool, has_dtotal: bool) -> Callable[..., int]:
    jit, types = importlib.import_module("anynorm._kernels.cpu.jit"), _types(code)
    return partial(jit.entry(*types, True, has_layout, has_dtotal), *types[1:])


@cache
def _job(code: int, has_layout: bool, has_dtotal: bool) -> Job | None:
    """The same, to be shared among threads."""
    _kernel(code, has_layout, has_dtotal)
    jit = importlib.import_module("anynorm._kernels.cpu.jit")
    return job_of(jit.native(*_types(code), True, has_layout, has_dtotal))


def _types(code: int) -> tuple[Any, Any, Any]:
    """The kernel, and the numbers by whose types it is compiled."""
    backward = importlib.import_module("anynorm._kernels.cpu.backward")
    return backward.pull_rows, list(TAGS.values())[code], WIDE64


def _weights(call: Call, access: Any, features: int) -> numpy.ndarray:
    """weight + weight_offset in float64; the scale of scale_norm for each feature."""
    weights = numpy.empty(features)
    if call.weight is None:
        weights.fill(1.0)
    elif not call.rule.averaged:
        weights.fill(float(call.weight))
    else:
        access.widen(call.weight, weights)
        if call.weight_offset:
            weights += call.weight_offset
    return weights


def _layout(call: Call, access: Any, dy: Array, dx: Array, dtotal: Array | None, itemsize: int) -> Layout | None:
    arrays = [call.x, dy, dx, *(() if dtotal is None else (dtotal,))]
    if call.axes[0] == call.x.ndim - len(call.axes) and all(map(access.is_contiguous, arrays)):
        return None
    strides = [access.strides(array) for array in (*arrays, *arrays[: 4 - len(arrays)])]
    return plan(call.x.shape, list(zip(*strides, strict=True)), call.axes, itemsize, 0, False, columns=False)


def _parameters(call: Call, access: Any, sums: numpy.ndarray) -> tuple[Array | None, Array | None]:
    """The sums of all blocks, one after the other, as gradients of what they belong to."""
    weight: Any = call.weight
    if weight is None and call.bias is None:
        return None, None
    with numpy.errstate(all="ignore"):
        shares, gradients = sums[0] if len(sums) == 1 else sums.sum(axis=0)
        dweight = dbias = None
        if weight is not None and call.rule.averaged:
            dweight = access.narrow(shares, weight.dtype, tuple(weight.shape))
        elif weight is not None:
            dweight = access.narrow(shares.sum(), call.x.dtype if type(weight) is float else weight.dtype, ())
        if call.bias is not None:
            dbias = access.narrow(gradients, call.bias.dtype, tuple(call.bias.shape))
    return dweight, dbias
