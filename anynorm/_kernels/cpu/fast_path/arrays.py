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
        axis: int,
        eps: float,
        offset: float,
        out: Any,
    ) -> Any:
        plan = 0 if axis == -1 else find(rule, x, residual, axis)
        if plan is None:
            return None
        if residual is None:
            found = normalize(rule, x, None, out, None, weight, bias, eps, offset, plan)
        elif out is None:
            found = normalize(rule, x, residual, None, None, weight, bias, eps, offset, plan)
        elif type(out) is tuple and len(out) == 2 and out[0] is not None and out[1] is not None:
            found = normalize(rule, x, residual, *out, weight, bias, eps, offset, plan)
        else:
            return None
        if type(found) is not int:
            return found
        call = check(rule, x, weight, bias, axis, eps, weight_offset=offset, residual=residual, out=out)
        return resume(call, found)

    return fast_path
