"""The derivative by the definition, of arrays of any library."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy

from anynorm._check import Call, Gradient
from anynorm._definition.derivative import derive
from anynorm._definition.norms import Precision, finish, reduce
from anynorm._definition.scaling import units_of
from anynorm._definition.sums import total
from anynorm._kernels import sparse
from anynorm._kernels.definition import (
    blocks_of_rows,
    parameters_of,
    precision_of,
    with_lengths,
    with_parameters_for,
)
from anynorm._moments import quietly

Array = Any


def vjp(gradient: Gradient) -> tuple[Array, Array | None, Array | None]:
    """Return dx, dweight and dbias; a parameter that is not there has no gradient."""
    with quietly(gradient.call.library.namespace, gradient.dy):
        if gradient.call.library.refuses_to_fill:
            return sparse.vjp(gradient, vjp_whole)
        return _vjp_blocks(gradient) if gradient.call.library.name == "numpy" else vjp_whole(*gradient)


def vjp_whole(
    call: Call, dy: Array, dtotal: Array | None, wanted: bool = True
) -> tuple[Array, Array | None, Array | None]:
    """The same on the whole array; ``wanted`` says whether the gradients of the parameters are."""
    dx, dweight, dbias = _vjp(Gradient(call, dy, dtotal, wanted))
    return dx, *as_parameters(call, dweight, dbias)


def _vjp_blocks(gradient: Gradient) -> tuple[Array, Array | None, Array | None]:
    """The same of a NumPy array, a block of rows at a time."""
    call, dy, dtotal, wanted = gradient
    dx, sums = numpy.empty_like(call.x, subok=False), SumsOfBlocks(call)
    for block in blocks_of_rows(call.x.shape, call.axes):
        of_block = with_parameters_for(call, block)._replace(x=call.x[block])
        part = Gradient(of_block, dy[block], None if dtotal is None else dtotal[block], wanted)
        dx[block], *more = _vjp(part)
        sums.add(block, more)
    return dx, *sums.gradients()


class SumsOfBlocks:
    """The gradients of weight and bias, of which each block of rows has a share."""

    def __init__(self, call: Call) -> None:
        self._call = call
        self._shares: tuple[list[Array], list[Array]] = [], []
        self._cut: int | None = None  # the axis along which there is more than one block

    def add(self, block: tuple[slice, ...], shares: Sequence[Array | None]) -> None:
        """Keep the shares of the next block."""
        self._cut = next((axis for axis, at in enumerate(block) if at != slice(None)), None)
        for kept, one in zip(self._shares, shares, strict=True):
            if one is not None:
                kept.append(one)

    def gradients(self) -> tuple[Array | None, Array | None]:
        """Both, in the shapes and dtypes of weight and bias."""
        call = self._call
        found = (self._joined(kept, one) for kept, one in zip(self._shares, (call.weight, call.bias), strict=True))
        return as_parameters(call, *found)

    def _joined(self, shares: list[Array], parameter: Any) -> Array | None:
        if not shares:
            return None
        if self._cut is not None and self._cut not in summed_axes(self._call, parameter):  # each has a part of its own
            return numpy.concatenate(shares, axis=self._cut)
        return total(numpy, numpy.stack(shares), (0,))[0]


def _vjp(gradient: Gradient) -> tuple[Array, Array | None, Array | None]:
    """Return dx in x's dtype, and dweight and dbias in the dtype that is computed in, not yet shaped."""
    call, dy, dtotal, wanted = gradient
    xp, precision, dtype = call.library.namespace, precision_of(call), call.x.dtype
    x, dy = xp.astype(call.x, precision.dtype, copy=False), xp.astype(dy, precision.dtype, copy=False)
    step = finish(xp, reduce(xp, x, call.axes, call.rule, precision, call.eps), call.rule, call.eps, precision)
    weight, _ = parameters_of(call, precision, dy)
    dx, share = derive(xp, x, dy, step, weight, call.axes, call.rule, call.eps, precision)
    if dtotal is not None:
        dx = dx + xp.astype(dtotal, precision.dtype, copy=False)
    dweight, dbias = sums_of_parameters(call, share, dy, precision, wanted)
    return with_lengths(xp, xp.astype(dx, dtype, copy=False), tuple(x.shape)), dweight, dbias


def sums_of_parameters(
    call: Call, share: Array, dy: Array, precision: Precision, wanted: bool
) -> tuple[Array | None, Array | None]:
    """The gradients of weight and bias in the dtype that is computed in, not yet shaped."""
    dweight, dbias = (
        sum_up(call.library.namespace, values, summed_axes(call, parameter), precision)
        if wanted and parameter is not None
        else None
        for values, parameter in ((share, call.weight), (dy, call.bias))
    )
    return dweight, dbias


def summed_axes(call: Call, parameter: Any) -> tuple[int, ...]:
    """The axes over which the gradient of a parameter is summed, those that it has not or along which it is 1 long."""
    ndim = len(call.x.shape)
    if not call.rule.averaged:
        return tuple(range(ndim))
    if len(parameter.shape) < ndim:
        return tuple(axis for axis in range(ndim) if axis not in call.axes)
    return tuple(axis for axis in range(ndim) if parameter.shape[axis] == 1)


def sum_up(xp: Any, values: Array, over: tuple[int, ...], precision: Precision) -> Array:
    """A sum over rows, which does not overflow on the way."""
    if not precision.digits or not over:
        return total(xp, values, over)
    unit = units_of(xp, values, over, precision.digits)
    return total(xp, values * unit, over) / unit


def as_parameters(call: Call, dweight: Array | None, dbias: Array | None) -> tuple[Array | None, Array | None]:
    """Both in the shapes and dtypes of weight and bias."""
    return _as_parameter(call, call.weight, dweight), _as_parameter(call, call.bias, dbias)


def _as_parameter(call: Call, parameter: Array | float | None, found: Array | None) -> Array | None:
    """A sum over rows, in the shape and dtype of the parameter; for a number, 0-d and of x's dtype."""
    if parameter is None or found is None:
        return None
    xp = call.library.namespace
    shape, dtype = ((), call.x.dtype) if isinstance(parameter, float) else (tuple(parameter.shape), parameter.dtype)
    return xp.astype(xp.reshape(found, shape), dtype, copy=False)
