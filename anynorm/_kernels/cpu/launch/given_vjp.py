"""Derivatives by way of moments through the kernels: of norms that were given some, and of moments themselves."""

from __future__ import annotations

from typing import Any

import numpy

from anynorm._check import Call, Gradient
from anynorm._definition.derivative import factors_of
from anynorm._definition.norms import Precision, Step
from anynorm._definition.scaling import product
from anynorm._kernels import by_moments
from anynorm._kernels.cpu.language.dtypes import FINISHED, TILES
from anynorm._kernels.cpu.launch.given import apply_numbers, host, in_numpy, moments_in_numpy, numbers_like
from anynorm._kernels.cpu.launch.layout import lay_out
from anynorm._kernels.cpu.launch.machine import empty_like
from anynorm._kernels.cpu.launch.tasks import dtype_of
from anynorm._kernels.cpu.launch.vjp import differentiate
from anynorm._libraries import library_of
from anynorm._moments import Moments, statistics_of
from anynorm._moments_gradient import MomentsGradient, is_about_zero, mapped, parts_of

Array = Any

# Of a factor and a unit in one: beyond, and beyond the reciprocal, they stay apart.
_LEAST_FACTOR = 2.0**-500


def vjp(gradient: Gradient) -> tuple[Any, ...]:
    """Return dx, dweight, dbias and the gradient of the moments that the call gives."""
    call, numbers = gradient.call, numbers_like(gradient.call, FINISHED)
    # As far as rows go; the numbers of each row are NumPy arrays.
    of_rows = call._replace(
        library=library_of(numbers),
        precision=Precision(numpy.float64, call.precision.digits),
        moments=moments_in_numpy(call.moments),
    )
    with numpy.errstate(all="ignore"):
        step = by_moments.step_of(of_rows)
        _write(of_rows, numbers, step)
    dx = empty_like(call.library.memory, call.x)
    itemsize = dtype_of(call.x.dtype).itemsize
    layout = lay_out(call, itemsize, gradient.dy, dx, numbers=numbers, columns=True, tiles=TILES)
    parameters = differentiate(gradient, dx, layout, numbers)
    with numpy.errstate(all="ignore"):
        of_g, along = (numbers[..., place] + 0.0 * numbers[..., place] for place in (0, 1))
        found = by_moments.by_moments(of_rows, step, of_g, along)
    return dx, *parameters, found if call.library.name == "numpy" else _in_torch(found)


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


def _write(call: Call, numbers: Array, step: Step) -> None:
    """Shift, factor, constant and unit of each row; the unit is 0 where the factor holds it too."""
    factor, *units = factors_of(numpy, step, call.rule, call.eps, call.precision)
    own: Any = 1.0 if step.unit is None else step.unit
    unit: Any = units[0] if units else 1.0
    whole = product(numpy, factor, units)
    size = numpy.abs(whole)
    # Rows of a narrower dtype have no unit in the kernel.
    is_whole = (size > _LEAST_FACTOR) & (size < 1.0 / _LEAST_FACTOR) | (not call.precision.digits)
    divisor = own / numpy.where(is_whole, 1.0, unit)
    shift, low = (0.0 if one is None else one / divisor for one in (step.shift, step.shift_low))
    numbers[..., 0], numbers[..., 1] = shift, numpy.where(is_whole, whole, factor)
    numbers[..., 2] = -low * numbers[..., 1]
    numbers[..., 3] = numpy.where(is_whole, 0.0, unit)


def _gradient_in_numpy(gradient: MomentsGradient) -> MomentsGradient:
    def in_float64(array: Any) -> Any:
        return host(array.double()) if hasattr(array, "double") else array.astype(numpy.float64)

    return mapped(in_float64, gradient)


def _in_torch(gradient: MomentsGradient) -> MomentsGradient:
    import torch

    return mapped(lambda one: torch.from_numpy(numpy.ascontiguousarray(one)), gradient)
