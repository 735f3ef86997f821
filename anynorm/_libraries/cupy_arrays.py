"""The memory of CuPy arrays."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import numpy

from anynorm._libraries.memory import Strided, array_at

Array = Any


class CuPy(Strided):
    """CuPy arrays, each on one CUDA device."""

    on_cuda = True

    @staticmethod
    def address(array: Array) -> int:
        return int(array.data.ptr)

    @staticmethod
    def empty_like(array: Array) -> Array:
        import cupy

        return cupy.empty_like(array)

    @staticmethod
    def strides_of_new(array: Array) -> tuple[int, ...]:
        return tuple(array.strides)  # or such as lead through the axes in the same order

    @staticmethod
    def extent(array: Array) -> numpy.ndarray:
        return array_at(array.data.ptr, tuple(array.shape), array.strides, f"|V{array.dtype.itemsize}")

    @staticmethod
    def ordinal(array: Array) -> int:
        return int(array.device.id)

    @staticmethod
    def current(array: Array) -> AbstractContextManager[Any]:
        context: AbstractContextManager[Any] = array.device
        return context

    @staticmethod
    def current_ordinal() -> Callable[[], int]:
        import cupy

        found: Callable[[], int] = cupy.cuda.runtime.getDevice
        return found

    @staticmethod
    def stream(array: Array) -> int:
        return CuPy.current_stream()(CuPy.ordinal(array))

    @staticmethod
    def current_stream() -> Callable[[int], int]:
        import cupy

        current = cupy.cuda.get_current_stream
        return lambda ordinal: int(current(ordinal).ptr)  # of a device that is named CuPy need not ask which is current

    @staticmethod
    def float64s(array: Array, count: int) -> Array:
        import cupy

        return cupy.empty(count, dtype="float64")
