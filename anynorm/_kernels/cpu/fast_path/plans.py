"""What the program is told of calls over another axis than the last: how arrays of that shape become rows."""

from __future__ import annotations

import ctypes
from typing import Any

from anynorm._check import Call
from anynorm._kernels.cpu.kernels.task import Variant
from anynorm._kernels.cpu.language.dtypes import CODES
from anynorm._kernels.cpu.launch.layout import Layout

_MOST_AXES = 8
_MOST_PLANS = 1000
_WORD = ctypes.c_int64


class Plan(ctypes.Structure):
    """For arrays of one shape in C order; an address is 0 where there is nothing yet."""

    _fields_ = (
        ("code", _WORD),  # of x's dtype
        ("ndim", _WORD),
        ("lengths", _WORD * _MOST_AXES),
        ("features", _WORD),
        ("units", _WORD),  # rows, or blocks of columns
        ("layout", _WORD),
        ("block", _WORD),
        ("head", _WORD),
        ("packed", _WORD),
        ("kernel", _WORD),
        ("kernel_in_float64", _WORD),  # for float32 that is computed in float64
    )


_plans: dict[tuple[Any, ...], tuple[Plan, int, Layout]] = {}


def find(rule: Any, x: Any, residual: Any, axis: int) -> int | None:
    """The address of the plan for a call; None where there is none."""
    ndim = x.ndim
    if not -ndim <= axis < ndim:
        return None
    found = _plans.get((rule.name, axis % ndim, x.shape, x.dtype, residual is None))
    return None if found is None else found[1]


def keep(call: Call, variant: Variant, address: int, layout: Layout, layout_address: int) -> None:
    """Keep what calls like this one will need, of arrays that are all in C order."""
    if len(call.axes) != 1:
        return
    shape = tuple(call.x.shape)
    axis = call.axes[0]
    key = (call.rule.name, axis, call.x.shape, call.x.dtype, call.residual is None)
    if key not in _plans:
        if len(shape) > _MOST_AXES or len(_plans) >= _MOST_PLANS:
            return  # none is dropped, for a call in another thread may be reading it
        plan = Plan(
            code=variant.code, ndim=len(shape), lengths=shape, features=shape[axis], units=layout.units,
            layout=layout_address, block=layout.block, head=layout.head, packed=layout.packed,
        )  # fmt: skip
        _plans[key] = plan, ctypes.addressof(plan), layout
    in_float64 = variant.code == CODES["float32"] and variant.in_float64
    setattr(_plans[key][0], "kernel_in_float64" if in_float64 else "kernel", address)
