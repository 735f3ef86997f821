"""The memory that a call takes beyond its arguments and its result."""

from __future__ import annotations

import ctypes
import gc
import tracemalloc
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

_STATUS, _RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def traced(call: Callable[[], Any]) -> int:
    """Bytes, of what NumPy and Python allocate."""
    tracemalloc.start()
    y = call()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return int(peak - y.nbytes)


def resident(call: Callable[[], Any]) -> int | None:
    """Bytes, of whatever library, by the largest size of the process; None where the system does not say that.

    Linux counts in pages, and each thread's in batches of 64 or more, so that less than a megabyte is noise.
    """
    first, second = call(), call()
    fresh = 0 if first is second else int(second.nbytes)
    del first, second
    gc.collect()
    with suppress(OSError, AttributeError):  # what is free in the heap would otherwise hide what the call takes
        ctypes.CDLL(None).malloc_trim(0)
    try:
        before = _status("VmRSS")
        _RESET.write_text("5")  # the largest size is that from now on
        y = call()
        largest = _status("VmHWM")
    except (OSError, LookupError):
        return None
    del y
    return max(0, largest - before - fresh)


def _status(name: str) -> int:
    for line in _STATUS.read_text().splitlines():
        key, _, value = line.partition(":")
        if key == name:
            return int(value.split()[0]) * 1024
    raise LookupError(name)
