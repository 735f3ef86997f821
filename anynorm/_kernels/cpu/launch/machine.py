"""What the machine has: the size of its last cache; memory for large results in huge pages, and for scratch."""

from __future__ import annotations

import ctypes
import os
import sys
from functools import cache
from typing import Any

import numpy

from anynorm._forks import unforked
from anynorm._kernels.cpu.language.dtypes import CACHE_LINE_NBYTES
from anynorm._libraries import Memory
from anynorm._libraries.numpy_arrays import NumPy

Array = Any

LEAST_HUGE_NBYTES = 4 << 20
_HUGE_PAGE_NBYTES = 2 << 20
_MADV_HUGEPAGE = 14
# Scratch of a call that is kept for another one, no more of it than calls were made at once. Taken anew each time, it
# would be what has the C library give freed results back to the system, whose pages then come one by one again.
_MOST_KEPT_NBYTES = 2 << 20
_LEAST_SCRATCH = 4096
_spare: list[tuple[numpy.ndarray, int]] = []


def empty_like(memory: type[Memory], array: Array) -> Array:
    """A new array like another one, in huge pages where it is large."""
    made = memory.empty_like(array)
    if not memory.in_huge_pages and made.nbytes >= LEAST_HUGE_NBYTES:
        _ask_for_huge_pages(memory.address(made), made.nbytes)
    return made


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


def take_scratch(length: int) -> tuple[numpy.ndarray, int]:
    """Memory for so many float64 numbers, and its address: what a call has given back, if that is as long."""
    try:
        spare = _spare.pop()
        if len(spare[0]) >= length + CACHE_LINE_NBYTES // 8:
            return spare
    except IndexError:
        pass
    scratch = numpy.empty(max(length, _LEAST_SCRATCH) + CACHE_LINE_NBYTES // 8)
    address = NumPy.address(scratch)
    return scratch, address + -address % CACHE_LINE_NBYTES


def give_back_scratch(scratch: numpy.ndarray, address: int) -> None:
    """Keep scratch for another call."""
    if scratch.nbytes <= _MOST_KEPT_NBYTES:
        _spare.append((scratch, address))
