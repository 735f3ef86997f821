"""Derivatives of calls like one before, of NumPy arrays and for torch's autograd: a task that is known."""

from __future__ import annotations

import math
from collections.abc import Callable
from ctypes import addressof
from typing import Any, NamedTuple

import numpy

from anynorm._check import Gradient
from anynorm._kernels.cpu.compiler.entries import Kernel
from anynorm._kernels.cpu.fast_path.functions import program_of
from anynorm._kernels.cpu.fast_path.kept import STRIDES, Kept, Key, keep, kind_of, known, table
from anynorm._kernels.cpu.kernels.task import Task
from anynorm._kernels.cpu.launch.machine import empty_like, give_back_scratch, take_scratch
from anynorm._kernels.cpu.threads import crew
from anynorm._libraries import Memory

Array = Any


class _Derivative(NamedTuple):
    """What the derivatives of one norm have in common for arrays that lie alike."""

    known: Kept
    compute: Kernel
    portions: int
    length: int  # of scratch
    nbytes: int  # of x
    like_scale: Array | None  # the gradient of a scale that is a number


def quick_vjp_by(
    library: str, memory: type[Memory], new_like: Callable[[Array], Array]
) -> Callable[..., tuple[Any, ...] | None]:
    """What finds derivatives of arrays of a library; ``new_like`` is the quickest way to a small one."""
    strides = STRIDES[library]

    def quick_vjp(
        rule: Any, x: Array, weight: Any, bias: Array | None, axes: tuple[int, ...], eps: float, offset: float,
        dy: Array, parameters: bool = True,
    ) -> tuple[Any, ...] | None:  # fmt: skip
        """Return dx, dweight and dbias with the bits of `vjp`; None where no such call was made before.

        ``parameters``: whether the gradients of weight and bias are wanted.
        """
        try:
            key = _key(strides, rule, axes, offset, parameters, x, dy, weight, bias)
            kept: _Derivative | None = table.get(key)
        except (AttributeError, TypeError, RuntimeError):  # no arrays, or none with strides; the checks will tell
            return None
        program = None if kept is None else program_of(library)
        if kept is None or program is None:
            return None
        scale, dweight, dbias = 1.0, None, None
        if parameters:
            if weight is not None:
                dweight = new_like(kept.like_scale if type(weight) is float else weight)
            if bias is not None:
                dbias = new_like(bias)
        if weight is not None and not rule.averaged:
            if type(weight) is not float and type(weight) is not numpy.ndarray:
                return None
            scale, weight = float(weight), None
        is_shared = kept.nbytes >= crew.LEAST_SHARED_NBYTES
        dx = empty_like(memory, x) if is_shared else new_like(x)
        scratch, work = take_scratch(kept.length)
        task = Task() if is_shared else None
        filled = 0 if task is None else addressof(task)
        arrays = x, dy, weight, bias, dx, None, dweight, dbias
        is_done = program(kept.known.address, work, filled, eps, scale, *arrays)
        if is_done and task is not None:
            run_portions(kept.compute, task, kept.portions, kept.nbytes, (arrays, kept, scratch))
        give_back_scratch(scratch, work)
        return (dx, dweight, dbias) if is_done else None

    return quick_vjp


def keep_derivative(
    gradient: Gradient, compute: Kernel, task: Task, portions: int, length: int, dweight: Array | None, keepalive: Any
) -> None:
    """Keep what later ones like this one need."""
    call, dy, _, parameters = gradient
    strides, like_scale = STRIDES[call.library.name], None
    key = _key(strides, call.rule, call.axes, call.weight_offset, parameters, call.x, dy, call.weight, call.bias)
    if key in table:  # the slow path was asked for
        return
    if type(call.weight) is float and dweight is not None:
        like_scale = call.library.memory.empty_like(dweight)
    kept = known(compute.address, -1, portions + 1, math.prod(call.x.shape), task, None, keepalive)
    keep(key, _Derivative(kept, compute, portions, length, call.x.nbytes, like_scale))


def _key(
    strides: Callable[[Array], Any], rule: Any, axes: tuple[int, ...], offset: float, parameters: bool, x: Array,
    dy: Array, weight: Any, bias: Array | None,
) -> Key:  # fmt: skip
    return (
        "derivative", rule, axes, offset, parameters, x.shape, strides(x), x.dtype, dy.shape, strides(dy), dy.dtype,
        kind_of(strides, weight), kind_of(strides, bias),
    )  # fmt: skip


def run_portions(compute: Kernel, task: Task, portions: int, nbytes: int, keepalive: Any) -> None:
    """Run the kernel of a derivative on all portions, in several threads where that pays for so many bytes of x."""
    if portions == 1 or nbytes < crew.LEAST_SHARED_NBYTES:
        compute.run(task, -1, portions + 1)
    else:
        compute.run(task, -1, 0)
        crew.launch(compute, task, portions, nbytes, keepalive)
        compute.run(task, portions, portions + 1)
