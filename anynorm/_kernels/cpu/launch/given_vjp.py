"""Derivatives by way of moments through the kernels: of norms that were given some, and of moments themselves."""

from __future__ import annotations

from typing import Any

import numpy

from anynorm._check import Call, Gradient
from anynorm._definition.counting import multiplier
from anynorm._definition.scaling import product
from anynorm._kernels import by_moments
from anynorm._kernels.cpu.language.dtypes import FINISHED, TILES
from anynorm._kernels.cpu.launch.given import (
    apply_numbers,
    finish_for_gradient,
    host,
    in_numpy,
    moments_in_numpy,
    numbers_like,
)
from anynorm._kernels.cpu.launch.layout import lay_out
from anynorm._kernels.cpu.launch.machine import empty_like
from anynorm._kernels.cpu.launch.tasks import dtype_of
from anynorm._kernels.cpu.launch.vjp import differentiate
from anynorm._moments import Moments, statistics_of
from anynorm._moments_gradient import MomentsGradient, in_factors, is_about_zero, mapped, parts_of

Array = Any


def vjp(gradient: Gradient) -> tuple[Any, ...]:
    """Return dx, dweight, dbias and the gradient of the moments that the call gives."""
    call = gradient.call._replace(rule=gradient.call.rule.formula)
    numbers, of_gradient = finish_for_gradient(call)
    dx = empty_like(call.library.memory, call.x)
    itemsize = dtype_of(call.x.dtype).itemsize
    layout = lay_out(call, itemsize, gradient.dy, dx, numbers=numbers, columns=True, tiles=TILES)
    parameters = differentiate(gradient, dx, layout, numbers)
    with numpy.errstate(all="ignore"):
        found = _gradient_of_moments(call, numbers, of_gradient)
    return dx, *parameters, found if call.library.name == "numpy" else _in_torch(found)


def _gradient_of_moments(call: Call, sums: Array, of_gradient: Array) -> MomentsGradient:
    """The gradient, from the sums of g and of g * x_hat over each row; `by_statistics` has the formula."""
    moments: Any = call.moments
    # NaN where a term is NaN or Inf.
    of_g, along = (sums[..., place] + 0.0 * sums[..., place] for place in (0, 1))
    factor, unit, mean, of_length = (of_gradient[..., place] for place in range(FINISHED))
    unit = unit if call.precision.digits else None
    if call.rule.centred:
        return in_factors(-of_g, -0.5 * along, factor, unit, about_zero=False)
    by_variance = -0.5 * (along * of_length)
    if not call.rule.averaged:
        by_variance = by_variance * multiplier(
            numpy, moments.count if type(moments.count) is int else host(moments.count), along
        )
    return in_factors(by_variance * 2.0 * mean, by_variance, factor, unit, about_zero=True)


def vjp_moments(call: Call, moments: Moments, gradient: MomentsGradient) -> Array:
    """Return dx, where the moments are those of the call's array; of float64 by the definition, of NumPy arrays."""
    given, found = _gradient_in_numpy(gradient), moments_in_numpy(moments)
    if call.precision.digits:
        dx = by_moments.vjp_moments(in_numpy(call), found, given)
        return dx if call.library.name == "numpy" else call.library.namespace.asarray(dx)
    mean, variance, *factors = parts_of(given)
    factors = [one for one in factors if one is not None]
    numbers, statistics = numbers_like(call, FINISHED), statistics_of(found)
    shift: Any = 0.0
    with numpy.errstate(all="ignore"):
        factor = 0.0 if variance is None else product(numpy, variance * (2.0 / found.count), factors * 2)
        if is_about_zero(given):  # and NaN where the row holds NaN or Inf
            constant = 0.0 * statistics.squares
        else:
            low: Any = 0.0 if statistics.mean_low is None else statistics.mean_low
            shift, constant = statistics.mean, 0.0 if mean is None else product(numpy, mean / found.count, factors)
            constant = constant - factor * low
        numbers[..., 0], numbers[..., 1], numbers[..., 2] = shift, factor, constant
    return apply_numbers(call, numbers)


def _gradient_in_numpy(gradient: MomentsGradient) -> MomentsGradient:
    def in_float64(array: Any) -> Any:
        return host(array.double()) if hasattr(array, "double") else array.astype(numpy.float64)

    return mapped(in_float64, gradient)


def _in_torch(gradient: MomentsGradient) -> MomentsGradient:
    import torch

    return mapped(lambda one: torch.from_numpy(numpy.ascontiguousarray(one)), gradient)
