"""Calls like one before: what check, choose and launch found out then still holds, and only the addresses are new.

64 rows of 1024 numbers take a GPU less time than Python takes to come to them. A plan holds for a key: the norm, its
numbers, and dtype, shape, strides and device of each array. What is not in the key is asked in each call: the current
device and stream, what torch follows, whether `out` overlaps. Whatever is not as it was takes the slow path.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any, NamedTuple

from anynorm._check import Call
from anynorm._kernels.cuda.launch import SLOT_NBYTES
from anynorm._kernels.cuda.task import Task
from anynorm._kernels.fast_paths import FastPath, Given, add, remove
from anynorm._libraries import Memory
from anynorm._libraries.torch_tensors import LOW_ADDRESS
from anynorm._profiled import profiler_of
from anynorm._torch.state import is_followed

Array = Any
Key = tuple[Any, ...]
Start = Callable[[int, int], Any]  # as `starter` returns it

_MOST_PLANS = 1000
_UNALIGNED = SLOT_NBYTES - 1
# Where in a task, in words of 8 bytes: x, what is added, y, the sum; without a residual the first and last two are one.
_X, _ADDED, _Y, _SUM = (Task.arrays.offset // 8 + place for place in range(4))
_WEIGHT, _BIAS = Task.weight.offset // 8, Task.bias.offset // 8


# Of a call: its key, and the addresses of x, weight, bias and out, 0 where there is none; None: it takes the slow path.
Asked = tuple[Key, int, int, int, int] | None


class _Repeat(NamedTuple):
    """How calls on the arrays of one library are repeated."""

    ask: Callable[..., Asked]
    run: FastPath


class _Plan(NamedTuple):
    """What calls of one key have in common."""

    device: int
    start: Callable[..., Any]  # addresses of x, y, weight and bias, and a stream -> what failed, or None
    is_in_order: bool  # whether a new result is in C order
    is_apart: Callable[..., bool]  # addresses of x, out, weight and bias -> whether out may be written


_plans: dict[Key, _Plan] = {}
_fast_paths: dict[type, FastPath] = {}  # by the type of x, while there are plans
_by_library: dict[str, _Repeat] = {}


def remember(call: Call, y: Array, start: Start, task: Task) -> None:
    """Keep what calls like this one will need."""
    name, weight = call.library.name, call.weight
    if call.residual is not None or call.axes != (len(call.x.shape) - 1,):
        return
    if type(weight) is float and not weight:
        return  # as keys, scales of 0.0 and -0.0 are the same
    memory = call.library.memory
    parameters = [one for one in (weight, call.bias) if one is not None and type(one) is not float]
    if not all(map(memory.is_contiguous, parameters)):
        return  # of which the kernel was given copies
    found = _by_library.get(name)
    if found is None:
        found = _by_library[name] = _MAKERS[name](memory)
    out = None if call.out is None else call.out[0]
    asked = found.ask(call.rule.name, call.x, weight, call.bias, call.eps, call.weight_offset, out)
    if asked is None:
        return
    if len(_plans) >= _MOST_PLANS:
        forget()
    is_apart = _apart(memory, call.x, y, weight, call.bias)
    plan = _Plan(memory.ordinal(call.x), _filled(start, task), memory.is_contiguous(y), is_apart)
    _plans[asked[0]] = plan
    _fast_paths[type(call.x)] = found.run
    add(type(call.x), found.run)


def forget() -> None:
    """Let all calls take the slow path once more."""
    _plans.clear()
    for kind, fast_path in _fast_paths.items():
        remove(kind, fast_path)
    _fast_paths.clear()


def _filled(start: Start, template: Task) -> Callable[..., Any]:
    """What starts a kernel with a copy of a task in which the addresses are others."""
    idle: list[tuple[Any, int, Any]] = []  # copies that no call is using; a call in another thread takes another one

    def run(x: int, y: int, weight: int, bias: int, stream: int) -> Any:
        try:
            copy = idle.pop()
        except IndexError:
            copy = _copied(template)
        words, argument, _ = copy
        words[_X] = words[_ADDED] = x
        words[_Y] = words[_SUM] = y
        words[_WEIGHT], words[_BIAS] = weight, bias
        failed = start(argument, stream)  # the driver has copied the task when it returns
        idle.append(copy)
        return failed

    return run


def _copied(template: Task) -> tuple[Any, int, Any]:
    """The words of a copy, the address of its address, and what both live in."""
    task = Task.from_buffer_copy(template)
    argument = (ctypes.c_void_p * 1)(ctypes.addressof(task))
    return memoryview(task).cast("B").cast("Q"), ctypes.addressof(argument), (task, argument)


def _apart(memory: type[Memory], x: Array, out: Array, weight: Any, bias: Any) -> Callable[..., bool]:
    """The question whether out, which is laid out as this one, is x itself or surely shares nothing with an input."""
    x_low, x_high = _span(memory, x)
    low, high = _span(memory, out)
    nbytes_of_weight, nbytes_of_bias = (
        0 if one is None or type(one) is float else _span(memory, one)[1] for one in (weight, bias)
    )
    is_alike = memory.strides(x) == memory.strides(out)

    def ask(of_x: int, of_out: int, of_weight: int, of_bias: int) -> bool:
        first, last = of_out + low, of_out + high
        if not (is_alike and of_x == of_out) and first < of_x + x_high and of_x + x_low < last:
            return False
        return (last <= of_weight or of_weight + nbytes_of_weight <= first) and (
            last <= of_bias or of_bias + nbytes_of_bias <= first
        )

    return ask


def _span(memory: type[Memory], array: Array) -> tuple[int, int]:
    """From where to where an array uses memory, counted in bytes from its address."""
    ends = [(length - 1) * stride for length, stride in zip(array.shape, memory.strides(array), strict=True)]
    return sum(min(0, end) for end in ends), sum(max(0, end) for end in ends) + array.dtype.itemsize


def _run_by(
    ask: Callable[..., Asked],
    empty: Callable[[Array, bool], Array],
    memory: type[Memory],
) -> FastPath:
    """What repeats calls, by what differs between libraries: the question, a new result, and the memory."""
    plans, address, stream, written = _plans, memory.address, memory.current_stream(), memory.written

    def run(given: Given) -> Array | None:
        """Normalize x as a call of the same kind was; None where there was none."""
        rule, x, residual, weight, bias, axis, eps, offset, out, moments = given
        if residual is not None or axis != -1 or moments is not None:
            return None
        asked = ask(rule.name, x, weight, bias, eps, offset, out)
        if asked is None:
            return None
        key, of_x, of_weight, of_bias, of_y = asked
        plan = plans.get(key)
        if plan is None:
            return None
        device, start, is_in_order, is_apart = plan
        if out is None:
            y = empty(x, is_in_order)
            of_y = address(y)
            if of_y & _UNALIGNED:
                return None
        elif is_apart(of_x, of_y, of_weight, of_bias):
            y = out
        else:
            return None
        if start(of_x, of_y, of_weight, of_bias, stream(device)) is not None:
            return None
        if out is not None:
            written(out)
        return y

    return run


def _by_cupy(memory: type[Memory]) -> _Repeat:
    import cupy

    ndarray, current = cupy.ndarray, memory.current_ordinal()

    def ask(
        rule: str, x: Array, weight: Any, bias: Array | None, eps: float, offset: float, out: Array | None
    ) -> Asked:
        if type(eps) is not float or type(offset) is not float:
            return None
        data = x.data
        device, of_x = data.device_id, data.ptr
        if device != current():
            return None
        of_weight = of_bias = of_out = 0
        w, b, o = weight, None, None
        if type(weight) is ndarray:
            data = weight.data
            if data.device_id != device:
                return None
            of_weight, w = data.ptr, (weight.dtype, weight.shape, weight.strides)
        elif weight is not None and type(weight) is not float:
            return None
        if bias is not None:
            if type(bias) is not ndarray or bias.data.device_id != device:
                return None
            of_bias, b = bias.data.ptr, (bias.dtype, bias.shape, bias.strides)
        if out is not None:
            if type(out) is not ndarray or out.data.device_id != device:
                return None
            of_out, o = out.data.ptr, (out.dtype, out.shape, out.strides)
        is_unaligned = (of_x | of_weight | of_bias | of_out) & _UNALIGNED != 0
        key = (rule, x.dtype, x.shape, x.strides, w, b, o, eps, offset, device, is_unaligned)
        return key, of_x, of_weight, of_bias, of_out

    def empty(x: Array, is_in_order: bool) -> Array:
        return ndarray(x.shape, x.dtype) if is_in_order else cupy.empty_like(x)

    run = _run_by(ask, empty, memory)
    return _Repeat(ask, run)


def _by_torch(memory: type[Memory]) -> _Repeat:
    import torch

    is_compiling, profiler, is_granted = torch.compiler.is_compiling, profiler_of(torch), torch.is_grad_enabled
    strided, kinds, current_ordinal = torch.strided, (torch.Tensor, torch.nn.Parameter), memory.current_ordinal()

    def address_of(tensor: Array, device: int, may_follow: bool) -> int:
        """Where a tensor on the device has its numbers; 0 where that is not all of it, or a gradient is wanted."""
        if (
            type(tensor) not in kinds
            or tensor.layout is not strided
            or tensor.get_device() != device
            or (tensor.is_nested or tensor.is_neg() or (may_follow and tensor.requires_grad))
        ):
            return 0
        address: int = tensor.data_ptr()
        return address if address >= LOW_ADDRESS else 0

    def ask(
        rule: str, x: Array, weight: Any, bias: Array | None, eps: float, offset: float, out: Array | None
    ) -> Asked:
        # First, for no other question can be asked while a graph is being traced.
        if is_compiling() or profiler._is_profiler_enabled or is_followed(torch):
            return None
        if type(eps) is not float or type(offset) is not float:
            return None
        device, may_follow = current_ordinal(), is_granted()
        of_x = address_of(x, device, may_follow)
        if not of_x:
            return None
        of_weight = of_bias = of_out = 0
        w, b, o = weight, None, None
        if weight is not None and type(weight) is not float:
            of_weight = address_of(weight, device, may_follow)
            if not of_weight:
                return None
            w = weight.dtype, weight.shape, weight.stride()
        if bias is not None:
            of_bias = address_of(bias, device, may_follow)
            if not of_bias:
                return None
            b = bias.dtype, bias.shape, bias.stride()
        if out is not None:
            of_out = address_of(out, device, True)  # a leaf that requires a gradient must not be written
            if not of_out:
                return None
            o = out.dtype, out.shape, out.stride()
        is_unaligned = (of_x | of_weight | of_bias | of_out) & _UNALIGNED != 0
        key = (rule, x.dtype, x.shape, x.stride(), w, b, o, eps, offset, device, is_unaligned)
        return key, of_x, of_weight, of_bias, of_out

    def empty(x: Array, is_in_order: bool) -> Array:
        return torch.empty_like(x)

    return _Repeat(ask, _run_by(ask, empty, memory))


_MAKERS = {"cupy": _by_cupy, "torch": _by_torch}
