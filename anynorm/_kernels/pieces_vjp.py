"""The derivative of Dask arrays whose rows are cut.

With the merged moments of whole rows, a task for each block forms the sums of x_hat, g = dy * weight and g * x_hat over
its piece of each row. A tree of tasks merges the sums, and another task for each block makes dx of them, with::

    mean((g - mean(g)) * (x_hat - mean(x_hat))) = mean(g * x_hat) - mean(g) * mean(x_hat)

Nothing cancels in this difference, for mean(x_hat) is 0 but for rounding.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import numpy

from anynorm._check import Gradient
from anynorm._definition.derivative import in_range, input_gradient
from anynorm._definition.norms import Step, deviations
from anynorm._definition.sums import total
from anynorm._kernels import blocks_vjp
from anynorm._kernels.blocks import Block, RunBlock, merged_moments, merged_over_rows
from anynorm._kernels.blocks_vjp import VjpBlock, gathered, gradient_on_block, prepared
from anynorm._kernels.definition import parameters_of, step_of_given
from anynorm._kernels.definition_vjp import sums_of_parameters
from anynorm._libraries import library_of
from anynorm._threads import alone

Array = Any


class _Sums(NamedTuple):
    """Sums over pieces of rows; those of g are without the powers of two that `in_range` took out."""

    x_hat: Array
    g: Array
    product: Array  # of g * x_hat
    powers: tuple[Array, ...]


def vjp(gradient: Gradient, reduce_block: RunBlock, vjp_block: VjpBlock) -> tuple[Array, Array | None, Array | None]:
    """Return dx, dweight and dbias; no block is joined with another."""
    call, x, xp = gradient.call, gradient.call.x, gradient.call.library.namespace
    if 0 in [x.shape[axis] for axis in call.axes]:
        return blocks_vjp.vjp(gradient, vjp_block)
    index, name = tuple(range(x.ndim)), f"{call.rule.name}-gradient"
    more = {"moments": merged_moments(call, reduce_block)}
    block, arguments = prepared(gradient, vjp_block, more)
    pieces = xp.blockwise(
        _sums_on_block, index, *arguments, block=block, adjust_chunks=dict.fromkeys(call.axes, 1),
        token=f"{name}-sums", meta=x._meta, align_arrays=False,
    )  # fmt: skip
    more["sums"] = merged_over_rows(pieces, call, _merge, f"{name}-sums")
    block, arguments = prepared(gradient, vjp_block, more)
    derivative = xp.blockwise(
        _vjp_on_block, index, *arguments, block=block, token=name, meta=x._meta, align_arrays=False
    )
    return gathered(gradient, derivative)


def _sums_on_block(*arrays: Any, block: Block) -> _Sums | None:
    """The sums over a block; None where it is empty."""
    with alone(), numpy.errstate(all="ignore"):
        gradient, _ = gradient_on_block(block, arrays)
        call = gradient.call
        if 0 in call.x.shape:
            return None
        x_hat, g, powers, _ = _terms(gradient)
        sums = [total(call.library.namespace, one, call.axes) for one in (x_hat, g, g * x_hat)]
        return _Sums(sums[0], sums[1], sums[2], powers)


def _vjp_on_block(*arrays: Any, block: Block) -> tuple[Array, Array | None, Array | None]:
    """The gradient dx of a block, and its share of dweight and dbias, in the wide dtype."""
    with alone(), numpy.errstate(all="ignore"):
        gradient, given = gradient_on_block(block, arrays)
        call, dy, dtotal, _ = gradient
        if 0 in call.x.shape:
            return blocks_vjp.run_on_block(block, gradient._replace(call=call._replace(moments=None)))
        xp, precision, sums = call.library.namespace, call.precision, given["sums"]
        x_hat, g, powers, step = _terms(gradient)
        g = _in_powers(g, powers, sums.powers)
        count = given["moments"].count if call.rule.averaged else 1
        across = sums.product / count
        if call.rule.centred:
            across = across - sums.g / count * (sums.x_hat / count)
            x_hat, g = x_hat - sums.x_hat / count, g - sums.g / count
        dx = input_gradient(xp, x_hat, g, across, list(sums.powers), step, call.rule, call.eps, precision)
        if dtotal is not None:
            dx = dx + xp.astype(dtotal, precision.dtype, copy=False)
        dy = xp.astype(dy, precision.dtype, copy=False)
        dweight, dbias = sums_of_parameters(call, dy * x_hat, dy, precision, True)
        return xp.astype(dx, call.x.dtype, copy=False), dweight, dbias


def _terms(gradient: Gradient) -> tuple[Array, Array, tuple[Array, ...], Step]:
    """x_hat and g = dy * weight of a block, neither of them centred yet, the powers of two that g lacks, the step."""
    call, dy, _, _ = gradient
    xp, precision = call.library.namespace, call.precision
    x, dy = (xp.astype(one, precision.dtype, copy=False) for one in (call.x, dy))
    moments: Any = call.moments
    step = step_of_given(call, moments, precision)
    x_hat = deviations(x, step) * step.factor
    g, weight, powers = in_range(xp, dy, parameters_of(call, precision, dy)[0], call.axes, precision)
    return x_hat, g if weight is None else g * weight, tuple(powers), step


def _in_powers(values: Array, own: tuple[Array, ...], powers: tuple[Array, ...]) -> Array:
    """Values that lack their own powers of two, as values that lack larger ones."""
    for power, larger in zip(own, powers, strict=True):
        values = values * (power / larger)
    return values


def _merge(pieces: list[_Sums | None]) -> _Sums | None:
    there = [piece for piece in pieces if piece is not None]
    return functools.reduce(_merge_two, there) if there else None


def _merge_two(a: _Sums, b: _Sums) -> _Sums:
    xp = library_of(a.g).namespace
    powers = tuple(xp.where(one > other, one, other) for one, other in zip(a.powers, b.powers, strict=True))
    g, product = (
        _in_powers(one, a.powers, powers) + _in_powers(other, b.powers, powers)
        for one, other in ((a.g, b.g), (a.product, b.product))
    )
    return _Sums(a.x_hat + b.x_hat, g, product, powers)
