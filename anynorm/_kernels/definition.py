"""Runs the definition on an array of any library; takes every call."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy

from anynorm import _definition as definition
from anynorm._check import Call
from anynorm._moments import Moments, quietly

Array = Any

# NumPy arrays are worked through in blocks of about this many elements, whose float64 temporaries stay in cache; memory
# beyond the result then stays flat too. layer_norm of 4096 x 1024 float32 on one core of an EPYC 7003 (512 KiB of L2,
# 32 MiB of L3): 57 ms in blocks of 2**13, 31 of 2**15, 30 of 2**17, 57 of 2**20, 81 at once; float64 likewise is best
# at 2**17. `python -m benchmarks.blocks` measures it.
_BLOCK_ELEMENTS = 1 << 17


def refuses(call: Call) -> str | None:
    """Nothing is refused."""
    return None


def run(call: Call) -> Any:
    """Return y, or (y, total) where the call has a residual."""
    with quietly(call.library.namespace):
        return _run_blocks(call) if call.library.name == "numpy" else _run_whole(call)


def _run_whole(call: Call) -> Any:
    """The array at once, so that a tracer sees one graph."""
    y, total = _normalize(call, call.x, call.residual, call.moments)
    if call.out is not None:
        for target, value in zip(call.out, (y, total), strict=False):
            target[...] = value
        y, total = call.out if total is not None else (call.out[0], None)
    return y if total is None else (y, total)


def run_moments(call: Call) -> Moments:
    """Return the moments of the call's array."""
    xp, precision = call.library.namespace, call.precision
    with quietly(xp):
        x = xp.astype(call.x, precision.dtype)
        if 0 in call.x.shape:
            return _no_moments(call, x)
        return definition.reduce(xp, x, call.axes, call.rule, precision)


def _run_blocks(call: Call) -> Any:
    """A NumPy array, a block of rows at a time."""
    x, residual = call.x, call.residual
    if x.size <= _BLOCK_ELEMENTS and call.out is None:
        y, total = _normalize(call, x, residual, call.moments)
        return y if residual is None else (y, total)
    outs = call.out or tuple(numpy.empty_like(x, subok=False) for _ in range(1 if residual is None else 2))
    for block in _blocks(x.shape, call.axes):
        moments = None if call.moments is None else _part_of_moments(call.moments, block)
        results = _normalize(call, x[block], None if residual is None else residual[block], moments)
        for target, result in zip(outs, results, strict=False):
            target[block] = result
    return outs[0] if residual is None else outs


def _blocks(shape: tuple[int, ...], axes: tuple[int, ...]) -> Iterator[tuple[slice, ...]]:
    """Cut an array into blocks of whole rows, along the longest axis that is not normalized."""
    free = [axis for axis in range(len(shape)) if axis not in axes]
    if not free or 0 in shape:
        yield (slice(None),) * len(shape)
        return
    cut = max(free, key=shape.__getitem__)
    step = max(1, _BLOCK_ELEMENTS * shape[cut] // math.prod(shape))
    before = (slice(None),) * cut
    for start in range(0, shape[cut], step):
        yield (*before, slice(start, start + step))


def _part_of_moments(moments: Moments, block: tuple[slice, ...]) -> Moments:
    """The moments of a block of rows; no block is cut along a normalized axis."""

    def part(pair: Any) -> Any:
        return None if pair is None else tuple(None if one is None else one[block] for one in pair)

    unit = None if moments._unit is None else moments._unit[block]
    return Moments(moments.count, part(moments._mean), part(moments._squares), unit, moments._xp)


def _normalize(call: Call, x: Array, residual: Array | None, moments: Moments | None) -> tuple[Array, Array | None]:
    """Reduce, finish, apply; in x's dtype at both ends."""
    xp, precision = call.library.namespace, call.precision
    dtype, total = x.dtype, None
    if residual is not None:
        x = total = xp.astype(x + residual, dtype, copy=False)  # NumPy's sum has this machine's byte order
    wide = xp.astype(x, precision.dtype, copy=False)
    if 0 in x.shape:
        # Keeps an autograd graph whole; with no elements there is nothing to scale, so pairs are not needed.
        precision = definition.Precision(precision.dtype)
        moments = None
    if moments is None:
        moments = definition.reduce(xp, wide, call.axes, call.rule, precision)
    shift, factor, unit = definition.finish(xp, moments, call.rule, call.eps, precision)
    weight, bias = _parameters(call, precision)
    y = definition.apply(xp, wide, shift, factor, unit, weight, bias, precision)
    return xp.astype(y, dtype, copy=False), total


def _parameters(call: Call, precision: definition.Precision) -> tuple[Any, Any]:
    """Weight and bias in the wide type, shaped to broadcast against x."""
    xp, weight, bias = call.library.namespace, call.weight, call.bias
    if type(weight) is float:
        weight = definition.widen_scale(weight, precision)
    elif weight is not None:
        weight = definition.widen_weight(xp, _aligned(call, weight), call.weight_offset, precision)
    return weight, None if bias is None else _aligned(call, bias)


def _aligned(call: Call, parameter: Array) -> Array:
    """Give a parameter length 1 on the axes that are not normalized; trailing axes broadcast as they are."""
    ndim = len(call.x.shape)
    if not parameter.shape or call.axes[0] == ndim - len(call.axes):
        return parameter
    shape = tuple(length if axis in call.axes else 1 for axis, length in enumerate(call.x.shape))
    return call.library.namespace.reshape(parameter, shape)


def _no_moments(call: Call, x: Array) -> Moments:
    """Moments of rows without elements: count 0, everything else 0."""
    xp, paired = call.library.namespace, bool(call.precision.digits)
    shape = tuple(1 if axis in call.axes else length for axis, length in enumerate(x.shape))
    zeros = xp.zeros(shape, dtype=x.dtype, **({"device": x.device} if call.library.devices else {}))
    pair = (zeros, zeros if paired else None)
    count = math.prod([x.shape[axis] for axis in call.axes])
    return Moments(count, pair, pair, zeros + 1.0 if paired else None, xp)
