"""The fast path of NumPy arrays."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from anynorm._check import Call, check
from anynorm._kernels.cpu.fast_path.plans import find
from anynorm._kernels.fast_paths import FastPath

Array = Any


def fast_path_of_arrays(normalize: Callable[..., Any], resume: Callable[[Call, int], Any]) -> FastPath:
    """The fast path by a function of the program; ``resume`` goes on with a call at the row where a kernel stopped."""

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
    ) -> Any:
        y, total = out, None
        if residual is not None and out is not None:
            if type(out) is not tuple or len(out) != 2 or out[0] is None or out[1] is None:
                return None
            y, total = out
        found = None
        if axis == -1:
            found = normalize(rule, x, residual, y, total, weight, bias, eps, offset, 0)
        if found is None:
            results = None if out is None else (y,) if residual is None else out
            plan = find("numpy", rule, x, residual, axis, results)
            if plan is None:
                return None
            found = normalize(rule, x, residual, y, total, weight, bias, eps, offset, plan)
        if type(found) is not int:
            return found
        call = check(rule, x, weight, bias, axis, eps, weight_offset=offset, residual=residual, out=out)
        return resume(call, found)

    return fast_path
