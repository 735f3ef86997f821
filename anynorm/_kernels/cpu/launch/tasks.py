"""A checked call -> the task of a kernel: addresses, lengths, and the codes of dtypes."""

from __future__ import annotations

import math
from functools import cache
from typing import Any

import numpy

from anynorm._check import Call
from anynorm._kernels.cpu import scale_of
from anynorm._kernels.cpu.kernels.task import Task
from anynorm._kernels.cpu.language.dtypes import BY_CODE, CODES, Dtype
from anynorm._kernels.cpu.launch.layout import Layout
from anynorm._kernels.cpu.launch.machine import last_cache_nbytes
from anynorm._libraries import dtype_name
from anynorm._libraries.numpy_arrays import NumPy

Array = Any


@cache
def dtype_of(dtype: Any) -> Dtype:
    """A dtype of NumPy or torch, as the kernels know it."""
    return BY_CODE[CODES[dtype_name(dtype)]]


def features_of(call: Call) -> int:
    """How many elements make up a row."""
    shape, axes = call.x.shape, call.axes
    return int(shape[axes[0]] if len(axes) == 1 else math.prod([shape[axis] for axis in axes]))


def y_and_total_of(call: Call) -> tuple[Array, Array | None]:
    """Where a call that has been given results writes y, and x with the residual added."""
    y, total = (*(call.out or ()), None)[:2]
    return y, total


def pays_to_stream(nbytes: int) -> bool:
    """Whether a result of so many bytes, as many as x has, is better stored past the caches."""
    # It pays where x and y fill half of the last cache together: it saves reading what is overwritten. ns an element of
    # rms_norm and then of a sum over y, float32 rows of 1024, stored and streamed, for a last cache of 32 MB:
    # 4 MB 0.54 and 0.69, 8 MB 0.82 and 0.71, 12 MB 1.15 and 0.84, 16 MB 1.14 and 0.92 (EPYC 7003, one core).
    return 4 * nbytes >= last_cache_nbytes()


def may_stream(call: Call, y: Array, total: Array | None) -> bool:
    """Whether results may be stored past the caches, as far as their size and their addresses go."""
    if not pays_to_stream(call.x.nbytes):
        return False
    # What is streamed fills cache lines, which elements that are not aligned never do.
    address = call.library.memory.address
    if address(y) % dtype_of(y.dtype).itemsize:
        return False
    # The beginning of a row is read once more after it was written, so nothing may be in place. Addresses tell, for
    # another object may be the same memory.
    read = [address(one) for one in (call.x, call.residual) if one is not None]
    return not any(one is not None and address(one) in read for one in (y, total))


def task_of(
    call: Call,
    residual: Array | None,
    y: Array | None,
    total: Array | None,
    layout: Layout | None,
    *,
    numbers: numpy.ndarray | None = None,
    streaming: bool = False,
) -> tuple[Task, Any]:
    """What a kernel is handed, and what must live until it has run; a derivative has dy, dx and dtotal here."""
    memory, features = call.library.memory, features_of(call)
    parameters = (call.weight if call.rule.averaged else None, call.bias)
    weight, bias = (None if one is None else memory.contiguous(one) for one in parameters)
    task = Task(
        features=features, rows=math.prod(call.x.shape) // features,
        eps=call.eps, scale=scale_of(call), weight_offset=call.weight_offset,
        x=memory.address(call.x), residual=0 if residual is None else memory.address(residual),
        y=0 if y is None else memory.address(y), total=0 if total is None else memory.address(total),
        streaming=streaming, numbers=0 if numbers is None else NumPy.address(numbers),
    )  # fmt: skip
    if weight is not None:
        task.weight, task.weight_code = memory.address(weight), dtype_of(weight.dtype).code
    if bias is not None:
        task.bias, task.bias_code = memory.address(bias), dtype_of(bias.dtype).code
    if layout is not None:
        task.layout, task.block, task.head = NumPy.address(layout.table), layout.block, layout.head
        task.packed, task.streaming = layout.packed, layout.streaming
    return task, (call, residual, y, total, weight, bias, layout, numbers)
