"""The derivative at rows of float64 of extreme magnitude: the definition takes them, one by one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy

from anynorm._check import Call, Gradient
from anynorm._kernels import definition_vjp
from anynorm._kernels.cpu import scale_of
from anynorm._kernels.cpu.launch.layout import Layout
from anynorm._libraries import library_of
from anynorm._libraries.memory import array_at

Array = Any


def vjp_row(
    gradient: Gradient,
    layout: Layout | None,
    features: int,
    addresses: tuple[int | None, ...],
    row: int,
    vjp: Callable[[Gradient], tuple[Any, ...]] = definition_vjp.vjp,
) -> Array:
    """Differentiate one row by the definition; return what it adds to the gradients of weight and bias, in one array.

    Addresses are those of x, dy, dx and dtotal.
    """
    rows: list[Any] = _row(layout, features, addresses, row)
    x, dy, dx, dtotal = rows
    call = _of_row(gradient.call, x.reshape(-1))
    if call.weight is None:
        call = call._replace(weight=numpy.ones(x.size) if call.rule.averaged else 1.0)
    of_x, dweight, _ = vjp(Gradient(call, _flat(dy), _flat(dtotal)))
    dx[...] = of_x.reshape(dx.shape)
    shares = numpy.zeros(2 * features)
    shares[: dweight.size] = dweight.reshape(-1)  # that of a scale is one number, the sum over all features
    shares[features:] = dy.reshape(-1)
    return shares


def _flat(row: Array | None) -> Array | None:
    return None if row is None else row.reshape(-1)


def _row(layout: Layout | None, features: int, addresses: tuple[int | None, ...], row: int) -> list[Array | None]:
    """A row of each array, as NumPy's."""
    shape: tuple[int, ...] = (features,)
    strides: list[tuple[int, ...]] = [(8,)] * 4
    offsets = [row * features * 8] * 4
    if layout is not None:
        shape, strides, offsets = layout.row(row)
    return [
        None if address is None else array_at(address + offset, shape, steps, "=f8")
        for address, offset, steps in zip(addresses, offsets, strides, strict=True)
    ]


def _of_row(call: Call, x: Array) -> Call:
    """The call on one row of it, which is flat."""
    library, shape = library_of(x), x.shape
    weight = call.weight if call.rule.averaged or call.weight is None else scale_of(call)
    weight, bias = (_in_numpy(parameter, shape) for parameter in (weight, call.bias))
    return call._replace(
        library=library, precision=library.precision(x), x=x, axes=tuple(range(len(shape))), weight=weight, bias=bias
    )


def _in_numpy(parameter: Array | float | None, shape: tuple[int, ...]) -> Array | float | None:
    """A parameter as a NumPy array that fits a row whose axes are merged; float64 holds each exactly."""
    if parameter is None or isinstance(parameter, float):
        return parameter
    if isinstance(parameter, numpy.ndarray):
        return parameter.astype(numpy.float64).reshape(shape)
    return parameter.detach().double().numpy().reshape(shape)
