"""The fast paths: what a small call tries before check, choose and run, which are the slow path.

A kernel puts functions here, by the type of x. Each returns y, or (y, total) for a call with a residual; None where
the call is not for it, or not right, which the checks will tell: it has written nothing then.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy

from anynorm._forced import is_forced

# rule, x, residual, weight, bias, axis, eps, weight_offset, out, moments; the last axis is always -1, and several axes
# are a tuple, ascending and none negative. A tuple with names would take longer to make than all of it is looked at.
Given = tuple[Any, Any, Any, Any, Any, Any, Any, Any, Any, Any]
FastPath = Callable[[Given], Any]

_by_type: dict[type, tuple[FastPath, ...]] = {}
# rule, x, weight, bias, axes, eps, weight_offset, dy -> dx, dweight and dbias, or None
_vjps_by_type: dict[type, Callable[..., Any]] = {}
_moments_by_type: dict[type, Callable[..., Any]] = {}  # x, axis -> Moments, or None; the axis is as above


def add(kind: type, fast_path: FastPath) -> None:
    """Let calls with an x of this type try a fast path from now on."""
    known = _by_type.get(kind, ())
    if fast_path not in known:
        _by_type[kind] = (*known, fast_path)


def remove(kind: type, fast_path: FastPath) -> None:
    """Let them try it no more."""
    _by_type[kind] = tuple(one for one in _by_type.get(kind, ()) if one is not fast_path)


def try_fast_paths(
    rule: Any,
    x: Any,
    residual: Any,
    weight: Any,
    bias: Any,
    axis: Any,
    eps: Any,
    weight_offset: Any,
    out: Any,
    moments: Any = None,
) -> Any:
    """What a kernel makes of arguments that are not checked; None where no kernel has a fast path for them.

    For one row of 768 it takes a tenth of the time of check, choose and run.
    """
    for fast_path in _by_type.get(type(x), ()):
        if is_forced():
            return None
        axes = -1 if type(axis) is int and axis == -1 else _axes(axis, x)
        if axes is None:
            return None
        result = fast_path((rule, x, residual, weight, bias, axes, eps, weight_offset, out, moments))
        if result is not None:
            return result
    return None


def add_moments(kind: type, fast_path: Callable[..., Any]) -> None:
    """Let `moments` of an x of this type try a fast path from now on."""
    _moments_by_type[kind] = fast_path


def try_moments(x: Any, axis: Any) -> Any:
    """Moments of an x that is not checked; None where no kernel has a fast path for them."""
    fast_path = _moments_by_type.get(type(x))
    if fast_path is None or is_forced():
        return None
    axes = -1 if type(axis) is int and axis == -1 else _axes(axis, x)
    return None if axes is None else fast_path(x, axes)


def add_vjp(kind: type, fast_path: Callable[..., Any]) -> None:
    """Let derivatives of calls with an x of this type try a fast path from now on."""
    _vjps_by_type[kind] = fast_path


def try_vjp(rule: Any, x: Any, weight: Any, bias: Any, axis: Any, eps: Any, weight_offset: Any, dy: Any) -> Any:
    """dx, dweight and dbias, by a dy that is not checked; None where no kernel has a fast path for them."""
    fast_path = _vjps_by_type.get(type(x))
    if fast_path is None or is_forced():
        return None
    axes = _axes(axis, x)
    if type(axes) is int:
        axes = (axes % x.ndim,)
    return fast_path(rule, x, weight, bias, axes, eps, weight_offset, dy)


def _axes(axis: Any, x: Any) -> int | tuple[int, ...] | None:
    """One axis or several, however they are written; None for what is none."""
    if type(axis) in (tuple, list):
        if len(axis) != 1:
            ndim, found = x.ndim, tuple(sorted([one for one in axis if type(one) is int]))
            if found and found[0] < 0:
                found = tuple(sorted([one + ndim if one < 0 else one for one in found]))
            # What is no axis, or is named twice, is in no plan.
            return found if len(found) == len(axis) else None
        (axis,) = axis
    if isinstance(axis, numpy.integer) and not isinstance(axis, numpy.timedelta64):
        axis = int(axis)
    if type(axis) is not int or not -x.ndim <= axis < x.ndim:
        return None
    return -1 if axis == x.ndim - 1 else axis
