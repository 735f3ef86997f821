"""The CUDA driver: what a device is, loading machine code, and starting kernels."""

from __future__ import annotations

import ctypes
import functools
import threading
from typing import Any, NamedTuple

from anynorm._kernels.cuda.compile import compiled
from anynorm._kernels.cuda.task import Choice, Task

# So many times as fast as float64 is float32: 2 on cards with full float64, 32 or 64 on others. Below this float64 is
# taken to cost less than the pairs of float32 that replace it, some ten operations for each of its own.
_SLOW_FLOAT64 = 16


class Device(NamedTuple):
    """What the kernels have to know of a device."""

    architecture: str  # such as sm_90
    slow_float64: bool
    clusters: bool  # whether blocks can reach each other's shared memory


@functools.cache
def device(ordinal: int) -> Device:
    """The device of this number."""
    from cuda.bindings import driver

    _checked(driver, driver.cuInit(0))
    handle = _checked(driver, driver.cuDeviceGet(ordinal))
    attributes = driver.CUdevice_attribute

    def read(name: str) -> int:
        return int(_checked(driver, driver.cuDeviceGetAttribute(getattr(attributes, name), handle)))

    major = read("CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR")
    minor = read("CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR")
    ratio = read("CU_DEVICE_ATTRIBUTE_SINGLE_TO_DOUBLE_PRECISION_PERF_RATIO")
    return Device(f"sm_{major}{minor}", ratio >= _SLOW_FLOAT64, major >= 9)


_kernels: dict[tuple[Choice, int, str], Any] = {}
_lock = threading.Lock()


def kernel(choice: Choice, block: int, architecture: str) -> Any:
    """A kernel, compiled and loaded when first asked for; for all devices of an architecture."""
    key = choice, block, architecture
    found = _kernels.get(key)
    if found is None:
        with _lock:
            found = _kernels.get(key)
            if found is None:
                found = _kernels[key] = _load(compiled(choice, block, architecture))
    return found


def _load(code: bytes) -> Any:
    from cuda.bindings import driver

    library = _checked(driver, driver.cuLibraryLoadData(code, [], [], 0, [], [], 0))
    return _checked(driver, driver.cuLibraryGetKernel(library, b"anynorm"))


def launch(function: Any, grid: tuple[int, int], block: int, task: Task, stream: int) -> None:
    """Start a kernel on a stream of the device whose context is the current one."""
    from cuda.bindings import driver

    argument = (ctypes.c_void_p * 1)(ctypes.addressof(task))
    # The driver copies the task before it returns.
    _checked(
        driver,
        driver.cuLaunchKernel(
            driver.CUfunction(int(function)), *grid, 1, block, 1, 1, 0, stream,
            ctypes.addressof(argument), 0,
        ),
    )  # fmt: skip


def _checked(driver: Any, returned: tuple[Any, ...]) -> Any:
    """What a function of the driver returns beside its status."""
    status, *values = returned
    if status != driver.CUresult.CUDA_SUCCESS:
        raise RuntimeError(f"the CUDA driver failed: {status.name}")
    return values[0] if len(values) == 1 else tuple(values) if values else None
