"""Runs the definition on an array of any library; takes every call."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy

from anynorm import _definition as definition
from anynorm._check import Call, Gradient
from anynorm._moments import Moments, arrays_of, of_arrays, quietly
from anynorm._paired import unit_of
from anynorm._pairs import Pair, add_pairs, sum_pair

Array = Any

# NumPy arrays are worked through in blocks of about this many elements, whose float64 temporaries stay in cache; memory
# beyond the result then stays flat too. layer_norm of 4096 x 1024 float32 on one core of an EPYC 7003 (512 KiB of L2,
# 32 MiB of L3): 57 ms in blocks of 2**13, 31 of 2**15, 30 of 2**17, 57 of 2**20, 81 at once; float64 likewise is best
# at 2**17. `python -m benchmarks.blocks` measures it.
_BLOCK_ELEMENTS = 1 << 17


def refuses(call: Call | Gradient) -> str | None:
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


def pull(gradient: Gradient) -> tuple[Array, Array | None, Array | None]:
    """Return dx, dweight and dbias; a parameter that is not there has no gradient."""
    call = gradient.call
    with quietly(call.library.namespace):
        if call.library.name != "numpy":
            dx, dweight, dbias = _pull(gradient)
        else:
            dx, dweight, dbias = _pull_blocks(gradient)
        return dx, _as_parameter(call, call.weight, dweight), _as_parameter(call, call.bias, dbias)


def _pull_blocks(gradient: Gradient) -> tuple[Array, Pair | None, Pair | None]:
    """Those of a NumPy array, a block of rows at a time."""
    call, dy, dtotal, wanted = gradient
    dx = numpy.empty_like(call.x, subok=False)
    sums: list[Pair | None] = [None, None]
    for block in _blocks(call.x.shape, call.axes):
        part = Gradient(call._replace(x=call.x[block]), dy[block], None if dtotal is None else dtotal[block], wanted)
        dx[block], *more = _pull(part)
        sums = [_plus(a, b) for a, b in zip(sums, more, strict=True)]
    return dx, sums[0], sums[1]


def _plus(a: Pair | None, b: Pair | None) -> Pair | None:
    if a is None or b is None:
        return b
    return (a[0] + b[0], None) if a[1] is None else add_pairs(a, b)


def _pull(gradient: Gradient) -> tuple[Array, Pair | None, Pair | None]:
    """The derivative in x's dtype, and the sums over rows that the parameters' are, in the wide one."""
    call, dy, dtotal, wanted = gradient
    xp, precision, dtype = call.library.namespace, call.precision, call.x.dtype
    x, dy = xp.astype(call.x, precision.dtype, copy=False), xp.astype(dy, precision.dtype, copy=False)
    if 0 in x.shape:
        precision = definition.Precision(precision.dtype)
    moments = definition.reduce(xp, x, call.axes, call.rule, precision, careful=True)
    found = definition.finish(xp, moments, call.rule, call.eps, precision)
    weight, _ = _parameters(call, precision)
    dx, share = definition.derive(xp, x, dy, found, weight, call.axes, call.rule, call.eps, precision)
    if dtotal is not None:
        dx = dx + xp.astype(dtotal, precision.dtype, copy=False)
    over = tuple(axis for axis in range(len(x.shape)) if not (call.rule.averaged and axis in call.axes))

    def sum_up(values: Pair) -> Pair:
        if not over:
            return values
        if not precision.digits:
            return xp.sum(values[0], axis=over, keepdims=True), None
        # Of the largest numbers too: sum_pair needs some room above them.
        unit = unit_of(xp, values[0], over, precision.digits)
        high, low = sum_pair(xp, values[0] * unit, over, precision.digits)
        low = low if values[1] is None else low + xp.sum(values[1] * unit, axis=over, keepdims=True)
        return high / unit, low / unit

    dweight = sum_up(share) if wanted and call.weight is not None else None
    dbias = sum_up((dy, None)) if wanted and call.bias is not None else None
    return xp.astype(dx, dtype, copy=False), dweight, dbias


def _as_parameter(call: Call, parameter: Array | float | None, found: Pair | None) -> Array | None:
    """A sum over rows, with the shape and dtype of what it is the gradient of; those of x where that is a number."""
    if parameter is None or found is None:
        return None
    xp = call.library.namespace
    shape, dtype = ((), call.x.dtype) if isinstance(parameter, float) else (tuple(parameter.shape), parameter.dtype)
    value = found[0] if found[1] is None else found[0] + found[1]
    return xp.astype(xp.reshape(value, shape), dtype, copy=False)


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
    arrays = [None if one is None else one[block] for one in arrays_of(moments)]
    return of_arrays(moments.count, arrays, moments.namespace)


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
