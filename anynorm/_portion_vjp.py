"""The derivative of norms by the statistics of a leading portion of the features (pRMSNorm)."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from anynorm._by_convention import leading
from anynorm._check import Call, check, check_gradient, require_dense
from anynorm._choose import choose, choose_vjp
from anynorm._moments import Moments, quietly
from anynorm._moments_vjp import moments_vjp

Pullback = Callable[[Any], tuple[Any, Any, Any]]


def vjp_of_portion(call: Call, portion: float) -> tuple[Any, Pullback]:
    """Return y and its pullback: the derivative with moments, and that of the moments, added where they are of."""
    require_dense(call.x)
    moments, _ = moments_vjp(leading(call.x, call.axes, portion), axis=call.axes)
    given = _with(call, call.x, moments)
    return choose(given).run(given), partial(_pullback, call, portion)


def _pullback(call: Call, portion: float, dy: Any) -> tuple[Any, Any, Any]:
    """Both in the wide dtype, so that their sum is rounded once."""
    check_gradient(call, dy)
    xp, wide, narrow = call.library.namespace, call.precision.dtype, call.x.dtype
    x, dy = (xp.astype(one, wide, copy=False) for one in (call.x, dy))
    moments, of_moments = moments_vjp(leading(x, call.axes, portion), axis=call.axes)
    gradient = check_gradient(_with(call, x, moments), dy)
    dx, dweight, dbias, dmoments = choose_vjp(gradient).vjp(gradient)
    own = of_moments(dmoments)
    (axis,) = call.axes
    before, kept = (slice(None),) * axis, own.shape[axis]
    first, rest = dx[(*before, slice(0, kept))], dx[(*before, slice(kept, None))]
    with quietly(xp, dx):
        dx = xp.astype(xp.concat([first + own, rest], axis=axis), narrow, copy=False)
    return dx, xp.astype(dweight, narrow, copy=False) if isinstance(call.weight, float) else dweight, dbias


def _with(call: Call, x: Any, moments: Moments) -> Call:
    return check(
        call.rule, x, call.weight, call.bias, call.axes, call.eps, weight_offset=call.weight_offset, moments=moments
    )
