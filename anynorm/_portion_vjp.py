"""The derivative of norms by the statistics of a leading portion of the features (pRMSNorm)."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from anynorm._check import Call, check, check_gradient, require_dense
from anynorm._choose import choose, choose_vjp
from anynorm._convention import leading
from anynorm._moments_gradient import MomentsGradient
from anynorm._moments_vjp import moments_vjp

Pullback = Callable[[Any], tuple[Any, Any, Any]]


def vjp_of_portion(call: Call, portion: float) -> tuple[Any, Pullback]:
    """Return y and its pullback: the derivative with moments, and that of the moments, added where they are of."""
    require_dense(call.x)
    moments, of_moments = moments_vjp(leading(call.x, call.axes, portion), axis=call.axes)
    call = check(
        call.rule, call.x, call.weight, call.bias, call.axes, call.eps,
        weight_offset=call.weight_offset, moments=moments,
    )  # fmt: skip
    return choose(call).run(call), partial(_pullback, call, portion, of_moments)


def _pullback(
    call: Call, portion: float, of_moments: Callable[[MomentsGradient], Any], dy: Any
) -> tuple[Any, Any, Any]:
    gradient = check_gradient(call, dy)
    dx, dweight, dbias, dmoments = choose_vjp(gradient).vjp(gradient)
    own = of_moments(dmoments)
    (axis,) = call.axes
    before, kept = (slice(None),) * axis, own.shape[axis]
    first, rest = dx[(*before, slice(0, kept))], dx[(*before, slice(kept, None))]
    return call.library.namespace.concat([first + own, rest], axis=axis), dweight, dbias
