"""The derivative of Dask arrays: a task for each block, whose shares of the parameters' gradients are summed."""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable
from typing import Any

import numpy

from anynorm._check import Call, Gradient
from anynorm._kernels.blocks import Block, as_dtype, call_on_block, described, in_chunks
from anynorm._kernels.definition_vjp import summed_axes
from anynorm._libraries import library_of, library_of_blocks
from anynorm._parameters import axes_of
from anynorm._tasks import each_block
from anynorm._threads import alone

Array = Any
VjpBlock = Callable[[Gradient], tuple[Array, Array | None, Array | None]]


def vjp(gradient: Gradient, vjp_block: VjpBlock) -> tuple[Array, Array | None, Array | None]:
    """Return dx, dweight and dbias of rows that lie in blocks."""
    call, x = gradient.call, gradient.call.x
    block, arguments = prepared(gradient, vjp_block, {})
    index = tuple(range(x.ndim))
    derivative = call.library.namespace.blockwise(
        _vjp_on_block, index, *arguments, block=block, token=f"{call.rule.name}-gradient",
        meta=x._meta, align_arrays=False,
    )  # fmt: skip
    return gathered(gradient, derivative)


def prepared(gradient: Gradient, vjp_block: VjpBlock, more: dict[str, Array]) -> tuple[Block, list[Any]]:
    """The same as `described`, with dy and dtotal among the arrays."""
    chunks = gradient.call.x.chunks
    given = {"dy": gradient.dy} if gradient.dtotal is None else {"dy": gradient.dy, "dtotal": gradient.dtotal}
    return described(gradient.call, vjp_block, {name: in_chunks(one, chunks) for name, one in given.items()} | more)


def gathered(gradient: Gradient, derivative: Array) -> tuple[Array, Array | None, Array | None]:
    """dx, dweight and dbias of an array of which each block is a tuple of them."""
    call, x = gradient.call, gradient.call.x
    dx = each_block(operator.itemgetter(0), f"{call.rule.name}-dx", derivative, chunks=x.chunks, meta=x._meta)
    if not gradient.parameters:
        return dx, None, None
    dweight, dbias = (
        None if parameter is None else _summed(call, derivative, place, name, parameter)
        for place, name, parameter in ((1, "dweight", call.weight), (2, "dbias", call.bias))
    )
    return dx, dweight, dbias


def _summed(call: Call, derivative: Array, place: int, name: str, parameter: Array | float) -> Array:
    """The sum of the blocks' shares, in the shape and dtype of the parameter; for a number, 0-d and of x's dtype."""
    from dask.array.utils import meta_from_array

    x, of_blocks = call.x, library_of_blocks(call.x)
    over, ndim = summed_axes(call, parameter), 0 if isinstance(parameter, float) else parameter.ndim
    wide = of_blocks.namespace.astype(x._meta, of_blocks.precision(x._meta).dtype)
    chunks = tuple((1,) * len(along) if axis in over else along for axis, along in enumerate(x.chunks))
    name = f"{call.rule.name}-{name}"
    total = each_block(operator.itemgetter(place), name, derivative, chunks=chunks, meta=wide)
    if over:
        total = summed_over(total, over, name, keepdims=ndim == x.ndim)
    meta = meta_from_array(x._meta, 0) if isinstance(parameter, float) else parameter._meta
    return each_block(functools.partial(as_dtype, dtype=meta.dtype), name, total, chunks=total.chunks, meta=meta)


def summed_over(values: Array, over: tuple[int, ...], name: str, keepdims: bool) -> Array:
    """The sum over axes, along which each block has length 1, in a tree of tasks."""
    from dask.array import reduction
    from dask.array.utils import meta_from_array

    meta = meta_from_array(values._meta, values.ndim - (0 if keepdims else len(over)))
    return reduction(values, _sum, _sum, axis=over, keepdims=keepdims, dtype=values.dtype, meta=meta, name=name)


def _vjp_on_block(*arrays: Any, block: Block) -> tuple[Array, Array | None, Array | None]:
    """What a task does: dx of its block, and its share of dweight and dbias, in the wide dtype."""
    with alone(), numpy.errstate(all="ignore"):
        return run_on_block(block, gradient_on_block(block, arrays)[0])


def gradient_on_block(block: Block, arrays: tuple[Any, ...]) -> tuple[Gradient, dict[str, Any]]:
    """The derivative of one block, with parameters in the wide dtype, and all that is given by name."""
    given = dict(zip(block.names, arrays, strict=True))
    call = call_on_block(block, given)
    weight, bias = (_widened(call, parameter) for parameter in (call.weight, call.bias))
    return Gradient(call._replace(weight=weight, bias=bias), given["dy"], given.get("dtotal")), given


def run_on_block(block: Block, gradient: Gradient) -> tuple[Array, Array | None, Array | None]:
    """Run the derivative; the gradients of parameters have as many axes as x."""
    dx, *sums = block.run(gradient)
    dweight, dbias = (None if one is None else spread(one, gradient.call) for one in sums)
    return dx, dweight, dbias


def _widened(call: Call, parameter: Array | float | None) -> Array | None:
    """A parameter in the wide dtype, so that its gradient has that too; a number as a 0-d array."""
    if parameter is None:
        return None
    xp, wide = call.library.namespace, call.precision.dtype
    if isinstance(parameter, float):
        return xp.full((), parameter, dtype=wide, **({"device": call.x.device} if call.library.devices else {}))
    return xp.astype(parameter, wide, copy=False)


def spread(one: Array, call: Call) -> Array:
    """The gradient of a parameter with as many axes as x, of length 1 where it has been summed over."""
    ndim = len(call.x.shape)
    own = axes_of(one, ndim, call.axes)
    return one[tuple(slice(None) if axis in own else None for axis in range(ndim))]


def _sum(values: Array, axis: tuple[int, ...], keepdims: bool) -> Array:
    with numpy.errstate(all="ignore"):
        return library_of(values).namespace.sum(values, axis=axis, keepdims=keepdims)
