"""Every array library that is installed, behind one interface for the tests."""

import contextlib
import importlib.util
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import ml_dtypes
import numpy as np
import pytest

import anynorm
from anynorm._kernels.cpu.language.dtypes import INTERPRETED

ALL = ("float16", "bfloat16", "float32", "float64")


def thorough_but(*kept: Any, of: Any) -> list[Any]:
    """The values of a parameter, all but some of which wait for `--thorough`."""
    return [value if value in kept else pytest.param(value, marks=pytest.mark.thorough) for value in of]


@dataclass(frozen=True)
class Backend:
    name: str
    make: Callable[[np.ndarray], Any]
    read: Callable[[Any], np.ndarray]
    dtypes: tuple[str, ...]
    flushes: tuple[str, ...] = ()  # the dtypes whose subnormal numbers it treats as zero
    writable: bool = False
    context: Callable[[], Any] = field(default=contextlib.nullcontext)
    needs: str = "numpy"  # the package without which this one is left out; see installed.py

    def __str__(self) -> str:
        return self.name


def as_dtype(values, dtype: str) -> np.ndarray:
    """Round values to a dtype of NumPy's or to bfloat16."""
    with np.errstate(all="ignore"):
        return np.asarray(values).astype(ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype)


def _read_only(values):
    values = values.copy()
    values.flags.writeable = False
    return values


def _strict(device: str):
    import array_api_strict as xp

    def make(values):
        return xp.asarray(values.copy(), device=xp.Device(device))

    def read(array):
        return np.asarray(xp.asarray(array, device=xp.Device("CPU_DEVICE")))

    return make, read


def _torch_make(device):
    def make(values):
        import torch

        if values.dtype == ml_dtypes.bfloat16:
            return torch.from_numpy(values.astype(np.float32)).to(torch.bfloat16).to(device)
        return torch.from_numpy(values.copy()).to(device)

    return make


def _torch_read(tensor):
    tensor = tensor.detach().cpu()
    if str(tensor.dtype) == "torch.bfloat16":
        return tensor.float().numpy().astype(ml_dtypes.bfloat16)
    return tensor.numpy()


def _jax_make(values):
    import jax.numpy as jnp

    return jnp.asarray(values)


def _jax_x64():
    import jax

    return jax.enable_x64(True)


