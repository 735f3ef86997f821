"""Moments by the kernels, and rows normalized with given ones: `anynorm.moments`, and ``moments=``.

Between both lie merging, which is done by NumPy, and step 2 of the definition, which is a kernel of its own.
"""

from __future__ import annotations

import ctypes
import math
from functools import lru_cache, partial
from typing import Any

import numpy

from anynorm._check import Call
from anynorm._definition.counting import by_row
from anynorm._definition.scaling import largest_unit
from anynorm._kernels.cpu import scale_of
from anynorm._kernels.cpu.compiler.entries import Kernel, kernel
from anynorm._kernels.cpu.fast_path.moments import moments_of_numbers
from anynorm._kernels.cpu.fast_path.offers import offer, offer_moments
from anynorm._kernels.cpu.fast_path.plans import finished_key
from anynorm._kernels.cpu.kernels.task import GIVEN, GivenTask, Task, Variant
from anynorm._kernels.cpu.language.dtypes import FINISHED
from anynorm._kernels.cpu.launch.layout import Layout, lay_out
from anynorm._kernels.cpu.launch.machine import empty_like
from anynorm._kernels.cpu.launch.norm import run_from
from anynorm._kernels.cpu.launch.tasks import dtype_of, features_of, may_stream, task_of
from anynorm._kernels.cpu.threads.crew import launch
from anynorm._libraries import library_of
from anynorm._libraries.numpy_arrays import NumPy
from anynorm._moments import Moments, finished_of, mapped, statistics_of

Array = Any

# What moments have become is kept with them, for calls in which that would take longer than all else.
_MOST_KEPT, _MOST_KEPT_NBYTES = 8, 512 << 10


def run_moments(call: Call) -> Moments:
    """Return the moments of the call's array."""
    dtype = dtype_of(call.x.dtype)
    numbers = numbers_like(call, dtype.reduced)
    layout = lay_out(call, dtype.itemsize, None, call.x, numbers=numbers, columns=True)
    task, keepalive = task_of(call, None, None, None, layout, numbers=numbers)
    compiled = _launch("moments", call, layout, task, keepalive)
    moments = moments_of_numbers(numbers, features_of(call))
    offer_moments(call, compiled.address, task, layout, numbers)
    if call.library.name == "numpy":
        return moments
    import torch

    in_torch = mapped(lambda part: torch.from_numpy(numpy.ascontiguousarray(part)), statistics_of(moments))
    return Moments(in_torch, call.library.namespace)


def run(call: Call) -> Array:
    """Return y, by the moments that the call gives."""
    key, given = _key(call), None
    numbers = _kept(call, key)
    if numbers is None:
        rows = math.prod(call.x.shape) // features_of(call)
        if rows * FINISHED * 8 <= _MOST_KEPT_NBYTES:
            numbers = finish(call)
        else:
            numbers = numbers_like(call, FINISHED)
            given = _given_task(call, numbers)
    y = apply_numbers(call, numbers, _keep(call, key, numbers), given)
    if call.out is not None:
        call.library.memory.written(y)
    return y


def _kept(call: Call, key: tuple[Any, ...] | None) -> Array | None:
    """What `finish` has returned before, where it is kept."""
    kept = finished_of(call.moments)
    found = None if key is None or kept is None else kept.get(key)
    return None if found is None else found[0]


def _keep(call: Call, key: tuple[Any, ...] | None, numbers: Array) -> bool:
    """Keep it with the moments; whether it is kept."""
    kept = finished_of(call.moments)
    if key is None or kept is None or numbers.nbytes > _MOST_KEPT_NBYTES:
        return False
    if key not in kept:
        nbytes = numbers.nbytes + sum([one.nbytes for one, _ in list(kept.values())])
        if len(kept) >= _MOST_KEPT or nbytes > _MOST_KEPT_NBYTES:
            kept.clear()  # a call that applies some of them holds those
        kept[key] = numbers, NumPy.address(numbers)
    return True


def _key(call: Call) -> tuple[Any, ...] | None:
    return finished_key(call.rule, call.weight, call.eps, call.x)


def apply_numbers(
    call: Call, numbers: Array, are_kept: bool = False, given: tuple[GivenTask, Any] | None = None
) -> Array:
    """Apply numbers to each row, which are yet to be formed where there is a task for that."""
    y = empty_like(call.library.memory, call.x) if call.out is None else call.out[0]
    streaming = may_stream(call, y, None)
    itemsize = dtype_of(call.x.dtype).itemsize
    layout = lay_out(call, itemsize, None, y, numbers=numbers, streaming=streaming, columns=True)
    task, keepalive = task_of(call, None, y, None, layout, numbers=numbers, streaming=streaming)
    if given is not None:
        if layout is not None and layout.in_columns:
            task.numbers, task.given = 0, ctypes.addressof(given[0])
        else:
            _finish(call, *given)
    compiled = _launch("given", call, layout, task, (keepalive, given))
    if are_kept and call.out is None and call.library.name == "numpy":
        variant = _variant(call, has_layout=layout is not None)
        offer(call, variant, compiled.address, layout, task.layout, (y,), run_from, numbers)
    return y


