"""The derivative of Dask arrays by way of moments: of norms that were given some, and of moments themselves.

A task for each block does it, whether rows are cut or not. What the blocks of a row have of the gradient of its moments
is summed.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import numpy

from anynorm._check import Call, Gradient
from anynorm._kernels.blocks import Block, call_on_block, described, in_chunks
from anynorm._kernels.blocks_vjp import gathered, gradient_on_block, prepared, spread, summed_over
from anynorm._libraries import library_of_blocks
from anynorm._moments import Moments
from anynorm._moments_gradient import MomentsGradient, in_factors, is_about_zero, parts_of
from anynorm._tasks import each_block
from anynorm._threads import alone

Array = Any
_PARTS = ("by_mean", "by_variance", "factor", "gradient_unit")  # those of `parts_of`, as arrays of a task


def vjp(
    gradient: Gradient, vjp_block: Callable[[Gradient], tuple[Any, ...]]
) -> tuple[Array, Array | None, Array | None, MomentsGradient]:
    """Return dx, dweight, dbias and the gradient of the moments that the call gives."""
    call, x = gradient.call, gradient.call.x
    block, arguments = prepared(gradient, vjp_block, {})
    name = f"{call.rule.name}-gradient-given"
    derivative = call.library.namespace.blockwise(
        _vjp_on_block, tuple(range(x.ndim)), *arguments, block=block, token=name, meta=x._meta, align_arrays=False
    )
    of_blocks = library_of_blocks(x)
    precision = of_blocks.precision(x._meta)
    wide = of_blocks.namespace.astype(x._meta, precision.dtype)
    chunks = tuple((1,) * len(along) if axis in call.axes else along for axis, along in enumerate(x.chunks))

    def part(place: int) -> Array:
        return each_block(
            operator.itemgetter(place), f"{name}-{_PARTS[place - 3]}", derivative, chunks=chunks, meta=wide
        )

    # The same for each block of a row, so that of the first will do.
    first = tuple(slice(0, 1) if axis in call.axes else slice(None) for axis in range(x.ndim))
    by_mean, by_variance = (summed_over(part(place), call.axes, f"{name}-sum", True) for place in (3, 4))
    unit = part(6)[first] if precision.digits else None
    return *gathered(gradient, derivative), in_factors(
        by_mean, by_variance, part(5)[first], unit, about_zero=not call.rule.centred
    )


def vjp_moments(
    call: Call, moments: Moments, gradient: MomentsGradient, vjp_block: Callable[[Call, Moments, MomentsGradient], Any]
) -> Array:
    """Return dx, where the moments are those of the call's array."""
    x = call.x
    chunks = tuple((1,) if axis in call.axes else along for axis, along in enumerate(x.chunks))
    given = zip(_PARTS, parts_of(gradient), strict=True)
    parts = {name: in_chunks(one, chunks) for name, one in given if one is not None}
    block, arguments = described(call._replace(moments=moments), vjp_block, parts)
    return call.library.namespace.blockwise(
        _vjp_moments_on_block, tuple(range(x.ndim)), *arguments, block=block, about_zero=is_about_zero(gradient),
        token="moments-gradient", meta=x._meta, align_arrays=False,
    )  # fmt: skip


def _vjp_on_block(*arrays: Any, block: Block) -> tuple[Any, ...]:
    """The gradient dx of a block, and its shares of those of the parameters and the moments, in the wide dtype."""
    with alone(), numpy.errstate(all="ignore"):
        gradient, _ = gradient_on_block(block, arrays)
        dx, *sums, by_moments = block.run(gradient)
        return dx, *(None if one is None else spread(one, gradient.call) for one in sums), *parts_of(by_moments)


def _vjp_moments_on_block(*arrays: Any, block: Block, about_zero: bool) -> Array:
    with alone(), numpy.errstate(all="ignore"):
        given = dict(zip(block.names, arrays, strict=True))
        call = call_on_block(block, given)
        gradient = in_factors(*(given.get(name) for name in _PARTS), about_zero=about_zero)
        return block.run(call._replace(moments=None), call.moments, gradient)
