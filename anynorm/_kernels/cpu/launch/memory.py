"""Where the elements of NumPy arrays and CPU tensors lie, and new arrays like them."""

from __future__ import annotations

import ctypes
import os
import sys
from functools import cache
from typing import Any

import numpy

from anynorm._forks import unforked

Array = Any

# The documented way to the address of an array takes 0.8 microseconds, a third of a call on one row. An ndarray holds
# it right behind what every object begins with, and what else there is to know behind that: PyArrayObject_fields of
# NumPy's C API, which has been the same since NumPy 1.7, as compiled code of other packages counts on.
DATA = object.__basicsize__
NDIM = DATA + 8
SHAPE = DATA + 16  # its address
DTYPE = DATA + 40  # the address of the dtype
FLAGS = DATA + 48
C_CONTIGUOUS, WRITEABLE = 0x1, 0x400  # among the flags
INT = 0xFFFFFFFF  # of the 8 bytes at NDIM and FLAGS, those of the number
_LEAST_HUGE_NBYTES = 4 << 20
_HUGE_PAGE_NBYTES = 2 << 20
_MADV_HUGEPAGE = 14


def _documented_address(array: Array) -> int:
    return int(array.ctypes.data)


def _quick_address(array: Array) -> int:
    return _number(array, DATA)


def _number(array: Array, place: int) -> int:
    return ctypes.c_int64.from_address(id(array) + place).value


def _has_known_fields(array: Array) -> bool:
    """Whether an array is laid out as it is here taken to be; nothing is read that would not be its own."""
    shape, lengths = array.shape, _number(array, SHAPE)
    is_where_expected = (
        _quick_address(array) == _documented_address(array)
        and _number(array, NDIM) & INT == len(shape)
        and _number(array, DTYPE) == id(array.dtype)
        and bool(_number(array, FLAGS) & C_CONTIGUOUS) == array.flags.c_contiguous
        and bool(_number(array, FLAGS) & WRITEABLE) == array.flags.writeable
    )
    return is_where_expected and shape == tuple((ctypes.c_int64 * len(shape)).from_address(lengths))


def _are_fields_known() -> bool:
    if sys.implementation.name != "cpython" or sys.maxsize <= 2**32 or numpy.ndarray.__basicsize__ < FLAGS + 8:
        return False
    frozen = numpy.zeros((2, 3, 4), numpy.float16)
    frozen.flags.writeable = False
    return all(map(_has_known_fields, (numpy.zeros(3), frozen[1:], numpy.zeros((5, 7), numpy.float32).T)))


KNOWS_FIELDS = _are_fields_known()


class NumPy:
    """NumPy arrays."""

    address = staticmethod(_quick_address if KNOWS_FIELDS else _documented_address)

    @staticmethod
    def is_contiguous(array: Array) -> bool:
        return bool(array.flags.c_contiguous)

    @staticmethod
    def contiguous(array: Array) -> Array:
        return numpy.ascontiguousarray(array)

    @staticmethod
    def strides(array: Array) -> tuple[int, ...]:
        """In bytes."""
        return tuple(array.strides)

    @staticmethod
    def empty_like(array: Array, nbytes: int) -> Array:
        """A new array like another one, which lies one element after the other if that does."""
        return numpy.empty_like(array, subok=False)

    @staticmethod
    def written(array: Array) -> None:
        """Nothing keeps track of what is written to NumPy arrays."""


class Torch:
    """Dense torch tensors on the CPU."""

    @staticmethod
    def address(tensor: Array) -> int:
        return int(tensor.data_ptr())

    @staticmethod
    def is_contiguous(tensor: Array) -> bool:
        return bool(tensor.is_contiguous())

    @staticmethod
    def contiguous(tensor: Array) -> Array:
        return tensor.contiguous()

    @staticmethod
    def strides(tensor: Array) -> tuple[int, ...]:
        """In bytes."""
        itemsize = tensor.element_size()
        return tuple(stride * itemsize for stride in tensor.stride())

    @staticmethod
    def empty_like(tensor: Array, nbytes: int) -> Array:
        import torch

        made = torch.empty_like(tensor.detach())
        if nbytes >= _LEAST_HUGE_NBYTES:
            _ask_for_huge_pages(made.data_ptr(), nbytes)
        return made

    @staticmethod
    def written(tensor: Array) -> None:
        """Tell autograd that a tensor was written to."""
        import torch

        torch.autograd.graph.increment_version(tensor)


@cache
def _madvise() -> Any:
    try:
        return ctypes.CDLL(None).madvise if sys.platform == "linux" else None
    except (AttributeError, OSError):
        return None


def _ask_for_huge_pages(address: int, nbytes: int) -> None:
    """Ask for fresh memory in pages of 2 MiB, as NumPy does for its own: 4 KiB at a time takes longer than any norm."""
    madvise = _madvise()
    if madvise is None:
        return
    start = -(-address // _HUGE_PAGE_NBYTES) * _HUGE_PAGE_NBYTES
    length = (address + nbytes) // _HUGE_PAGE_NBYTES * _HUGE_PAGE_NBYTES - start
    if length > 0:  # it is advice: a kernel without such pages refuses, and nothing is lost
        madvise(ctypes.c_void_p(start), ctypes.c_size_t(length), ctypes.c_int(_MADV_HUGEPAGE))


@cache
def last_cache_nbytes() -> int:
    """The size of the last cache; 32 MiB where the system does not say."""
    with unforked:
        from pathlib import Path  # not at the top: it takes milliseconds, and no norm needs it before this

    for level in (4, 3, 2):
        try:
            nbytes = os.sysconf(f"SC_LEVEL{level}_CACHE_SIZE")
        except (AttributeError, ValueError, OSError):
            break
        if nbytes > 0:
            return nbytes
    for text in sorted(Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size"), reverse=True):
        digits = text.read_text().strip().removesuffix("K")
        if digits.isdecimal():
            return int(digits) << 10
    return 32 << 20
