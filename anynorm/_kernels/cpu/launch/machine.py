"""What the machine has: the size of its last cache, and memory for large results in huge pages."""

from __future__ import annotations

import ctypes
import os
import sys
from functools import cache
from typing import Any

from anynorm._forks import unforked
from anynorm._libraries import Memory

Array = Any

LEAST_HUGE_NBYTES = 4 << 20
_HUGE_PAGE_NBYTES = 2 << 20
_MADV_HUGEPAGE = 14


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
