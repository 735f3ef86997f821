"""The fast path of NumPy arrays."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy

from anynorm._kernels.cpu.fast_path.kept import Library
from anynorm._kernels.cpu.fast_path.plans import find, finished_key
from anynorm._kernels.cpu.fast_path.results import Resume, run_by
from anynorm._kernels.fast_paths import FastPath, Given
from anynorm._moments import Moments, finished_of


def fast_path_of_arrays(program: Callable[..., Any], resume: Resume) -> FastPath:
    """The fast path by the program."""
    return run_by(Library("numpy", program, numpy.empty_like), resume, _run_by_moments(program))


def _run_by_moments(program: Callable[..., Any]) -> FastPath:
    """The same with given moments, where a call before has kept with them what it applies to each row."""

    def run(given: Given) -> Any:
        rule, x, _, weight, bias, axis, eps, offset, out, moments = given
        # Rows in place could not be gone on from.
        if type(moments) is not Moments or out is not None:
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
        return program(rule, x, None, None, None, weight, bias, eps, offset, plan.address, address)

    return run
