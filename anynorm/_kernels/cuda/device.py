"""The CUDA driver: what a device is, loading machine code, and starting kernels."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import threading
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from anynorm._kernels.cuda.compile import compiled, lacking
from anynorm._kernels.cuda.launch import SLOT_NBYTES, shared_nbytes
from anynorm._kernels.cuda.task import Choice, Task

# So many times as fast as float64 is float32: 2 on cards with full float64, 32 or 64 on others. Below this float64 is
# taken to cost less than the pairs of float32 that replace it, some ten operations for each of its own.
_SLOW_FLOAT64 = 16
# The default stream's own handle, which libraries mean by 0. The driver's bindings may mean by it the default stream of
# each thread (CUDA_PYTHON_CUDA_PER_THREAD_DEFAULT_STREAM).
_LEGACY_STREAM = 1
# How many blocks can reach each other's shared memory: on every card that has clusters, and on these if asked for.
_PORTABLE_CLUSTER = 8
_LARGER_CLUSTER, _LARGER = 16, ("sm_90", "sm_100")
# Shared memory that a kernel knows the size of: for each 32 of the 4096 threads that may share a row two sums of 16
# bytes and a finished row of 48, as team.cuh has them.
_SHARED_BESIDES_NBYTES = 12 << 10


class Device(NamedTuple):
    """What the kernels have to know of a device."""

    architecture: str  # such as sm_90
    slow_float64: bool
    clusters: bool  # whether blocks can reach each other's shared memory
    shared_nbytes: int  # the most shared memory of a block

    @property
    def most_shared_nbytes(self) -> int:
        """How much shared memory a block may be given."""
        return self.shared_nbytes - _SHARED_BESIDES_NBYTES

    @property
    def most_cluster(self) -> int:
        """How many blocks can."""
        if not self.clusters:
            return 1
        return _LARGER_CLUSTER if self.architecture in _LARGER else _PORTABLE_CLUSTER


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
    most = read("CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN")
    return Device(f"sm_{major}{minor}", ratio >= _SLOW_FLOAT64, major >= 9, most)


@functools.cache
def unfit(ordinal: int) -> str | None:
    """Why kernels cannot be compiled for a device, and what to install; None: they can."""
    try:
        from cuda.bindings import driver

        architecture = device(ordinal).architecture
        version = int(_checked(driver, driver.cuDriverGetVersion()))
    except (ImportError, RuntimeError) as error:
        return f"the CUDA driver cannot be used ({error})"
    return lacking(architecture, version)


class Loaded(NamedTuple):
    """A kernel that is ready to be started."""

    function: Any
    ordinal: int  # of the device that it is for
    shared_nbytes: int  # that a block is given


_kernels: dict[tuple[Choice, int, int], Loaded] = {}
_lock = threading.Lock()


def kernel(choice: Choice, block: int, ordinal: int) -> Loaded:
    """A kernel for a device, which must be the current one; compiled and loaded when first asked for."""
    key = choice, block, ordinal
    found = _kernels.get(key)
    if found is None:
        with _lock:
            found = _kernels.get(key)
            if found is None:
                code = compiled(choice, block, device(ordinal).architecture)
                shared = shared_nbytes(block, choice.held, choice.in_shared, choice.neighbours, choice.abreast)
                shared += block * choice.of_parameters * SLOT_NBYTES
                found = _kernels[key] = Loaded(_load(code, ordinal, shared, choice.cluster), ordinal, shared)
    return found


def _load(code: bytes, ordinal: int, shared: int, cluster: int) -> Any:
    from cuda.bindings import driver

    with _beside_capture(driver):
        _bind(driver, ordinal)
        library = _checked(driver, driver.cuLibraryLoadData(code, [], [], 0, [], [], 0))
        found = _checked(driver, driver.cuLibraryGetKernel(library, b"anynorm"))
        if cluster > _PORTABLE_CLUSTER:
            attribute = driver.CUfunction_attribute.CU_FUNC_ATTRIBUTE_NON_PORTABLE_CLUSTER_SIZE_ALLOWED
            _checked(driver, driver.cuKernelSetAttribute(attribute, 1, found, driver.CUdevice(ordinal)))
        # The driver loads into a context what is first used there, which it may not while a graph is captured.
        _checked(driver, driver.cuKernelGetFunction(found))
        if shared:
            attribute = driver.CUfunction_attribute.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
            _checked(driver, driver.cuKernelSetAttribute(attribute, shared, found, driver.CUdevice(ordinal)))
    return driver.CUfunction(int(found))


@functools.cache
def clusters_at_once(loaded: Loaded, block: int, cluster: int) -> int:
    """How many clusters of such blocks run at a time on the device, which must be the current one."""
    from cuda.bindings import driver

    config = driver.CUlaunchConfig()
    config.gridDimX, config.gridDimY, config.gridDimZ = cluster, 1, 1
    config.blockDimX, config.blockDimY, config.blockDimZ = block, 1, 1
    config.sharedMemBytes = loaded.shared_nbytes
    with _beside_capture(driver):
        _bind(driver, loaded.ordinal)
        return max(1, int(_checked(driver, driver.cuOccupancyMaxActiveClusters(loaded.function, config))))


@contextlib.contextmanager
def _beside_capture(driver: Any) -> Iterator[None]:
    """A block in which the driver lets this thread load kernels, although it may be capturing a graph."""
    relaxed = driver.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_RELAXED
    before = _checked(driver, driver.cuThreadExchangeStreamCaptureMode(relaxed))
    try:
        yield
    finally:
        _checked(driver, driver.cuThreadExchangeStreamCaptureMode(before))


def _bind(driver: Any, ordinal: int) -> bool:
    """Make the context that all libraries share the current one, if this thread has none; say whether it had none.

    A new thread has none until something is called that needs one, as torch and CuPy need not for what they have
    cached.
    """
    if int(_checked(driver, driver.cuCtxGetCurrent())):
        return False
    _checked(driver, driver.cuCtxSetCurrent(_context(ordinal)))
    return True


@functools.cache
def _context(ordinal: int) -> Any:
    """The primary context of a device, which is never given back: kernels stay loaded in it."""
    from cuda.bindings import driver

    return _checked(driver, driver.cuDevicePrimaryCtxRetain(_checked(driver, driver.cuDeviceGet(ordinal))))


def starter(loaded: Loaded, grid: tuple[int, int], block: int) -> Callable[[int, int], Any]:
    """What starts a kernel on a stream, given the address of the address of a task; it returns what failed, or None."""
    from cuda.bindings import driver

    run, success, (function, _, shared_nbytes) = driver.cuLaunchKernel, driver.CUresult.CUDA_SUCCESS, loaded
    across, down = grid

    def start(argument: int, stream: int) -> Any:
        (status,) = run(
            function, across, down, 1, block, 1, 1, shared_nbytes, stream or _LEGACY_STREAM, argument, 0
        )  # fmt: skip
        return None if status == success else status

    return start


def launch(loaded: Loaded, grid: tuple[int, int], block: int, task: Task, stream: int) -> None:
    """Start a kernel on a stream of its device, which must be the current one."""
    from cuda.bindings import driver

    start = starter(loaded, grid, block)
    argument = (ctypes.c_void_p * 1)(ctypes.addressof(task))
    # The driver copies the task before it returns.
    failed = start(ctypes.addressof(argument), stream)
    if failed is not None and _bind(driver, loaded.ordinal):
        failed = start(ctypes.addressof(argument), stream)
    if failed is not None:
        _checked(driver, (failed,))


def _checked(driver: Any, returned: tuple[Any, ...]) -> Any:
    """What a function of the driver returns beside its status."""
    status, *values = returned
    if status != driver.CUresult.CUDA_SUCCESS:
        raise RuntimeError(f"the CUDA driver failed: {status.name}")
    return values[0] if len(values) == 1 else tuple(values) if values else None
