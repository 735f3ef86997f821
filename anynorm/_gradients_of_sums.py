"""The sums with a residual and their derivatives: results, and pullbacks that turn gradients back."""

from __future__ import annotations

from functools import partial
from typing import Any

from anynorm._check import Call, check, check_gradient
from anynorm._choose import choose, choose_pull
from anynorm._definition.norms import LAYER_NORM, RMS_NORM, Rule
from anynorm._types import Array, ArrayT, Axis, PullbackOfSum


def add_layer_norm_vjp(
    x: ArrayT,
    residual: Array,
    weight: Array | None = None,
    bias: Array | None = None,
    *,
    axis: Axis = -1,
    eps: float = 1e-5,
    weight_offset: float = 0.0,
) -> tuple[tuple[ArrayT, ArrayT], PullbackOfSum[ArrayT]]:
    """Return add_layer_norm, ``(y, total)``, and its pullback.

    ``pullback(dy, dtotal=None) -> (dx, dresidual, dweight, dbias)`` takes the gradients by y and, where total is used
    further on, by total. By x and by the residual they are the same, one array: the dx of `layer_norm_vjp` at total,
    plus dtotal. The rounding of total has no part in it. All else is as in `layer_norm_vjp` and `add_layer_norm`; the
    pullback holds total, which must not change before it is called.

    Examples
    --------
    >>> import numpy, anynorm
    >>> x, residual = numpy.asarray([[1.0, 0.0, 1.0]]), numpy.asarray([[0.0, 2.0, 3.0]])
    >>> (y, total), pullback = anynorm.add_layer_norm_vjp(x, residual)
    >>> dx, dresidual, dweight, dbias = pullback(numpy.asarray([[1.0, 0.0, 0.0]]))
    >>> dx.round(4)
    array([[ 0.2291, -0.3436,  0.1145]])
    """
    return _add_vjp(LAYER_NORM, x, residual, weight, bias, axis, eps, weight_offset)


def add_rms_norm_vjp(
    x: ArrayT,
    residual: Array,
    weight: Array | None = None,
    bias: Array | None = None,
    *,
    axis: Axis = -1,
    eps: float = 1e-6,
    weight_offset: float = 0.0,
) -> tuple[tuple[ArrayT, ArrayT], PullbackOfSum[ArrayT]]:
    """Return add_rms_norm, ``(y, total)``, and its pullback, as `add_layer_norm_vjp` does.

    Examples
    --------
    >>> import numpy, anynorm
    >>> x, residual = numpy.asarray([[3.0, 0.0]]), numpy.asarray([[0.0, 4.0]])
    >>> (y, total), pullback = anynorm.add_rms_norm_vjp(x, residual, eps=0.0)
    >>> dx, dresidual, dweight, dbias = pullback(numpy.asarray([[1.0, 0.0]]), numpy.asarray([[0.0, 1.0]]))
    >>> dx.round(4)
    array([[0.181 , 0.8642]])
    """
    return _add_vjp(RMS_NORM, x, residual, weight, bias, axis, eps, weight_offset)


def _add_vjp(
    rule: Rule,
    x: ArrayT,
    residual: Array,
    weight: Array | None,
    bias: Array | None,
    axis: Axis,
    eps: float,
    weight_offset: float,
) -> tuple[tuple[ArrayT, ArrayT], PullbackOfSum[ArrayT]]:
    call = check(rule, x, weight, bias, axis, eps, weight_offset=weight_offset, residual=residual)
    y, total = choose(call).run(call)
    return (y, total), partial(_pull_sum, call._replace(x=total, residual=None))


def _pull_sum(call: Call, dy: Any, dtotal: Any = None) -> tuple[Any, Any, Any, Any]:
    gradient = check_gradient(call, dy, dtotal)
    dx, dweight, dbias = choose_pull(gradient).pull(gradient)
    return dx, dx, dweight, dbias
