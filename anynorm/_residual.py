"""The public functions of a sum with a residual, and their derivatives: check, choose, run."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from anynorm._by_convention import resolved
from anynorm._check import Call, check, check_gradient
from anynorm._choose import Kernel, choose, choose_vjp, try_fast_paths
from anynorm._convention import LAYER_NORM_EPS, RMS_NORM_EPS, Convention, DefaultEps
from anynorm._definition.norms import LAYER_NORM, RMS_NORM, Rule
from anynorm._moments import quietly
from anynorm._norms import moments_of_leading
from anynorm._portion_vjp import vjp_of_portion
from anynorm._totals import is_mixed
from anynorm._types import Array, ArrayT, Axis, PullbackOfSum
from anynorm._wording import sentence


def add_layer_norm(
    x: ArrayT,
    residual: Array,
    weight: Array | None = None,
    bias: Array | None = None,
    *,
    axis: Axis = -1,
    eps: float = LAYER_NORM_EPS,
    weight_offset: float = 0.0,
    convention: Convention | str | None = None,
    out: tuple[Array, Array] | None = None,
) -> tuple[ArrayT, ArrayT]:
    """Add a residual, then layer_norm: ``total = x + residual; y = layer_norm(total, ...)``.

    Parameters
    ----------
    x, residual : arrays of one library, shape and device
        Neither is written to unless it is given as ``out``. The residual may have another real floating dtype than x,
        as of a float32 stream with bfloat16 branches.
    weight, bias, axis, eps, weight_offset, convention
        As in `layer_norm`.
    out : tuple of two arrays, optional
        Where to write y and total, of their dtypes; each may be x or residual itself.

    Returns
    -------
    y, total : arrays like x
        y is the norm of total as it is returned, so the bits are those of the two separate calls. total has the wider
        dtype of x and residual, float32 for float16 beside bfloat16; y has x's, to which the norm of total is rounded.

    Raises
    ------
    TypeError, ValueError
        As `layer_norm`, and if residual does not match x.

    Examples
    --------
    >>> import numpy, anynorm
    >>> y, total = anynorm.add_layer_norm(numpy.ones(2), numpy.asarray([0.0, 2.0]), eps=0.0)
    >>> y, total
    (array([-1.,  1.]), array([1., 3.]))
    """
    return run(LAYER_NORM, x, residual, weight, bias, axis, eps, weight_offset, convention, out)


def add_rms_norm(
    x: ArrayT,
    residual: Array,
    weight: Array | None = None,
    bias: Array | None = None,
    *,
    axis: Axis = -1,
    eps: float = RMS_NORM_EPS,
    weight_offset: float = 0.0,
    convention: Convention | str | None = None,
    out: tuple[Array, Array] | None = None,
) -> tuple[ArrayT, ArrayT]:
    """Add a residual, then rms_norm: ``total = x + residual; y = rms_norm(total, ...)``.

    Parameters
    ----------
    x, residual : arrays of one library, shape and device
        Neither is written to unless it is given as ``out``. The residual may have another real floating dtype than x,
        as of a float32 stream with bfloat16 branches.
    weight, bias, axis, eps, weight_offset, convention
        As in `rms_norm`.
    out : tuple of two arrays, optional
        Where to write y and total, of their dtypes; each may be x or residual itself.

    Returns
    -------
    y, total : arrays like x
        y is the norm of total as it is returned, so the bits are those of the two separate calls. total has the wider
        dtype of x and residual, float32 for float16 beside bfloat16; y has x's, to which the norm of total is rounded.

    Raises
    ------
    TypeError, ValueError
        As `rms_norm`, and if residual does not match x.

    Examples
    --------
    >>> import numpy, anynorm
    >>> y, total = anynorm.add_rms_norm(numpy.ones(2), numpy.asarray([0.0, 6.0]), eps=0.0)
    >>> y, total
    (array([0.2, 1.4]), array([1., 7.]))
    """
    return run(RMS_NORM, x, residual, weight, bias, axis, eps, weight_offset, convention, out)


def run(
    rule: Rule,
    x: ArrayT,
    residual: Array,
    weight: Array | None,
    bias: Array | None,
    axis: Axis,
    eps: float,
    weight_offset: float,
    convention: Convention | str | None = None,
    out: tuple[Array, Array] | None = None,
    choose: Callable[[Call], Kernel] = choose,
) -> tuple[ArrayT, ArrayT]:
    """Check, choose, run; most small calls take a fast path."""
    portion = 1.0
    if convention is not None:
        rule, eps, weight_offset, portion = resolved(rule, convention, eps, weight_offset, weight is not None)
    elif type(eps) is DefaultEps:
        eps = float(eps)
    result: tuple[ArrayT, ArrayT] | None
    if residual is not None and portion == 1.0:
        result = try_fast_paths(rule, x, residual, weight, bias, axis, eps, weight_offset, out)
        if result is not None:
            return result
    call = check(rule, x, weight, bias, axis, eps, weight_offset=weight_offset, residual=residual, out=out)
    _require_one_dtype(x, residual, portion)
    result = choose(call).run(call)
    if portion == 1.0:
        return result
    # Of the sum, which is there by now; what is in the place of y is not it yet.
    total = result[1]
    moments = moments_of_leading(total, axis, portion)
    into = None if call.out is None else call.out[0]
    call = check(rule, total, weight, bias, axis, eps, weight_offset=weight_offset, moments=moments, out=into)
    return choose(call).run(call), total


def add_layer_norm_vjp(
    x: ArrayT,
    residual: Array,
    weight: Array | None = None,
    bias: Array | None = None,
    *,
    axis: Axis = -1,
    eps: float = LAYER_NORM_EPS,
    weight_offset: float = 0.0,
    convention: Convention | str | None = None,
) -> tuple[tuple[ArrayT, ArrayT], PullbackOfSum[ArrayT]]:
    """Return add_layer_norm, ``(y, total)``, and its pullback.

    With the dx of `layer_norm_vjp` at ``total = x + residual``, whose rounding is not differentiated::

        dx = dresidual = (dx of layer_norm_vjp) + dtotal

    Parameters
    ----------
    x, residual, weight, bias, axis, eps, weight_offset, convention
        As in `add_layer_norm`. The pullback holds total and weight, not copies of them: they must not change before it
        is called.

    Returns
    -------
    y, total : arrays like x
        The bits of `add_layer_norm`.
    pullback : callable
        ``pullback(dy, dtotal=None) -> (dx, dresidual, dweight, dbias)``, for the gradient with respect to y and, where
        total is used further on, that with respect to total, each of the shape and dtype of what it belongs to. dx and
        dresidual are one array, or where x and residual have two dtypes one of each. All else is as in
        `layer_norm_vjp`.

    Raises
    ------
    TypeError, ValueError
        As `add_layer_norm`; the pullback, if dy is not like y, or dtotal not like total.

    Examples
    --------
    >>> import numpy, anynorm
    >>> x, residual = numpy.asarray([[1.0, 0.0, 1.0]]), numpy.asarray([[0.0, 2.0, 3.0]])
    >>> (y, total), pullback = anynorm.add_layer_norm_vjp(x, residual)
    >>> dx, dresidual, dweight, dbias = pullback(numpy.asarray([[1.0, 0.0, 0.0]]))
    >>> dx.round(4)
    array([[ 0.2291, -0.3436,  0.1145]])
    """
    return _add_vjp(LAYER_NORM, x, residual, weight, bias, axis, eps, weight_offset, convention)


def add_rms_norm_vjp(
    x: ArrayT,
    residual: Array,
    weight: Array | None = None,
    bias: Array | None = None,
    *,
    axis: Axis = -1,
    eps: float = RMS_NORM_EPS,
    weight_offset: float = 0.0,
    convention: Convention | str | None = None,
) -> tuple[tuple[ArrayT, ArrayT], PullbackOfSum[ArrayT]]:
    """Return add_rms_norm, ``(y, total)``, and its pullback.

    Parameters, results and errors are those of `add_layer_norm_vjp`, with `rms_norm_vjp` for `layer_norm_vjp`.

    Examples
    --------
    >>> import numpy, anynorm
    >>> x, residual = numpy.asarray([[3.0, 0.0]]), numpy.asarray([[0.0, 4.0]])
    >>> (y, total), pullback = anynorm.add_rms_norm_vjp(x, residual, eps=0.0)
    >>> dx, dresidual, dweight, dbias = pullback(numpy.asarray([[1.0, 0.0]]), numpy.asarray([[0.0, 1.0]]))
    >>> dx.round(4)
    array([[0.181 , 0.8642]])
    """
    return _add_vjp(RMS_NORM, x, residual, weight, bias, axis, eps, weight_offset, convention)


def _add_vjp(
    rule: Rule,
    x: ArrayT,
    residual: Array,
    weight: Array | None,
    bias: Array | None,
    axis: Axis,
    eps: float,
    weight_offset: float,
    convention: Convention | str | None,
) -> tuple[tuple[ArrayT, ArrayT], PullbackOfSum[ArrayT]]:
    portion = 1.0
    if convention is not None:
        rule, eps, weight_offset, portion = resolved(rule, convention, eps, weight_offset, weight is not None)
    call = check(rule, x, weight, bias, axis, eps, weight_offset=weight_offset, residual=residual)
    _require_one_dtype(x, residual, portion)
    found = None
    if rule.is_plain and portion == 1.0:
        found = try_fast_paths(rule, x, residual, weight, bias, axis, call.eps, call.weight_offset, None)
    y, total = choose(call).run(call) if found is None else found
    of_total = call._replace(x=total, residual=None, precision=call.library.precision(total))
    if portion != 1.0:
        y, pullback = vjp_of_portion(of_total, portion)
        return (y, total), partial(_vjp_sum_of_portion, pullback, of_total)
    if is_mixed(x, residual):
        return (y, total), partial(_vjp_mixed_sum, of_total, call.x.dtype, residual.dtype)
    return (y, total), partial(_vjp_sum, of_total)


def _require_one_dtype(x: Array, residual: Array, portion: float) -> None:
    """For a portion y is formed in a second call, of the sum, whose dtype it then has."""
    if portion != 1.0 and is_mixed(x, residual):
        must, do = f"have x's dtype, {x.dtype}, where a convention takes statistics of a portion", "convert one"
        raise ValueError(sentence("residual", must, str(residual.dtype), do))


def _vjp_sum_of_portion(pullback: Callable[..., Any], call: Call, dy: Any, dtotal: Any = None) -> tuple[Any, ...]:
    check_gradient(call, dy, dtotal)
    dx, dweight, dbias = pullback(dy)
    if dtotal is not None:
        with quietly(call.library.namespace, dx):
            dx = dx + dtotal
    return dx, dx, dweight, dbias


def _vjp_sum(call: Call, dy: Any, dtotal: Any = None) -> tuple[Any, Any, Any, Any]:
    gradient = check_gradient(call, dy, dtotal)
    dx, dweight, dbias = choose_vjp(gradient).vjp(gradient)
    return dx, dx, dweight, dbias


def _vjp_mixed_sum(call: Call, of_x: Any, of_residual: Any, dy: Any, dtotal: Any = None) -> tuple[Any, Any, Any, Any]:
    """The same where x and the residual have two dtypes: what is formed in that of their sum is rounded to each."""
    gradient, xp = check_gradient(call, dy, dtotal, of_x), call.library.namespace
    gradient = gradient._replace(dy=xp.astype(dy, call.x.dtype, copy=False))
    dsum, dweight, dbias = choose_vjp(gradient).vjp(gradient)
    with quietly(xp, dsum):
        dx, dresidual = (xp.astype(dsum, dtype, copy=False) for dtype in (of_x, of_residual))
    return dx, dresidual, dweight, dbias
