"""Calls whose rows lie one after the other and take turns with some weights: per head, or per sample.

One kernel goes over all of them in order. By groups each head's rows would be read by themselves, which lie far apart:
1.8 times the time for 8 MB of 32 heads of 128 float32 numbers, and 4 times for 64 MB (EPYC 9005).
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any, NamedTuple

from anynorm._check import Call
from anynorm._kernels.cpu.compiler.entries import Kernel, kernel
from anynorm._kernels.cpu.fast_path.offers import offer_own_rows
from anynorm._kernels.cpu.kernels.task import Task, Variant, needs_float64
from anynorm._kernels.cpu.language.dtypes import FLOAT32, FLOAT64, RULES, Dtype
from anynorm._kernels.cpu.launch.layout import are_short
from anynorm._kernels.cpu.launch.norm import run_from
from anynorm._kernels.cpu.launch.tasks import dtype_of, may_stream, task_of
from anynorm._kernels.cpu.threads.crew import launch

Array = Any
Shape = tuple[int, ...]

# Weights that are widened beforehand have so many rows each, or are so short, and so few in all, that it pays. 4096
# rows of bfloat16, each with a weight, ns an element by groups and in turns: 64 features 1.88 and 0.62, 256 0.71 and
# 0.47, 512 0.55 and 0.51, 768 0.52 and 0.54 (EPYC 9005).
_LEAST_ROWS, _FEW_FEATURES, _MOST_ELEMENTS = 16, 256, 1 << 18


class Plan(NamedTuple):
    """How rows take turns."""

    turns: int
    repeat: int  # rows, one after the other, with the same parameters
    weight_step: int  # elements from turn to turn; 0 where all have one
    bias_step: int
    variant: Variant
    as_they_are: bool  # whether parameters are read where they lie


def plan_for(call: Call) -> Plan | None:
    """How the rows of a call take turns; None where they do not."""
    if not call.rule.is_plain:
        return None  # groups take it
    memory, given = call.library.memory, (call.x, call.residual, call.weight, call.bias, *(call.out or ()))
    if not all(memory.is_contiguous(one) for one in given if one is not None):
        return None
    parameters: list[Any] = [call.weight, call.bias]
    shapes = [None if one is None else tuple(one.shape) for one in parameters]
    dtypes = [None if one is None else dtype_of(one.dtype) for one in parameters]
    has_offset, has_residual = call.weight_offset != 0.0, call.residual is not None
    x, rule = call.x, RULES[call.rule.name]
    return _plan(tuple(x.shape), call.axes, *shapes, dtype_of(x.dtype), *dtypes, rule, has_offset, has_residual)


@lru_cache(256)
def _plan(
    shape: Shape, axes: Shape, weight: Shape | None, bias: Shape | None, dtype: Dtype, weight_dtype: Dtype | None,
    bias_dtype: Dtype | None, rule: int, has_offset: bool, has_residual: bool,
) -> Plan | None:  # fmt: skip
    row = [shape[axis] for axis in axes]
    features, ndim = math.prod(row), len(shape)
    rows = math.prod(shape) // features
    if axes[0] != ndim - len(axes) or dtype is FLOAT64 or features < dtype.lanes:
        return None
    if are_short(features, rows, dtype.itemsize):
        return None
    varying = [[i for i in range(axes[0]) if one[i] != 1] for one in (weight, bias) if one and len(one) == ndim]
    cut = max(varying, key=len, default=[])
    free = [axis for axis in range(axes[0]) if shape[axis] != 1]
    run = free[free.index(cut[0]) :][: len(cut)] if cut else []
    if not cut or run != cut:  # what varies must not enclose what does not
        return None
    turns = math.prod([shape[axis] for axis in cut])
    for one in (weight, bias):
        own = features if one is None else math.prod(one)
        if own not in (features, turns * features) or (one and list(one[len(one) - len(axes) :]) != row):
            return None
    weight_step, bias_step = (0 if one is None or math.prod(one) == features else features for one in (weight, bias))
    given = [one for one in (weight_dtype, bias_dtype) if one is not None]
    as_they_are = dtype is FLOAT32 and all(one is FLOAT32 for one in given) and not has_offset
    is_cheap = rows >= _LEAST_ROWS * turns or (features <= _FEW_FEATURES and turns * features <= _MOST_ELEMENTS)
    if not as_they_are and not is_cheap:
        return None
    of_weight, of_bias = (0 if one is None else one.code for one in (weight_dtype, bias_dtype))
    in_float64 = bool(needs_float64(rule, dtype.code, of_weight, of_bias, float(has_offset)))
    variant = Variant(rule, dtype.code, in_float64, has_residual, has_turns=True)
    return Plan(turns, math.prod(shape[cut[-1] + 1 : axes[0]]), weight_step, bias_step, variant, as_they_are)


def run(call: Call, plan: Plan, asked: Call) -> bool:
    """Write to the results of the call, which has them; return whether it could, as float32 holds the weights.

    ``asked`` is the same call as it was made.
    """
    outs: Any = call.out
    y, total = outs if len(outs) == 2 else (outs[0], None)
    without = call._replace(weight=None, bias=None)
    task, keepalive = task_of(without, call.residual, y, total, None, streaming=may_stream(call, y, total))
    task.turns, task.repeat, task.weight_step, task.bias_step = plan[:4]
    parameters: list[Any] = [call.weight, call.bias]
    task.weight_code, task.bias_code = (0 if one is None else dtype_of(one.dtype).code for one in parameters)
    kept = [_place(call, task, plan, plan.variant.in_float64)]
    compute = kernel("rows", plan.variant)
    if compute.run(task, 0, 0) < 0:
        return False

    def resume(first: int, last: int) -> None:
        done = compute.run(task, first, last)
        if done < last:
            kept.append(_place(call, task, plan, True))
            task.float64_kernel = kernel("rows", plan.variant._replace(in_float64=True)).place
            compute.run(task, done, last)

    launch(compute, task, task.rows, call.x.nbytes, (keepalive, kept), resume)
    _offer(asked, plan, compute, task)
    return True


def _offer(call: Call, plan: Plan, compute: Kernel, task: Task) -> None:
    """Let small calls like this one take the fast path from now on."""
    xp, names, wide = call.library.namespace, ("weight", "bias"), None
    if plan.variant.in_float64:
        names, wide = ("wide_weight", "wide_bias"), xp.float64
    elif not plan.as_they_are:
        wide = xp.float32
    given: list[Any] = [call.weight, call.bias]
    dtypes = [None if one is None or one.dtype == wide else wide for one in given]
    offer_own_rows(call, run_from, compute.address, task.rows, task, None, names, dtypes, None)


def _place(call: Call, task: Task, plan: Plan, in_float64: bool) -> list[Array]:
    """Tell a task where the parameters lie in the dtype that is computed in; return them."""
    xp, memory, kept = call.library.namespace, call.library.memory, []
    for name, one, offset in (("weight", call.weight, call.weight_offset), ("bias", call.bias, 0.0)):
        if one is None:
            continue
        widened: Any = one
        if offset:  # in float64, for float32 would lose what is left where a weight and the offset cancel
            widened = xp.astype(widened, xp.float64) + offset
        if in_float64 or not plan.as_they_are:
            widened = xp.astype(widened, xp.float64 if in_float64 else xp.float32, copy=False)
        setattr(task, f"wide_{name}" if in_float64 else name, memory.address(widened))
        kept.append(widened)
    return kept
