"""What the program is told of calls over other axes than the last, or of arrays that are not in C order."""

from __future__ import annotations

import ctypes
import math
from collections.abc import Callable
from typing import Any

from anynorm._check import Call
from anynorm._kernels.cpu.fast_path.kept import STRIDES, Kept, Key, keep, table
from anynorm._kernels.cpu.kernels.task import Variant
from anynorm._kernels.cpu.launch.layout import Layout

MOST_AXES = 8
_WORD = ctypes.c_int64

Array = Any


class Plan(ctypes.Structure):
    """For arrays of one shape that lie in one way; an address is 0 where there is nothing yet."""

    _fields_ = (
        ("code", _WORD),  # of x's dtype
        ("ndim", _WORD),
        ("lengths", _WORD * MOST_AXES),
        ("strides", _WORD * MOST_AXES * 4),  # of x, residual, y and total, in bytes
        ("features", _WORD),
        ("axes", _WORD),  # how many are normalized
        ("normalized", _WORD * MOST_AXES),  # their lengths
        ("units", _WORD),  # rows, or blocks of columns
        ("layout", _WORD),
        ("block", _WORD),
        ("head", _WORD),
        ("packed", _WORD),
        ("kernel", _WORD),
        ("kernel_in_float64", _WORD),
    )


def find(
    library: str, rule: Any, x: Array, residual: Array, axis: int | tuple[int, ...], out: Any, numbers: Any = None
) -> Kept | None:
    """The plan for a call; None where there is none. ``out`` are given results, or None.

    It must be held until the program has returned: another thread may drop all plans meanwhile. ``numbers`` are those
    of each row, by given moments.
    """
    ndim = x.ndim
    if type(axis) is int:
        if not -ndim <= axis < ndim:
            return None
        axis = (axis % ndim,)
    try:
        kept: Kept | None = table.get(_key(STRIDES[library], rule, x, residual, axis, out, numbers))
    except (AttributeError, TypeError, RuntimeError):  # no array, or none with strides; the checks will tell
        return None
    return kept


def _key(
    strides: Callable[[Array], Any], rule: Any, x: Array, residual: Array | None, axes: Any, out: Any, numbers: Any
) -> Key:
    of_residual = None if residual is None else strides(residual)
    of_out = None if out is None else tuple([strides(one) for one in out])
    return (
        "plan",
        rule,
        axes,
        x.shape,
        strides(x),
        x.dtype,
        of_residual,
        of_out,
        None if numbers is None else numbers.shape,
    )


def finished_key(rule: Any, weight: Any, eps: Any, x: Array) -> Key | None:
    """By what numbers that given moments have become are kept; None where they are not.

    A scale of -0.0 is the same key as one of 0.0.
    """
    if rule.averaged:
        return rule, eps, 1.0, x.dtype
    scale = 1.0 if weight is None else weight
    return (rule, eps, scale, x.dtype) if type(scale) is float and scale else None


def keep_plan(
    call: Call,
    variant: Variant,
    address: int,
    layout: Layout | None,
    layout_address: int,
    results: tuple[Array, ...],
    numbers: Array | None,
) -> None:
    """Keep what calls like this one will need.

    ``results`` are y, or y and total, and ``numbers`` those of each row by given moments.
    """
    memory, shape = call.library.memory, tuple(call.x.shape)
    key = _key(STRIDES[call.library.name], call.rule, call.x, call.residual, call.axes, call.out, numbers)
    kept = table.get(key)
    if kept is None:
        if len(shape) > MOST_AXES:
            return
        normalized = tuple([shape[axis] for axis in call.axes])
        features = math.prod(normalized)
        plan = Plan(
            code=variant.code, ndim=len(shape), lengths=shape, features=features, axes=len(normalized),
            normalized=normalized, units=math.prod(shape) // features, layout=layout_address,
        )  # fmt: skip
        for place, one in enumerate((call.x, call.residual, *results)):
            if one is not None:
                plan.strides[place][: len(shape)] = memory.strides(one)
        if layout is not None:
            plan.units, plan.block, plan.head, plan.packed = layout.units, layout.block, layout.head, layout.packed
        kept = Kept(plan, ctypes.addressof(plan), layout)
        keep(key, kept)
    # Given numbers are always applied in float64, so there is one kernel.
    if variant.in_float64 or numbers is not None:
        kept.structure.kernel_in_float64 = address
    if not variant.in_float64 or numbers is not None:
        kept.structure.kernel = address