def finish(call: Call, of_gradient: Array | None = None) -> Array:
    """What the kernel applies to each row, made of the moments that the call gives.

    Or what a derivative does, and what the gradient of the moments will be made of.
    """
    numbers = numbers_like(call, FINISHED)
    _finish(call, *_given_task(call, numbers, of_gradient))
    return numbers


def _finish(call: Call, task: GivenTask, keepalive: Any) -> None:
    compiled = kernel("finish", _variant(call, has_numbers=task.of_gradient != 0))
    launch(compiled, task, task.rows, task.rows * FINISHED * 8, keepalive)


def _given_task(call: Call, numbers: Array, of_gradient: Array | None = None) -> tuple[GivenTask, Any]:
    """What has numbers made of the moments that the call gives, and what must live until they are."""
    moments: Any = call.moments
    given, is_wide, is_inside = statistics_of(moments), bool(call.precision.digits), call.rule.eps_place == "inside"
    task = GivenTask(
        rows=numbers.size // FINISHED, eps=call.eps, length=math.sqrt(call.eps) if is_inside else call.eps,
        scale=scale_of(call), most=_largest_unit(call.eps, is_inside) if is_wide else 1.0,
        numbers=NumPy.address(numbers), of_gradient=0 if of_gradient is None else NumPy.address(of_gradient),
    )  # fmt: skip
    keepalive = [numbers, of_gradient]
    for name in GIVEN:
        part = given.elements if name == "count" else getattr(given, name)
        if part is None or (name == "count" and not by_row(part)):
            field = GivenTask.nothing if part is None else GivenTask.one_count
            setattr(task, name, ctypes.addressof(task) + field.offset)
            continue
        part, step = _in_rows(host(part))
        keepalive.append(part)
        setattr(task, name, NumPy.address(part))
        setattr(task, f"{name}_step", step)
    if not by_row(given.elements):
        task.one_count = given.elements
    return task, keepalive


# It takes microseconds, and calls have few eps.
_largest_unit = lru_cache(100)(partial(largest_unit, 53))


def _in_rows(array: numpy.ndarray) -> tuple[numpy.ndarray, int]:
    """Float64 numbers of rows that lie one after the other in equal steps, and how many bytes those are."""
    step, rows = None, 1
    if array.dtype == numpy.float64:
        for length, stride in zip(reversed(array.shape), reversed(array.strides), strict=True):
            if length != 1:
                step = stride if step is None else step
                if stride != step * rows:
                    break
                rows *= length
        else:
            return array, step or 0
    array = numpy.ascontiguousarray(array, numpy.float64)
    return array, array.itemsize


def finish_for_gradient(call: Call) -> tuple[Array, Array]:
    """What a derivative applies to each row, and what the gradient of the moments will be made of.

    Both are copies of what is kept: the kernel puts sums in the place of the former, and the caller gets the latter.
    """
    key = _key(call)
    key = None if key is None else (*key, "gradient")
    both = _kept(call, key)
    if both is None:
        of_gradient = numbers_like(call, FINISHED)
        both = numpy.stack((finish(call, of_gradient), of_gradient))
        if not _keep(call, key, both):
            return both[0], both[1]
    numbers, of_gradient = both.copy()
    return numbers, of_gradient


def numbers_like(call: Call, count: int) -> Array:
    """Memory for so many numbers a row, in the shape of moments with one axis more."""
    return numpy.empty((*(1 if axis in call.axes else n for axis, n in enumerate(call.x.shape)), count))


def in_numpy(call: Call) -> Call:
    """The call for the definition, of a NumPy array."""
    x = host(call.x)
    return call._replace(x=x, library=library_of(x), precision=library_of(x).precision(x))


def moments_in_numpy(moments: Any) -> Moments:
    """The same of moments."""
    return Moments(mapped(host, statistics_of(moments)), numpy)


def host(array: Any) -> Any:
    """A NumPy array of the memory of another one, of which autograd may want a gradient."""
    return numpy.asarray(array.detach().resolve_neg() if hasattr(array, "detach") else array)


def _variant(call: Call, **options: bool) -> Variant:
    return Variant.of(call.rule, dtype_of(call.x.dtype).code, True, **options)


def _launch(name: str, call: Call, layout: Layout | None, task: Task, keepalive: Any) -> Kernel:
    """Run a kernel on all rows, in several threads where that pays; return it. Such kernels take any row."""
    name, units = (name, task.rows) if layout is None or not layout.in_columns else (f"{name}_columns", layout.units)
    compute = kernel(name, _variant(call, has_layout=layout is not None))
    launch(compute, task, units, call.x.nbytes, keepalive)
    return compute