def _dask_make(values):
    import dask.array as da

    # Cut along the normalized axis too: sums and maxima then run over several chunks.
    return da.from_array(values, chunks=tuple(max(1, (length + 1) // 2) for length in values.shape))


def _dask_read(array):
    return np.asarray(array.compute(scheduler="synchronous"))


def has_cuda() -> bool:
    if importlib.util.find_spec("torch") is not None:
        import torch

        return torch.cuda.is_available()
    return False


def _cupy_make(values):
    import cupy

    return cupy.asarray(values)


def _cupy_read(array):
    return array.get()


def _definition():
    return anynorm.use_kernel("definition")


HAS_LLVMLITE = importlib.util.find_spec("llvmlite") is not None
needs_llvmlite = pytest.mark.skipif(not HAS_LLVMLITE, reason="needs llvmlite, which compiles the kernels")
needs_compiled = pytest.mark.skipif(not HAS_LLVMLITE or INTERPRETED, reason="needs kernels that are compiled")
KERNELS = (pytest.param("cpu", marks=needs_llvmlite), "definition")  # those that take NumPy arrays
needs_gpu = pytest.mark.skipif(not has_cuda(), reason="needs an NVIDIA GPU")
needs_cupy = pytest.mark.skipif(
    importlib.util.find_spec("cupy") is None or not has_cuda(), reason="needs CuPy and an NVIDIA GPU"
)

# Where llvmlite is installed these two run the kernel "cpu", else the definition; test_choose.py makes sure of it.
NUMPY = Backend("numpy", np.array, np.asarray, ALL, writable=True)
TORCH = Backend("torch", _torch_make("cpu"), _torch_read, ALL, writable=True, needs="torch")
_BY_JAX = ("bfloat16", "float32", "float64")  # those of float16 are computed in float32, where they are normal
JAX = Backend("jax", _jax_make, np.asarray, ("float16", "bfloat16", "float32"), flushes=_BY_JAX, needs="jax")
JAX_X64 = Backend("jax-x64", _jax_make, np.asarray, ALL, flushes=_BY_JAX, context=_jax_x64, needs="jax")
DASK = Backend("dask", _dask_make, _dask_read, ALL, needs="dask")
STRICT = Backend("strict", *_strict("CPU_DEVICE"), ("float32", "float64"), writable=True)

_KNOWN = (
    NUMPY,
    Backend("numpy, definition", np.array, np.asarray, ALL, writable=True, context=_definition),
    Backend("numpy-read-only", _read_only, np.asarray, ALL),
    Backend("numpy-reversed", lambda v: np.array(v)[..., ::-1].copy()[..., ::-1], np.asarray, ALL, writable=True),
    STRICT,
    Backend("strict-device2", *_strict("device2"), ("float32", "float64"), writable=True),
    Backend("strict-no-float64", *_strict("no_float64"), ("float32",), writable=True),
    TORCH,
    replace(TORCH, name="torch, definition", context=_definition),
    JAX,
    JAX_X64,
    DASK,
)
CPU_BACKENDS = tuple(backend for backend in _KNOWN if importlib.util.find_spec(backend.needs) is not None)
# Every test runs on the rest. These are slow, by compiling or by not computing, and take turns in this order. JAX
# compiles each operation for each shape, two seconds a norm, and has one turn of 24 with float64 and one without.
TURNS = (
    "strict", "dask", "strict-device2", "jax", "strict-no-float64", "dask",
    "strict", "dask", "strict-device2", "dask", "strict-no-float64", "dask",
    "strict", "dask", "strict-device2", "jax-x64", "strict-no-float64", "dask",
    "strict", "dask", "strict-device2", "dask", "strict-no-float64", "dask",
)  # fmt: skip
TAKING_TURNS = frozenset(TURNS)
turn: int | None = None  # the seed; None where all run


def named(name: str) -> Backend:
    """The backend of that name; a test of one that is not installed is skipped."""
    (backend,) = [known for known in _KNOWN if known.name == name]
    if backend not in CPU_BACKENDS:
        pytest.skip(f"needs {backend.needs}")
    return backend


def has_its_turn(backend: Any, test: str, place: int) -> bool:
    """Whether a backend is to run in a test; of 24 consecutive places in one test, each has one at least."""
    if turn is None or getattr(backend, "name", None) not in TAKING_TURNS:
        return True
    return TURNS[(zlib.crc32(test.encode()) + place + turn) % len(TURNS)] == backend.name


def some(test: str, place: int, *dtypes: str) -> list[Backend]:
    """The backends that a test over several is to run on, of those that know the dtypes."""
    known = [backend for backend in CPU_BACKENDS if set(dtypes) <= set(backend.dtypes)]
    if turn is None:
        return known
    others = [name for name in TURNS if name in {backend.name for backend in known}]
    chosen = others[(zlib.crc32(test.encode()) + place + turn) % len(others)] if others else None
    return [backend for backend in known if backend.name not in TAKING_TURNS or backend.name == chosen]


_OF_CUPY = ("float16", "float32", "float64")
# By the CUDA kernels, or what they refuse by the definition, and all by that; test_cuda_gpu.py makes sure of it.
TORCH_CUDA = Backend("torch-cuda", _torch_make("cuda"), _torch_read, ALL, writable=True)
CUPY = Backend("cupy", _cupy_make, _cupy_read, _OF_CUPY, writable=True)
# CuPy compiles all of its kernels with -ftz=true: float32 is flushed even where it is widened to float64.
CUPY_DEFINITION = replace(CUPY, name="cupy, definition", context=_definition, flushes=("float32",))
_ON_GPU = (
    (TORCH_CUDA, needs_gpu),
    (replace(TORCH_CUDA, name="torch-cuda, definition", context=_definition), needs_gpu),
    (CUPY, needs_cupy),
    (CUPY_DEFINITION, needs_cupy),
)
GPU_BACKENDS = tuple(
    pytest.param(backend, marks=[pytest.mark.gpu, needs], id=backend.name) for backend, needs in _ON_GPU
)
BACKENDS = (*(pytest.param(backend, id=backend.name) for backend in CPU_BACKENDS), *GPU_BACKENDS)
