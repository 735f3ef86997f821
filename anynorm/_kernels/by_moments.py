"""Derivatives by way of moments, through the definition: of a norm with given ones, and of moments themselves."""

from __future__ import annotations

from typing import Any, NamedTuple, cast

import numpy

from anynorm._check import Call, Gradient
from anynorm._definition.counting import multiplier
from anynorm._definition.derivative import by_statistics, derive_given, derive_moments
from anynorm._definition.norms import Precision, Step
from anynorm._kernels import definition, definition_vjp
from anynorm._moments import Moments, quietly, statistics_of
from anynorm._moments_gradient import MomentsGradient, in_factors, is_about_zero, parts_of

Array = Any


class Derivative(NamedTuple):
    """The gradients of a norm that was given moments, and for each row the sums of g = dy * weight and g * x_hat."""

    dx: Array
    dweight: Array | None
    dbias: Array | None
    of_g: Array
    along: Array


def vjp(gradient: Gradient) -> tuple[Array, Array | None, Array | None, MomentsGradient]:
    """Return dx, dweight, dbias and the gradient of the moments that the call gives."""
    call = gradient.call
    with quietly(call.library.namespace, call.x):
        step = step_of(call)
        found = (_vjp_blocks if call.library.name == "numpy" else vjp_whole)(gradient, step)
        return (*found[:3], by_moments(call, step, found.of_g, found.along))


def step_of(call: Call) -> Step:
    """Step 2 of the moments that a call gives."""
    return definition.step_of_given(call, cast(Moments, call.moments), call.precision._replace(stated=False))


def by_moments(call: Call, step: Step, of_g: Array, along: Array) -> MomentsGradient:
    """The gradient of the moments that a call gives, from the sums over its rows."""
    xp, moments = call.library.namespace, cast(Moments, call.moments)
    found, mean = statistics_of(moments), None
    if not call.rule.centred and found.mean is not None:
        mean = found.mean if found.mean_low is None else found.mean + found.mean_low
        if step.unit is not None and found.unit is not None:
            mean = mean * (step.unit / found.unit)
    count = multiplier(xp, moments.count, along)
    by = by_statistics(xp, step, mean, (of_g, along), count, call.rule, call.eps, call.precision)
    return in_factors(*by, about_zero=not call.rule.centred)


def vjp_whole(gradient: Gradient, step: Step) -> Derivative:
    """The derivative of the whole array, for a step that is known."""
    found, call = _vjp(gradient, step), gradient.call
    dweight, dbias = definition_vjp.as_parameters(call, found.dweight, found.dbias)
    return found._replace(dweight=dweight, dbias=dbias)


def _vjp_blocks(gradient: Gradient, step: Step) -> Derivative:
    """The same of a NumPy array, a block of rows at a time."""
    call, dy, _, wanted = gradient
    dx, of_g, along = numpy.empty_like(call.x, subok=False), *(numpy.empty(step.factor.shape) for _ in range(2))
    sums = definition_vjp.SumsOfBlocks(call)
    for block in definition.blocks_of_rows(call.x.shape, call.axes):
        of_rows = Step(*(one[block] if isinstance(one, numpy.ndarray) else one for one in step))
        of_block = definition.with_parameters_for(call, block)._replace(x=call.x[block])
        part = _vjp(Gradient(of_block, dy[block], None, wanted), of_rows)
        dx[block], of_g[block], along[block] = part.dx, part.of_g, part.along
        sums.add(block, part[1:3])
    return Derivative(dx, *sums.gradients(), of_g, along)


def _vjp(gradient: Gradient, step: Step) -> Derivative:
    """The same, with dweight and dbias in the dtype that is computed in, and not yet shaped."""
    call, dy, _, wanted = gradient
    xp, precision = call.library.namespace, definition.precision_of(call)
    x, dy = (xp.astype(one, precision.dtype, copy=False) for one in (call.x, dy))
    weight, _ = definition.parameters_of(call, precision, dy)
    dx, share, of_g, along = derive_given(xp, x, dy, step, weight, call.axes, call.rule, call.eps, precision)
    dweight, dbias = definition_vjp.sums_of_parameters(call, share, dy, precision, wanted)
    dx = definition.with_lengths(xp, xp.astype(dx, call.x.dtype, copy=False), tuple(x.shape))
    return Derivative(dx, dweight, dbias, of_g, along)


def vjp_moments(call: Call, moments: Moments, gradient: MomentsGradient) -> Array:
    """Return dx, where the moments are those of the call's array."""
    xp, precision = call.library.namespace, call.precision
    with quietly(xp, call.x):
        zero = xp.zeros_like(statistics_of(moments).squares)
        *by, factor, unit = parts_of(gradient)
        mean, variance = (zero if one is None else xp.astype(one, precision.dtype, copy=False) for one in by)
        parts = None if is_about_zero(gradient) else mean, variance, factor, unit
        if call.library.name != "numpy":
            return _vjp_moments(call, moments, parts, precision)
        dx = numpy.empty_like(call.x, subok=False)
        for block in definition.blocks_of_rows(call.x.shape, call.axes):
            of_rows: Any = tuple(None if one is None else one[block] for one in parts)
            part = call._replace(x=call.x[block])
            dx[block] = _vjp_moments(part, definition.part_of_moments(moments, block), of_rows, precision)
        return dx


def _vjp_moments(call: Call, moments: Moments, parts: tuple[Any, ...], precision: Precision) -> Array:
    xp = call.library.namespace
    x = xp.astype(call.x, precision.dtype, copy=False)
    dx = derive_moments(xp, x, statistics_of(moments), precision, *parts)
    return definition.with_lengths(xp, xp.astype(dx, call.x.dtype, copy=False), tuple(x.shape))
