"""The memory of a crew, and what its program calls of the system."""

from __future__ import annotations

import ctypes
import sys
from functools import cache
from typing import Any

from anynorm._kernels.cpu.language.dtypes import CACHE_LINE_NBYTES

BUSY_NOW, COMPLETE = 0, 1  # what the program's `run` returns; and 2: pieces have stopped early

# The program finds these by their addresses in the memory of a crew, for code that is kept on disk can hold none.
_CALLED = (
    "sem_post", "sem_wait", "sem_trywait", "sched_yield", "clock_gettime",
    "pthread_create", "pthread_setname_np", "pthread_detach", "free",
)  # fmt: skip
# Words on cache lines; what different threads write is on lines of its own. Helpers sleep on the semaphore `wake`, and
# a caller on `done`.
_LINES = (
    ("busy",), ("left",), ("undone", "asleep"), ("retired", "present"),
    ("kernel", "task", "units", "pieces", "reached", "spin"), _CALLED[:8], _CALLED[8:], ("wake",), ("done",),
)  # fmt: skip
PLACES = {name: CACHE_LINE_NBYTES * i + 8 * j for i, line in enumerate(_LINES) for j, name in enumerate(line)}
_NBYTES = CACHE_LINE_NBYTES * len(_LINES)
# Kernels need less than 256 KB of stack where one calls another, and libraries may keep variables for each thread
# there. Only what is touched takes memory.
STACK_NBYTES = 1 << 20
_MOST_ATTRIBUTES_NBYTES = 512  # of a pthread_attr_t, which takes 64 at most on Linux


@cache
def system() -> Any:
    """The system's library; None where it has no POSIX semaphores without a name (macOS, Windows)."""
    try:
        library: Any = ctypes.CDLL(None)
        for name in ("sem_init", "aligned_alloc", "pthread_attr_init", "pthread_attr_setstacksize", *_CALLED):
            getattr(library, name)
    except (AttributeError, OSError, TypeError):
        return None
    library.aligned_alloc.restype = ctypes.c_void_p
    library.aligned_alloc.argtypes = ctypes.c_size_t, ctypes.c_size_t
    library.sem_init.argtypes = ctypes.c_void_p, ctypes.c_int, ctypes.c_uint
    library.pthread_attr_setstacksize.argtypes = ctypes.c_void_p, ctypes.c_size_t
    works = sys.maxsize > 1 << 32 and library.sem_init(ctypes.create_string_buffer(CACHE_LINE_NBYTES), 0, 0) == 0
    return library if works else None


def new_memory(spin_nanoseconds: int) -> int:
    """The address of memory for a crew without helpers, in which one is present: who is to `leave` it."""
    library = system()
    memory = library.aligned_alloc(CACHE_LINE_NBYTES, _NBYTES)
    if not memory:
        raise MemoryError
    ctypes.memset(memory, 0, _NBYTES)
    for semaphore in ("wake", "done"):
        library.sem_init(memory + PLACES[semaphore], 0, 0)
    for name in _CALLED:
        word(memory, name).value = ctypes.cast(getattr(library, name), ctypes.c_void_p).value or 0
    word(memory, "spin").value = spin_nanoseconds
    word(memory, "present").value = 1
    return int(memory)


def word(memory: int, name: str) -> ctypes.c_int64:
    """A word in the memory of a crew."""
    return ctypes.c_int64.from_address(memory + PLACES[name])


def thread_attributes() -> Any:
    """What helpers are started with: a stack of their own size, whatever the default is that Python's threads have."""
    attributes = ctypes.create_string_buffer(_MOST_ATTRIBUTES_NBYTES)
    system().pthread_attr_init(attributes)
    system().pthread_attr_setstacksize(attributes, STACK_NBYTES)
    return attributes
