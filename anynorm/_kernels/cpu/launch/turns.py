"""Calls whose rows lie one after the other and take turns with some weights: per head, per sample, or per channel.

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
from anynorm._kernels.cpu.language.dtypes import FLOAT32, FLOAT64, NUMBERS, OF_TURN, RULES, Dtype
from anynorm._kernels.cpu.launch.layout import are_short
from anynorm._kernels.cpu.launch.norm import run_from
from anynorm._kernels.cpu.launch.tasks import dtype_of, may_stream, task_of, y_and_total_of
from anynorm._kernels.cpu.threads import crew

Array = Any
Shape = tuple[int, ...]

# Weights of 16 bits that so many rows have each are widened beforehand, unless the call is a small one.
_LEAST_ROWS = 16


class Plan(NamedTuple):
    """How rows take turns."""

    turns: int
    repeat: int  # rows, one after the other, of one turn
    weight_step: int  # elements from turn to turn; 0 where all have one
    bias_step: int
    parameters: int  # OF_TURN or NUMBERS


def plan_for(call: Call, *others: Array | None) -> Plan | None:
    """How the rows of a call take turns; None where they do not. Others are arrays like x."""
    memory, given = call.library.memory, (call.x, call.weight, call.bias, *others)
    if not call.rule.is_plain or not all(memory.is_contiguous(one) for one in given if one is not None):
        return None
    parameters: list[Any] = [call.weight, call.bias]
    shapes = [None if one is None else tuple(one.shape) for one in parameters]
    return _plan(tuple(call.x.shape), call.axes, dtype_of(call.x.dtype), *shapes)


@lru_cache(256)
def _plan(shape: Shape, axes: Shape, dtype: Dtype, *parameters: Shape | None) -> Plan | None:
    row, first = tuple(shape[axis] for axis in axes), axes[0]
    features = math.prod(row)
    rows = math.prod(shape) // features
    is_short = features < dtype.lanes or are_short(features, rows, dtype.itemsize)
    if first != len(shape) - len(axes) or is_short:
        return None
    given = [one if len(one) == len(shape) else (*(1,) * first, *one) for one in parameters if one is not None]
    of_rows = {one[first:] for one in given}
    if of_rows not in ({row}, {(1,) * len(row)}):  # for each feature, or a number
        return None
    varying = [[i for i in range(first) if one[i] != 1] for one in given]
    cut = max(varying, key=len)
    free = [i for i in range(first) if shape[i] != 1]
    begin = free.index(cut[0]) if cut else 0
    if any(one not in ([], cut) for one in varying) or free[begin : begin + len(cut)] != cut:
        return None  # what varies encloses what does not
    turns, size = math.prod([shape[i] for i in cut]), features if of_rows == {row} else 1
    repeat = math.prod([shape[i] for i in free[begin + len(cut) :]])
    steps = [size if one is not None and math.prod(one) == turns * size and turns > 1 else 0 for one in parameters]
    if of_rows != {row} and dtype is FLOAT64:
        return None
    return Plan(turns, repeat, steps[0], steps[1], OF_TURN if of_rows == {row} else NUMBERS)


def run(call: Call, plan: Plan, asked: Call) -> bool:
    """Write to the results of the call, which has them; return whether it could, as float32 holds the weights.

    ``asked`` is the same call as it was made.
    """
    y, total = y_and_total_of(call)
    without = call._replace(weight=None, bias=None)
    task, keepalive = task_of(without, call.residual, y, total, None, streaming=may_stream(call, y, total))
    task.turns, task.repeat, task.weight_step, task.bias_step = plan[:4]
    parameters: list[Any] = [call.weight, call.bias]
    task.weight_code, task.bias_code = (0 if one is None else dtype_of(one.dtype).code for one in parameters)
    rule, dtype = RULES[call.rule.name], dtype_of(call.x.dtype)
    in_float64 = bool(needs_float64(rule, dtype.code, task.weight_code, task.bias_code, call.weight_offset))
    is_wide = dtype is FLOAT64
    task.direct = is_wide or (not in_float64 and _pays_to_read_directly(call, task, dtype))
    variant = Variant(rule, dtype.code, is_wide or in_float64, call.residual is not None, parameters=plan.parameters)
    kept, compute = [_place(call, task, in_float64)], kernel("float64" if is_wide else "rows", variant)
    if compute.run(task, 0, 0) < 0:
        return False

    def resume(first: int, last: int) -> None:
        done = compute.run(task, first, last)
        if done < last:
            kept.append(_place(call, task, True))
            task.float64_kernel = kernel("rows", variant._replace(in_float64=True)).place
            compute.run(task, done, last)

    crew.launch(compute, task, task.rows, call.x.nbytes, (keepalive, kept), resume)
    _offer(asked, compute, task, in_float64)
    return True


def _pays_to_read_directly(call: Call, task: Task, dtype: Dtype) -> bool:
    """Whether parameters are read as they are, in x's dtype."""
    given: list[Any] = [one for one in (call.weight, call.bias) if one is not None]
    if call.weight_offset or any(dtype_of(one.dtype) is not dtype for one in given):
        return False
    few = task.rows < _LEAST_ROWS * task.turns or call.x.nbytes < crew.LEAST_SHARED_NBYTES
    return dtype is FLOAT32 or few


def _offer(call: Call, compute: Kernel, task: Task, in_float64: bool) -> None:
    """Let small calls like this one take the fast path from now on."""
    xp, names, wide = call.library.namespace, ("weight", "bias"), None
    if in_float64:
        names, wide = ("wide_weight", "wide_bias"), xp.float64
    elif not task.direct:
        wide = xp.float32
    given: list[Any] = [call.weight, call.bias]
    dtypes = [None if one is None or one.dtype == wide else wide for one in given]
    offer_own_rows(call, run_from, compute.address, task.rows, task, None, names, dtypes, None)


def _place(call: Call, task: Task, in_float64: bool) -> list[Array]:
    """Tell a task where the parameters lie in the dtype that they are read in; return them."""
    xp, memory, kept = call.library.namespace, call.library.memory, []
    for name, one, offset in (("weight", call.weight, call.weight_offset), ("bias", call.bias, 0.0)):
        if one is None:
            continue
        widened: Any = one
        if offset and not task.direct:
            # In float64, for float32 would lose what is left where a weight and the offset cancel.
            widened = xp.astype(widened, xp.float64) + offset
        if in_float64 or not task.direct:
            widened = xp.astype(widened, xp.float64 if in_float64 else xp.float32, copy=False)
        setattr(task, f"wide_{name}" if in_float64 else name, memory.address(widened))
        kept.append(widened)
    return kept
