"""Crews of helpers with kernels of Python's, which need no compiler of kernels and take the time they are told to."""

import ctypes
import importlib.util
import os
import sys
import time
from types import SimpleNamespace

import pytest

from anynorm import _threads
from anynorm._kernels.cpu.language.dtypes import INTERPRETED
from anynorm._kernels.cpu.threads.crew import Crew, launch
from anynorm._kernels.cpu.threads.functions import program

HAS_CREWS = (
    sys.platform == "linux"
    and importlib.util.find_spec("llvmlite") is not None
    and not INTERPRETED
    and program() is not None
)
needs_crew = pytest.mark.skipif(
    not HAS_CREWS, reason="needs llvmlite, compiled kernels and Linux, which counts threads"
)
UNITS, ROWS, NBYTES = 12, 1 << 20, 1 << 30  # of a task that is cut into 12 pieces for 3 threads
KERNEL = ctypes.CFUNCTYPE(ctypes.c_int64, ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64)


class Task(ctypes.Structure):
    """What these kernels are handed: nothing that they need."""

    _fields_ = (("number", ctypes.c_int64),)


def kernel_of(function):
    """A kernel as `share` takes it, of ``function(first, last)``, which helpers call from threads Python learns of."""
    compiled = KERNEL(lambda task, first, last: function(first, last))
    return SimpleNamespace(address=ctypes.cast(compiled, ctypes.c_void_p).value, compiled=compiled)


def helpers_alive():
    """How many helpers of any crew there are in this process."""
    names = []
    for thread in os.listdir("/proc/self/task"):
        try:
            with open(f"/proc/self/task/{thread}/comm") as file:
                names.append(file.read())
        except OSError:  # it has ended meanwhile
            pass
    return names.count("anynorm helper\n")


def assert_helpers(count):
    """So many helpers there are, or will be when others have ended."""
    deadline = time.monotonic() + 60
    while helpers_alive() != count:
        assert time.monotonic() < deadline, (helpers_alive(), count)
        time.sleep(0.001)


def crew_of(helpers, monkeypatch, present):
    """The crew of all calls, in which so many helpers are called, and as many are there as are present."""
    crew = Crew(present)
    crew.helpers = helpers
    monkeypatch.setattr(_threads, "helpers", lambda start, count: crew)
    return crew


def share(kernel, task, units, rows, nbytes, threads, resume, keepalive):
    """Launch a kernel in so many threads."""
    if _threads.get_threads() != threads:  # whose helpers are told to end
        _threads.set_threads(threads)
    task.rows = rows
    launch(kernel, task, units, nbytes, keepalive, resume)


def never(first, last):
    raise AssertionError
