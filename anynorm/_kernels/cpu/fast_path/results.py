"""Small calls of NumPy arrays and of tensors by the program, with or without results to write to."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from anynorm._check import Call, check
from anynorm._kernels.cpu.fast_path import own_rows
from anynorm._kernels.cpu.fast_path.kept import Library
from anynorm._kernels.cpu.fast_path.plans import find
from anynorm._kernels.fast_paths import FastPath, Given

Array = Any
Resume = Callable[[Call, int], Any]  # goes on with a call at the row where a kernel stopped


def run_by(library: Library, resume: Resume, by_moments: FastPath) -> FastPath:
    """What runs a call by the program; it returns None where that has written nothing."""
    name, program, _ = library

    def run(given: Given) -> Any:
        rule, x, residual, weight, bias, axis, eps, offset, out, moments = given
        if moments is not None:
            return by_moments(given)
        y, total, results = out, None, None
        if out is not None:
            results = results_of(residual, out)
            if results is None:
                return None
            if residual is not None:
                y, total = results
        found = None
        if axis == -1:
            found = program(rule, x, residual, y, total, weight, bias, eps, offset, 0, 0)
        if found is None and type(offset) is float and offset == 0.0:
            found = own_rows.run(library, rule, x, residual, weight, bias, axis, eps, results)
        if found is None:
            plan = find(name, rule, x, residual, axis, results)
            if plan is None:
                return None
            found = program(rule, x, residual, y, total, weight, bias, eps, offset, plan.address, 0)
        if type(found) is not int:
            return found
        # In place the rows before this one are lost, so that the slow path must go on from here.
        call = check(rule, x, weight, bias, axis, eps, weight_offset=offset, residual=residual, out=out)
        return resume(call, found)

    return run


def results_of(residual: Array | None, out: Any) -> tuple[Array, ...] | None:
    """Given results, y or y and total; None where they are not a pair and should be."""
    if residual is None:
        return (out,)
    return out if type(out) is tuple and len(out) == 2 and out[0] is not None and out[1] is not None else None
