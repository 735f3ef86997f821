"""What `compiled_memory` does, written in NumPy: between memory and lanes.

And what a kernel does when it is called so, for its buffers.
"""

from __future__ import annotations

import ctypes
import functools
import threading
from collections.abc import Callable
from typing import Any

import numpy

from anynorm._kernels.cpu.language.dtypes import (
    BFLOAT16,
    BY_CODE,
    CACHE_LINE_NBYTES,
    FLOAT32,
    FLOAT64,
    Address,
    Dtype,
    Lanes,
    Number,
)
from anynorm._kernels.cpu.language.interpreted import narrowed, widened

# NumPy has no bfloat16.
_IN_MEMORY = {dtype: numpy.dtype("uint16" if dtype is BFLOAT16 else dtype.name) for dtype in BY_CODE}


class _Stack(threading.local):
    """What `buffer` handed out, for as long as the kernel runs."""

    def __init__(self) -> None:
        self.buffers: list[Any] = []


_stack = _Stack()


def as_compiled(kernel: Callable[..., int]) -> Callable[..., int]:
    """Run a kernel as compiled code does: a stack of its own, and no warning about NaN and infinity."""

    @functools.wraps(kernel)
    def run(*arguments: Any) -> int:
        before = len(_stack.buffers)
        try:
            with numpy.errstate(all="ignore"):
                return int(kernel(*arguments))
        finally:
            del _stack.buffers[before:]

    return run


_Kernel = ctypes.CFUNCTYPE(ctypes.c_int64, ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64)


def call_kernel(kernel: int, task: int, first: int, last: int) -> int:
    return _Kernel(int(kernel))(int(task), int(first), int(last))


def _memory(address: int, dtype: Dtype, count: int) -> numpy.ndarray:
    """What lies at an address, as an array."""
    memory: Any = (ctypes.c_char * (count * dtype.itemsize)).from_address(int(address))
    return numpy.frombuffer(memory, _IN_MEMORY[dtype])


def load(
    address: int, dtype: Dtype, compute_dtype: Dtype = FLOAT64, lanes: int | None = None, residual: Address = None,
    by_parity: bool = False,
) -> Lanes:  # fmt: skip
    """Elements from an address in lanes of another dtype; a cache line of them unless told.

    By parity those of bfloat16 come in another order, first the even ones.
    """
    raw = _memory(address, dtype, lanes or dtype.lanes)
    if residual is not None:
        sum_in = FLOAT64 if dtype is FLOAT64 else FLOAT32
        others = _memory(residual, dtype, len(raw))
        raw = narrowed(widened(raw, dtype, sum_in) + widened(others, dtype, sum_in), dtype)
    if by_parity and dtype is BFLOAT16:
        raw = numpy.concatenate([raw[::2], raw[1::2]])
    return widened(raw, dtype, compute_dtype)


def store(address: int, dtype: Dtype, value: Any) -> None:
    """Round lanes, or a float64, into elements at an address."""
    _memory(address, dtype, numpy.size(value))[:] = narrowed(value, dtype)


def stream(address: int, dtype: Dtype, value: Lanes) -> None:
    """`store` past the caches; the address must be a multiple of a cache line."""
    if address % CACHE_LINE_NBYTES:
        raise ValueError(f"streamed to {address:#x}, which is not the beginning of a cache line")
    store(address, dtype, value)


def stream_line(target: int, source: int) -> None:
    """Copy a cache line past the caches."""
    if target % CACHE_LINE_NBYTES:
        raise ValueError(f"streamed to {target:#x}, which is not the beginning of a cache line")
    ctypes.memmove(int(target), int(source), CACHE_LINE_NBYTES)


def prefetch(address: int) -> None:
    """Have a cache line brought near, which only takes time here."""


def fence() -> None:
    """Make streamed stores seen before whatever is stored next, as they are anyway here."""


def buffer(nbytes: int) -> int:
    """The address of so many bytes, on a cache line of their own, for as long as the kernel runs."""
    memory = ctypes.create_string_buffer(nbytes + CACHE_LINE_NBYTES)
    _stack.buffers.append(memory)
    ctypes.memset(memory, 0xFF, len(memory))  # NaN in each dtype, so that what is read before it is written shows
    return -(-ctypes.addressof(memory) // CACHE_LINE_NBYTES) * CACHE_LINE_NBYTES


def peek(address: int, dtype: Dtype, residual: Address = None) -> Number:
    """One element from an address, as float64."""
    return load(address, dtype, FLOAT64, 1, residual)[0]


def integer(address: int) -> int:
    """An int64 from an address."""
    return ctypes.c_int64.from_address(int(address)).value


def store_integer(address: int, value: int) -> None:
    """An int64 to an address."""
    ctypes.c_int64.from_address(int(address)).value = int(value)


def copy(target: int, source: int, dtype: Dtype) -> None:
    """Copy one element from address to address."""
    ctypes.memmove(int(target), int(source), dtype.itemsize)
