"""Small calls whose weight or bias differs from row to row, from the second call on: a task that is known.

Without a plan the program of the fast path takes parameters of the shape of the normalized axes alone. Here a call is
looked up by all that its arrays have beside addresses, and the program puts these into the task. One token of 32 heads
of 128 float32 numbers takes 3.4 us, and by check, choose and run 46 (EPYC 9005).
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy

from anynorm._check import Call
from anynorm._kernels.cpu.fast_path.plans import STRIDES
from anynorm._kernels.cpu.kernels.task import Task
from anynorm._kernels.cpu.threads import crew
from anynorm._threads import get_threads

if TYPE_CHECKING:
    from anynorm._kernels.cpu.kernels.group_task import GroupTask

Array = Any

MOST_GROUPS = 256  # for each of which the program has memory on the stack
_MOST_PLANS = 1000
_WORD = ctypes.c_int64
_ASTYPE: dict[str, Callable[[Array, Any], Array]] = {
    "numpy": numpy.ndarray.astype,
    "torch": lambda tensor, dtype: tensor.to(dtype),
}


class Known(ctypes.Structure):
    """What calls with arrays that lie alike have in common, as the program reads it."""

    _fields_ = (
        ("kernel", _WORD),
        ("units", _WORD),  # rows, or groups
        ("task", _WORD),  # the address of one without addresses of arrays, which each call copies
        ("groups", _WORD),  # of a GroupTask likewise, for groups of rows, of which ``task`` is that of the first; or 0
        ("weight", _WORD),  # where in the task its address goes; likewise:
        ("bias", _WORD),
    )


class Plan(NamedTuple):
    """The same, and what it has addresses of."""

    known: Known
    address: int
    weight_dtype: Any  # that it is widened to first; None where it is read as it is, or there is none
    bias_dtype: Any
    keepalive: Any


_plans: dict[tuple[Any, ...], Plan] = {}  # by all that they depend on


def _key(
    library: str, rule: Any, axes: Any, x: Array, others: tuple[Array | None, ...], out: Any
) -> tuple[Any, ...]:  # fmt: skip
    strides = STRIDES[library]
    of_others = [None if one is None else (one.shape, strides(one), one.dtype) for one in others]
    of_out = None if out is None else tuple([strides(one) for one in out])
    return (rule, axes, x.shape, strides(x), x.dtype, of_out, *of_others)


def find(
    library: str, rule: Any, x: Array, residual: Any, weight: Any, bias: Any, axis: int | tuple[int, ...], out: Any
) -> Plan | None:
    """The plan for a call; None where there is none. ``out`` are given results, or None.

    It must be held until the program has returned: another thread may drop all plans meanwhile.
    """
    try:
        ndim = x.ndim
        if not rule.averaged or ((weight is None or weight.ndim != ndim) and (bias is None or bias.ndim != ndim)):
            return None
        axes = (axis % ndim,) if type(axis) is int else axis
        plan = _plans.get(_key(library, rule, axes, x, (residual, weight, bias), out))
        is_alone = plan is None or x.nbytes < crew.LEAST_SHARED_NBYTES or get_threads() == 1
        return plan if is_alone else None
    except (AttributeError, TypeError, RuntimeError, ZeroDivisionError):  # no arrays; the checks will tell
        return None


def widened(library: str, plan: Plan, weight: Array, bias: Array) -> tuple[Array, Array]:
    """The parameters as the kernel reads them."""
    astype = _ASTYPE[library]
    if plan.weight_dtype is not None:
        weight = astype(weight, plan.weight_dtype)
    if plan.bias_dtype is not None:
        bias = astype(bias, plan.bias_dtype)
    return weight, bias


def keep(
    call: Call, kernel: int, units: int, task: Task, groups: GroupTask | None, names: tuple[str, str],
    dtypes: tuple[Any, Any], keepalive: Any,
) -> None:  # fmt: skip
    """Keep what later calls like this one need; ``names`` are the fields of the task for weight and bias."""
    if units > MOST_GROUPS and groups is not None:
        return
    task = Task.from_buffer_copy(task)
    # Nor is there a kernel for what float32 cannot hold, which would read parameters that were made for that call.
    for name in ("x", "residual", "y", "total", "weight", "bias", "wide_weight", "wide_bias", "float64_kernel"):
        setattr(task, name, 0)
    of_groups = 0
    if groups is not None:
        groups = type(groups).from_buffer_copy(groups)
        of_groups = ctypes.addressof(groups)
    known = Known(kernel, units, ctypes.addressof(task), of_groups, *[getattr(Task, name).offset for name in names])
    if len(_plans) >= _MOST_PLANS:
        _plans.clear()
    key = _key(call.library.name, call.rule, call.axes, call.x, (call.residual, call.weight, call.bias), call.out)
    _plans[key] = Plan(known, ctypes.addressof(known), *dtypes, (task, groups, keepalive))
