"""The public functions with their derivatives: the result, and a pullback that turns gradients back."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, overload

from anynorm._by_convention import require_no_moments, resolved
from anynorm._check import Call, check, check_gradient, require_dense
from anynorm._choose import choose, choose_vjp, try_fast_paths, try_vjp
from anynorm._convention import LAYER_NORM_EPS, RMS_NORM_EPS, SCALE_NORM_EPS, Convention, DefaultEps
from anynorm._definition.norms import LAYER_NORM, RMS_NORM, SCALE_NORM, Rule
from anynorm._moments import Moments
from anynorm._moments_gradient import MomentsGradient
from anynorm._portion_vjp import vjp_of_portion
from anynorm._types import Array, ArrayT, Axis, Number


@overload
def layer_norm_vjp(
    x: ArrayT,
    weight: Array | None = None,
    bias: Array | None = None,
    *,
    axis: Axis = -1,
    eps: float = LAYER_NORM_EPS,
    weight_offset: float = 0.0,
    convention: Convention | str | None = None,
    moments: None = None,
) -> tuple[ArrayT, Callable[[ArrayT], tuple[ArrayT, ArrayT | None, ArrayT | None]]]: ...
@overload
def layer_norm_vjp(
    x: ArrayT,
    weight: Array | None = None,
    bias: Array | None = None,
    *,
    axis: Axis = -1,
    eps: float = LAYER_NORM_EPS,
    weight_offset: float = 0.0,
    convention: Convention | str | None = None,
    moments: Moments,
) -> tuple[ArrayT, Callable[[ArrayT], tuple[ArrayT, ArrayT | None, ArrayT | None, MomentsGradient]]]: ...
def layer_norm_vjp(
    x: ArrayT,
    weight: Array | None = None,
    bias: Array | None = None,
    *,
    axis: Axis = -1,
    eps: float = LAYER_NORM_EPS,
    weight_offset: float = 0.0,
    convention: Convention | str | None = None,
    moments: Moments | None = None,
) -> tuple[ArrayT, Callable[[ArrayT], tuple[Any, ...]]]:
    """Return layer_norm and its pullback: from the gradient with respect to y, those with respect to the arguments.

    With ``x_hat = (x - mean(x)) / sqrt(var(x) + eps)`` and ``g = dy * (weight + weight_offset)``::

        dx = (g - mean(g) - x_hat * mean(g * x_hat)) / sqrt(var(x) + eps)
        dweight = sum(dy * x_hat)
        dbias = sum(dy)

    where means run over the normalized axes, and sums over all others; those of a weight or bias that has as many axes
    as x over the ones along which it has length 1. With ``moments=`` there is one more gradient, with respect to
    them::

        dx = g / sqrt(variance + eps)
        dmoments.mean = -sum(g) / sqrt(variance + eps)                  over the normalized axes
        dmoments.variance = -sum(g * x_hat) / (2 * (variance + eps))

    Parameters
    ----------
    x, weight, bias, axis, eps, weight_offset, convention, moments
        As in `layer_norm`. The pullback holds x and weight, not copies of them: they must not change before it is
        called. It goes by the formula of a convention, without its roundings on the way.

    Returns
    -------
    y : array like x
        The bits of `layer_norm`.
    pullback : callable
        ``pullback(dy) -> (dx, dweight, dbias)``, for dy of x's shape and dtype; it may be called many times. Gradients
        have the shape and dtype of what they belong to, and are None for a parameter that was not passed. They are
        formed in a wider type and rounded once. With moments it is ``pullback(dy) -> (dx, dweight, dbias, dmoments)``,
        and dmoments a `MomentsGradient`, which the pullback of `moments_vjp` takes: where the moments are of x, or of a
        part of it, its result is to be added to dx.

    Raises
    ------
    TypeError, ValueError
        As `layer_norm`; the pullback, if dy is not like x.

    Notes
    -----
    At a constant row dx is ``(g - mean(g)) / sqrt(eps)``, and 0 for eps = 0, where the formula has no value. A row with
    NaN or Inf, in x or in dy, has a dx of NaN throughout, and affects no other row. dweight and dbias are sums over all
    rows: they are NaN or Inf where dy is in any row, and dweight throughout where x is.

    With moments, no element of dx depends on another: it is NaN or Inf where dy is, and NaN where the moments of its
    row are; those of dmoments are NaN at a row with NaN or Inf in dy, x or x_hat. All three are 0 for a variance of 0
    and eps = 0. In float64 a gradient with respect to a variance may be out of range where the row is far from 1, at
    1e-150 and beyond; the pullback of `moments_vjp` gets it as factors that are in range.

    Examples
    --------
    >>> import numpy, anynorm
    >>> x, weight = numpy.asarray([[1.0, 2.0, 4.0]]), numpy.ones(3)
    >>> y, pullback = anynorm.layer_norm_vjp(x, weight)
    >>> dx, dweight, dbias = pullback(numpy.asarray([[1.0, 0.0, 0.0]]))
    >>> dx.round(4)
    array([[ 0.2291, -0.3436,  0.1145]])
    """
    return _vjp(LAYER_NORM, x, weight, bias, axis, eps, weight_offset, convention, moments)


@overload
def rms_norm_vjp(
    x: ArrayT,
    weight: Array | None = None,
    bias: Array | None = None,
    *,
    axis: Axis = -1,
    eps: float = RMS_NORM_EPS,
    weight_offset: float = 0.0,
    convention: Convention | str | None = None,
    moments: None = None,
) -> tuple[ArrayT, Callable[[ArrayT], tuple[ArrayT, ArrayT | None, ArrayT | None]]]: ...
@overload
def rms_norm_vjp(
    x: ArrayT,
    weight: Array | None = None,
    bias: Array | None = None,
    *,
    axis: Axis = -1,
    eps: float = RMS_NORM_EPS,
    weight_offset: float = 0.0,
    convention: Convention | str | None = None,
    moments: Moments,
) -> tuple[ArrayT, Callable[[ArrayT], tuple[ArrayT, ArrayT | None, ArrayT | None, MomentsGradient]]]: ...
def rms_norm_vjp(
    x: ArrayT,
    weight: Array | None = None,
    bias: Array | None = None,
    *,
    axis: Axis = -1,
    eps: float = RMS_NORM_EPS,
    weight_offset: float = 0.0,
    convention: Convention | str | None = None,
    moments: Moments | None = None,
) -> tuple[ArrayT, Callable[[ArrayT], tuple[Any, ...]]]:
    """Return rms_norm and its pullback: from the gradient with respect to y, those with respect to the arguments.

    With ``x_hat = x / sqrt(mean(x**2) + eps)`` and ``g = dy * (weight + weight_offset)``::

        dx = (g - x_hat * mean(g * x_hat)) / sqrt(mean(x**2) + eps)
        dweight = sum(dy * x_hat)
        dbias = sum(dy)

    and with ``moments=``, of which the mean square is variance + mean**2::

        dx = g / sqrt(mean_square + eps)
        dmoments.variance = -sum(g * x_hat) / (2 * (mean_square + eps))
        dmoments.mean = 2 * mean * dmoments.variance

    Parameters, results and errors are those of `layer_norm_vjp`.

    Notes
    -----
    At a row of zeros dx is ``g / sqrt(eps)``, and 0 for eps = 0. Rows with NaN or Inf, and those of given moments, are
    as in `layer_norm_vjp`.

    Examples
    --------
    >>> import numpy, anynorm
    >>> y, pullback = anynorm.rms_norm_vjp(numpy.asarray([[3.0, 4.0]]), eps=0.0)
    >>> pullback(numpy.asarray([[1.0, 0.0]]))[0].round(4)
    array([[ 0.181 , -0.1358]])
    """
    return _vjp(RMS_NORM, x, weight, bias, axis, eps, weight_offset, convention, moments)


@overload
def scale_norm_vjp(
    x: ArrayT,
    scale: Array | Number | None = None,
    *,
    axis: Axis = -1,
    eps: float = SCALE_NORM_EPS,
    convention: Convention | str | None = None,
    moments: None = None,
) -> tuple[ArrayT, Callable[[ArrayT], tuple[ArrayT, ArrayT | None]]]: ...
@overload
def scale_norm_vjp(
    x: ArrayT,
    scale: Array | Number | None = None,
    *,
    axis: Axis = -1,
    eps: float = SCALE_NORM_EPS,
    convention: Convention | str | None = None,
    moments: Moments,
) -> tuple[ArrayT, Callable[[ArrayT], tuple[ArrayT, ArrayT | None, MomentsGradient]]]: ...
def scale_norm_vjp(
    x: ArrayT,
    scale: Array | Number | None = None,
    *,
    axis: Axis = -1,
    eps: float = SCALE_NORM_EPS,
    convention: Convention | str | None = None,
    moments: Moments | None = None,
) -> tuple[ArrayT, Callable[[ArrayT], tuple[Any, ...]]]:
    """Return scale_norm and its pullback: from the gradient with respect to y, those with respect to x and the scale.

    With ``x_hat = x / max(norm2(x), eps)``::

        dx = scale * (dy - x_hat * sum(dy * x_hat)) / norm2(x)    for rows of length eps and more
        dx = scale * dy / eps                                     for shorter ones
        dscale = sum(dy * x_hat)                                  over everything

    and with ``moments=``, of which the length is sqrt(count * mean_square)::

        dx = scale * dy / max(length, eps)
        dmoments.variance = -count * sum(scale * dy * x_hat) / (2 * length**2)    0 for lengths below eps
        dmoments.mean = 2 * mean * dmoments.variance

    Parameters
    ----------
    x, scale, axis, eps, convention, moments
        As in `scale_norm`. The pullback holds x, not a copy of it: it must not change before that is called.

    Returns
    -------
    y : array like x
        The bits of `scale_norm`.
    pullback : callable
        ``pullback(dy) -> (dx, dscale)``, for dy of x's shape and dtype. dscale is a 0-d array of the scale's dtype, of
        x's where the scale is a number, and None where it was not passed. With moments there is a third result,
        dmoments, as in `layer_norm_vjp`.

    Raises
    ------
    TypeError, ValueError
        As `scale_norm`; the pullback, if dy is not like x.

    Notes
    -----
    At a row of zeros dx is ``scale * dy / eps``, and 0 for eps = 0. Rows with NaN or Inf, and those of given moments,
    are as in `layer_norm_vjp`.

    Examples
    --------
    >>> import numpy, anynorm
    >>> y, pullback = anynorm.scale_norm_vjp(numpy.asarray([[3.0, 4.0]]), 2.0)
    >>> dx, dscale = pullback(numpy.asarray([[1.0, 0.0]]))
    >>> dx.round(4), dscale.round(4)
    (array([[ 0.256, -0.192]]), np.float64(0.6))
    """
    y, pullback = _vjp(SCALE_NORM, x, scale, None, axis, eps, 0.0, convention, moments)
    return y, partial(_pullback_of_scale, pullback)


def _vjp(
    rule: Rule,
    x: ArrayT,
    weight: Any,
    bias: Array | None,
    axis: Axis,
    eps: float,
    weight_offset: float,
    convention: Convention | str | None,
    moments: Moments | None,
) -> tuple[ArrayT, Callable[[ArrayT], tuple[Any, ...]]]:
    portion = 1.0
    if convention is not None:
        rule, eps, weight_offset, portion = resolved(rule, convention, eps, weight_offset, weight is not None)
    elif type(eps) is DefaultEps:
        eps = float(eps)
    axis = tuple(axis) if type(axis) is list else axis
    y, call = None, None
    if portion == 1.0 and rule.is_plain:
        y = try_fast_paths(rule, x, None, weight, bias, axis, eps, weight_offset, None, moments)
    if y is None:
        call = check(rule, x, weight, bias, axis, eps, weight_offset=weight_offset, moments=moments)
        if portion != 1.0:
            require_no_moments(moments)
            return vjp_of_portion(call, portion)
        if moments is not None:
            require_dense(x)
        y = choose(call).run(call)
    return y, partial(_pullback, (rule, x, weight, bias, axis, eps, weight_offset), moments, call)


def _pullback(
    given: tuple[Rule, Any, Any, Any, Axis, float, float], moments: Moments | None, call: Call | None, dy: Any
) -> tuple[Any, ...]:
    """The pullback of a call, which was not checked where a fast path took it: what it gave is right."""
    rule, x, weight, bias, axis, eps, weight_offset = given
    if moments is None:
        found: tuple[Any, ...] | None = try_vjp(rule.formula, x, weight, bias, axis, eps, weight_offset, dy)
        if found is not None:
            return found
    if call is None:
        call = check(rule, x, weight, bias, axis, eps, weight_offset=weight_offset, moments=moments)
    gradient = check_gradient(call, dy)
    return choose_vjp(gradient).vjp(gradient)


def _pullback_of_scale(pullback: Callable[[Any], tuple[Any, ...]], dy: Any) -> tuple[Any, ...]:
    dx, dscale, _, *dmoments = pullback(dy)
    return dx, dscale, *dmoments
