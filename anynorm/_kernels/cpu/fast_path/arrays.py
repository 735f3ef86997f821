"""The fast path of NumPy arrays."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from anynorm._kernels.cpu.fast_path import own_rows
from anynorm._kernels.cpu.fast_path.plans import find, finished_key
from anynorm._kernels.cpu.fast_path.results import Resume, write_by
from anynorm._kernels.fast_paths import FastPath
from anynorm._moments import Moments, finished_of

Array = Any


def fast_path_of_arrays(normalize: Callable[..., Any], resume: Resume) -> FastPath:
    """The fast path by a function of the program."""
    by_moments, write = _fast_path_by_moments(normalize), write_by("numpy", normalize, resume)

    def fast_path(
        rule: Any,
        x: Array,
        residual: Array | None,
        weight: Any,
        bias: Array | None,
        axis: int | tuple[int, ...],
        eps: float,
        offset: float,
        out: Any,
        moments: Any,
    ) -> Any:
        if moments is not None:
            # Rows in place could not be gone on from.
            return None if out is not None else by_moments(rule, x, weight, bias, axis, eps, offset, moments)
        if out is not None:
            return write(rule, x, residual, weight, bias, axis, eps, offset, out)
        if axis == -1:
            found = normalize(rule, x, residual, None, None, weight, bias, eps, offset, 0, 0)
            if found is not None:
                return found
        own = None
        if type(offset) is float and offset == 0.0:
            own = own_rows.find("numpy", rule, x, residual, weight, bias, axis, None)
        if own is not None:
            of_rows = own_rows.widened("numpy", own, weight, bias)
            found = normalize(x, residual, None, None, *of_rows, eps, own.address)
            if found is not None:
                return found
        plan = find("numpy", rule, x, residual, axis, None)
        if plan is None:
            return None
        return normalize(rule, x, residual, None, None, weight, bias, eps, offset, plan.address, 0)

    return fast_path


def _fast_path_by_moments(normalize: Callable[..., Any]) -> Callable[..., Any]:
    """The same with given moments, where a call before has kept with them what it applies to each row."""

    def by_moments(
        rule: Any, x: Array, weight: Any, bias: Array | None, axis: Any, eps: float, offset: float, moments: Any
    ) -> Any:
        if type(moments) is not Moments:
            return None
        kept, key = finished_of(moments), finished_key(rule, weight, eps, x)
        if kept is None or key is None:
            return None
        found = kept.get(key)
        if found is None:
            return None
        numbers, address = found
        plan = find("numpy", rule, x, None, axis, None, numbers)
        if plan is None:
            return None
        return normalize(rule, x, None, None, None, weight, bias, eps, offset, plan.address, address)

    return by_moments
