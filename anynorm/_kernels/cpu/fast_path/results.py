"""Small calls that are given results to write to: of NumPy arrays and of tensors."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from anynorm._check import Call, check
from anynorm._kernels.cpu.fast_path import own_rows
from anynorm._kernels.cpu.fast_path.plans import find

Array = Any
Resume = Callable[[Call, int], Any]  # goes on with a call at the row where a kernel stopped


def write_by(library: str, normalize: Callable[..., Any], resume: Resume) -> Callable[..., Any]:
    """What writes to given results by a function of the program; None where it has written nothing."""

    def write(
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
        results = results_of(residual, out)
        if results is None:
            return None
        y, total = results if residual is not None else (out, None)
        found = None
        if axis == -1:
            found = normalize(rule, x, residual, y, total, weight, bias, eps, offset, 0, 0)
        own = None
        if found is None and type(offset) is float and offset == 0.0:
            own = own_rows.find(library, rule, x, residual, weight, bias, axis, results)
        if own is not None:
            of_rows = own_rows.widened(library, own, weight, bias)
            found = normalize(x, residual, y, total, *of_rows, eps, own.address)
        if found is None:
            plan = find(library, rule, x, residual, axis, results)
            if plan is None:
                return None
            found = normalize(rule, x, residual, y, total, weight, bias, eps, offset, plan.address, 0)
        if type(found) is not int:
            return found
        # In place the rows before this one are lost, so that the slow path must go on from here.
        call = check(rule, x, weight, bias, axis, eps, weight_offset=offset, residual=residual, out=out)
        return resume(call, found)

    return write


def results_of(residual: Array | None, out: Any) -> tuple[Array, ...] | None:
    """Given results, y or y and total; None where they are not a pair and should be."""
    if residual is None:
        return (out,)
    return out if type(out) is tuple and len(out) == 2 and out[0] is not None and out[1] is not None else None
