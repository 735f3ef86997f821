"""Small calls whose weight or bias differs from row to row, from the second call on: a task that is known.

Without a plan the program of the fast path takes parameters of the shape of the normalized axes alone. Here a call is
looked up by all that its arrays have beside addresses, and the program puts these into the task. One token of 32 heads
of 128 float32 numbers takes 3.4 us, and by check, choose and run 46 (EPYC 9005).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy

from anynorm._check import Call
from anynorm._kernels.cpu.fast_path.kept import STRIDES, Kept, Key, Library, keep, kind_of, known, table
from anynorm._kernels.cpu.kernels.task import Task
from anynorm._kernels.cpu.threads import crew
from anynorm._threads import get_threads

if TYPE_CHECKING:
    from anynorm._kernels.cpu.kernels.group_task import GroupTask

Array = Any

MOST_GROUPS = 256  # for each of which the program has memory on the stack
_ASTYPE: dict[str, Callable[[Array, Any], Array]] = {
    "numpy": numpy.ndarray.astype,
    "torch": lambda tensor, dtype: tensor.to(dtype),
}


class OwnRows(NamedTuple):
    """A known task, and what its parameters are widened to first; None where they are read as they are, or missing."""

    known: Kept
    weight_dtype: Any
    bias_dtype: Any


def _key(library: str, rule: Any, axes: Any, x: Array, others: tuple[Array | None, ...], out: Any) -> Key:
    strides = STRIDES[library]
    of_others = [kind_of(strides, one) for one in others]
    of_out = None if out is None else tuple([kind_of(strides, one) for one in out])
    return ("own rows", rule, axes, x.shape, strides(x), x.dtype, of_out, *of_others)


def run(
    library: Library, rule: Any, x: Array, residual: Any, weight: Any, bias: Any,
    axis: int | tuple[int, ...], eps: float, results: Any,
) -> Any:  # fmt: skip
    """Return y, or (y, total); None where no such call was made before. ``results`` are given ones, or None."""
    try:
        ndim = x.ndim
        if not rule.averaged or ((weight is None or weight.ndim != ndim) and (bias is None or bias.ndim != ndim)):
            return None
        axes = (axis % ndim,) if type(axis) is int else axis
        own: OwnRows | None = table.get(_key(library.name, rule, axes, x, (residual, weight, bias), results))
        if own is None or (x.nbytes >= crew.LEAST_SHARED_NBYTES and get_threads() > 1):
            return None
        weight, bias = _widened(library.name, own, weight, bias)
    except (AttributeError, TypeError, RuntimeError, ZeroDivisionError):  # no arrays; the checks will tell
        return None
    if results is None:
        results = (library.empty_like(x),) if residual is None else (library.empty_like(x), library.empty_like(x))
    y, total = (*results, None)[:2]
    is_done = library.program(own.known.address, 0, 0, eps, 1.0, x, residual, weight, bias, y, total, None, None)
    return None if is_done is None else y if residual is None else results


def _widened(library: str, own: OwnRows, weight: Array, bias: Array) -> tuple[Array, Array]:
    """The parameters as the kernel reads them."""
    astype = _ASTYPE[library]
    if own.weight_dtype is not None:
        weight = astype(weight, own.weight_dtype)
    if own.bias_dtype is not None:
        bias = astype(bias, own.bias_dtype)
    return weight, bias


def keep_own_rows(
    call: Call, kernel: int, units: int, task: Task, groups: GroupTask | None, names: tuple[str, str],
    dtypes: tuple[Any, Any], keepalive: Any,
) -> None:  # fmt: skip
    """Keep what later calls like this one need; ``names`` are the fields of the task for weight and bias."""
    if units > MOST_GROUPS and groups is not None:
        return
    weight, bias = names
    kept = known(kernel, 0, units, math.prod(call.x.shape), task, groups, keepalive, weight=weight, bias=bias)
    key = _key(call.library.name, call.rule, call.axes, call.x, (call.residual, call.weight, call.bias), call.out)
    keep(key, OwnRows(kept, *dtypes))
