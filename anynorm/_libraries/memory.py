"""What kernels and the check of ``out`` ask about the memory of arrays: one class of answers for each library.

Kernels ask a class for all of it once `refuses` had no objection, which is asked first.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any

import numpy

Array = Any


class Memory:
    """The answers for a library that does not show where the elements of its arrays lie."""

    on_cpu = False  # whether its arrays may lie there
    on_cuda = False
    in_huge_pages = False  # whether the library itself asks for them where a new array is large

    @staticmethod
    def address(array: Array) -> int:
        """Where the first element lies."""
        raise NotImplementedError

    @staticmethod
    def strides(array: Array) -> tuple[int, ...]:
        """How far apart neighbours along each axis lie, in bytes."""
        raise NotImplementedError

    @staticmethod
    def is_contiguous(array: Array) -> bool:
        """Whether the elements are known to lie one after the other, in C order."""
        return False

    @staticmethod
    def contiguous(array: Array) -> Array:
        """The same elements in C order; the array itself where they are."""
        raise NotImplementedError

    @staticmethod
    def empty_like(array: Array) -> Array:
        """A new array like another one, contiguous if that is."""
        raise NotImplementedError

    @classmethod
    def empty_gradient(cls, parameter: Array | float | None, x: Array) -> Array | None:
        """A new array in C order for the gradient of a parameter; for that of a number one of x's dtype."""
        if parameter is None:
            return None
        return cls.empty_like(cls.contiguous(x[(0,) * x.ndim] if isinstance(parameter, float) else parameter))

    @staticmethod
    def strides_of_new(array: Array) -> tuple[int, ...]:
        """The strides that `empty_like` gives its result."""
        raise NotImplementedError

    @staticmethod
    def written(array: Array) -> None:
        """Take notice that a kernel has written to an array."""

    @staticmethod
    def refuses(arrays: Sequence[Array], on_cuda: bool) -> str | None:
        """Why a kernel for the CPU, or for CUDA, cannot read the arrays from their memory; None: it can."""
        return None

    @staticmethod
    def unwritable(argument: str, out: Array) -> tuple[str, str] | None:
        """Why an array must not be written, and what to do about it; None: it may be, as far as the library knows."""
        return None

    @staticmethod
    def are_apart(a: Array, b: Array) -> bool:
        """Whether a quick look shows that two arrays share no memory, as mostly they do not."""
        return False

    @staticmethod
    def extent(array: Array) -> numpy.ndarray | None:
        """A NumPy array that lies where this one does, for NumPy's overlap test alone; None: there is no such place."""
        return None

    @staticmethod
    def ordinal(array: Array) -> int:
        """The number of the CUDA device that an array is on."""
        raise NotImplementedError

    @staticmethod
    def current(array: Array) -> AbstractContextManager[Any]:
        """A block in which the array's device is the current one."""
        raise NotImplementedError

    @staticmethod
    def current_ordinal() -> Callable[[], int]:
        """The function that tells the number of the current device."""
        raise NotImplementedError

    @staticmethod
    def stream(array: Array) -> int:
        """The handle of the library's current stream on the array's device."""
        raise NotImplementedError

    @staticmethod
    def current_stream() -> Callable[[int], int]:
        """The function that tells the handle of the library's current stream on the device of a number."""
        raise NotImplementedError

    @staticmethod
    def float64s(array: Array, count: int) -> Array:
        """Room for so many float64 numbers on the device of an array, which is the current one."""
        raise NotImplementedError


class Strided(Memory):
    """The answers for arrays with the attributes that NumPy's have."""

    @staticmethod
    def strides(array: Array) -> tuple[int, ...]:
        return tuple(array.strides)

    @staticmethod
    def is_contiguous(array: Array) -> bool:
        return bool(array.flags.c_contiguous)

    @staticmethod
    def contiguous(array: Array) -> Array:
        return array if array.flags.c_contiguous else array.copy(order="C")


class _Place:
    """Offers memory to NumPy, by its array interface protocol."""

    def __init__(self, address: int, shape: tuple[int, ...], strides: tuple[int, ...], typestr: str) -> None:
        self.__array_interface__ = {
            "version": 3,
            "data": (address, False),
            "shape": shape,
            "strides": strides,
            "typestr": typestr,
        }


def array_at(address: int, shape: tuple[int, ...], strides: tuple[int, ...], typestr: str) -> numpy.ndarray:
    """A NumPy array of what lies there; the memory must live for as long as the array is read."""
    return numpy.asarray(_Place(address, shape, strides, typestr))
