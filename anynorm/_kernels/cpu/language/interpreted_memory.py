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

from anynorm._kernels.cpu.language.dtypes import CACHE_LINE_NBYTES, Address, Dtype, Lanes, Number, lanes_of

_HALF, _BFLOAT = numpy.uint16, numpy.int16


class _Stack(threading.local):
    """What `buffer` handed out, for as long as the kernel runs."""

    def __init__(self) -> None:
        self.buffers: list[Any] = []


_stack = _Stack()


def as_compiled(kernel: Callable[..., int]) -> Callable[..., int]:
    """Run a kernel as compiled code does: a stack of its own, and no warning about NaN and infinity."""

    @functools.wraps(kernel)
    def run(*arguments: Any) -> int:
        held = len(_stack.buffers)
        try:
            with numpy.errstate(all="ignore"):
                return int(kernel(*arguments))
        finally:
            del _stack.buffers[held:]

    return run


def _memory(address: int, dtype: Any, count: int) -> numpy.ndarray:
    """What lies at an address, as an array."""
    nbytes = count * numpy.dtype(dtype).itemsize
    return numpy.frombuffer((ctypes.c_char * nbytes).from_address(int(address)), dtype)


def _widened(raw: numpy.ndarray, dtype: Dtype, compute_dtype: type) -> Any:
    """Elements as they lie in memory in another dtype; exact in a wider one."""
    if type(dtype) is _HALF:
        raw = raw.view(numpy.float16)
    elif type(dtype) is _BFLOAT:  # the upper half of a float32
        raw = (raw.view(numpy.uint16).astype(numpy.uint32) << 16).view(numpy.float32)
    return raw.astype(compute_dtype)


def _narrowed(value: Any, dtype: Dtype) -> Any:
    """Lanes rounded to elements as they lie in memory."""
    if type(dtype) is numpy.float64:
        return numpy.asarray(value, numpy.float64)
    value = numpy.asarray(value).astype(numpy.float32)  # float64 reaches 16 bits by way of float32 too
    if type(dtype) is _HALF:
        return value.astype(numpy.float16).view(numpy.uint16)
    if type(dtype) is not _BFLOAT:
        return value
    bits = value.view(numpy.uint32)
    rounded = bits + (bits >> 16 & 1) + numpy.uint32(0x7FFF)  # to nearest even
    rounded = numpy.where(numpy.isnan(value), numpy.uint32(0x7FC00000), rounded)
    return (rounded >> 16).astype(numpy.uint16).view(numpy.int16)


def _elements(address: int, residual: Address, dtype: Dtype, count: int) -> numpy.ndarray:
    """What lies at an address, or the rounded sum of that and what lies at another one."""
    raw = _memory(address, type(dtype), count)
    if residual is None:
        return raw
    compute_dtype = numpy.float64 if type(dtype) is numpy.float64 else numpy.float32
    return _narrowed(
        _widened(raw, dtype, compute_dtype) + _widened(_memory(residual, type(dtype), count), dtype, compute_dtype),
        dtype,
    )


def load(address: int, residual: Address, dtype: Dtype, compute_dtype: Dtype, lanes: int | None = None) -> Lanes:
    """Elements from an address, a cache line of them unless told; given another address, the sums of both, rounded."""
    return _widened(_elements(address, residual, dtype, lanes or lanes_of(dtype)), dtype, type(compute_dtype))


def store(address: int, dtype: Dtype, value: Lanes) -> None:
    """Round lanes into elements at an address."""
    _memory(address, type(dtype), len(value))[:] = _narrowed(value, dtype)


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


def peek(address: int, residual: Address, dtype: Dtype) -> Number:
    """One element from an address, or the rounded sum of two, as float64."""
    return _widened(_elements(address, residual, dtype, 1), dtype, numpy.float64)[0]


def integer(address: int) -> int:
    """An int64 from an address."""
    return ctypes.c_int64.from_address(int(address)).value


def real(address: int) -> Number:
    """A float64 from an address."""
    return numpy.float64(ctypes.c_double.from_address(int(address)).value)


def store_integer(address: int, value: int) -> None:
    """An int64 to an address."""
    ctypes.c_int64.from_address(int(address)).value = int(value)


def poke(address: int, dtype: Dtype, value: Number) -> None:
    """Round a float64 into one element."""
    _memory(address, type(dtype), 1)[:] = _narrowed(numpy.asarray([value], numpy.float64), dtype)


def size_of(dtype: Dtype) -> int:
    """The number of bytes of an element."""
    return int(dtype.itemsize)


def copy(target: int, source: int, dtype: Dtype) -> None:
    """Copy one element from address to address."""
    ctypes.memmove(int(target), int(source), size_of(dtype))
