"""Moments with their derivative."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from anynorm._check import Call, check, check_moments_gradient
from anynorm._choose import choose
from anynorm._definition.norms import LAYER_NORM
from anynorm._moments import Moments
from anynorm._moments_gradient import MomentsGradient
from anynorm._types import ArrayT, Axis


def moments_vjp(x: ArrayT, *, axis: Axis = -1) -> tuple[Moments, Callable[[MomentsGradient], ArrayT]]:
    """Return moments and their pullback: from the gradient with respect to mean and variance, that with respect to x.

    With n elements in a row::

        dx = (gradient.mean + 2 * gradient.variance * (x - mean(x))) / n

    The pullback of a norm with given moments returns such a gradient. Both together differentiate a norm of your own,
    which takes the statistics of a part of x, of other axes, or of other data.

    Parameters
    ----------
    x, axis
        As in `moments`. The pullback holds x, not a copy of it: it must not change before that is called.

    Returns
    -------
    moments : Moments
        The bits of `moments`.
    pullback : callable
        ``pullback(gradient) -> dx``, for a `MomentsGradient`; dx has x's shape and dtype, and is rounded once.

    Raises
    ------
    TypeError, ValueError
        As `moments`; the pullback, if the gradient is not a MomentsGradient of arrays like the moments.

    Notes
    -----
    Where there is a gradient with respect to the variance, a row that holds NaN or Inf has a dx of NaN throughout. A
    constant row has gradient.mean / n.

    Examples
    --------
    RMSNorm by the statistics of the first half of each row (pRMSNorm), and the whole of its derivative:

    >>> import numpy, anynorm
    >>> x, dy = numpy.asarray([[3.0, 4.0, 1.0, 2.0]]), numpy.asarray([[1.0, 0.0, 0.0, 0.0]])
    >>> found, vjp_moments = anynorm.moments_vjp(x[:, :2])
    >>> y, vjp_norm = anynorm.rms_norm_vjp(x, moments=found, eps=0.0)
    >>> dx, dweight, dbias, dmoments = vjp_norm(dy)
    >>> dx[:, :2] += vjp_moments(dmoments)
    >>> dx.round(4)
    array([[ 0.181 , -0.1358,  0.    ,  0.    ]])
    """
    call = check(LAYER_NORM, x, None, None, axis, 0.0)
    found = choose(call).moments(call)
    return found, partial(_vjp_moments, call, found)


def _vjp_moments(call: Call, moments: Moments, gradient: MomentsGradient) -> Any:
    check_moments_gradient(call, moments, gradient)
    return choose(call).vjp_moments(call, moments, gradient)
