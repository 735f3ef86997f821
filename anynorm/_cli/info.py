"""What `anynorm info` prints: versions, backends, kernels, and what to install for more."""

from __future__ import annotations

import argparse
import ctypes
import platform
from importlib import metadata

import anynorm
from anynorm._choose import KERNELS
from anynorm._cli.terminal import installed

# Module, the distribution that holds it, and how to get it.
_BACKENDS = (
    ("numpy", ("numpy",), ""),
    ("llvmlite", ("llvmlite",), "pip install llvmlite (fused kernels on the CPU)"),
    ("torch", ("torch",), "pip install torch"),
    ("cupy", ("cupy-cuda12x", "cupy-cuda13x", "cupy"), "pip install cupy-cuda12x or cupy-cuda13x"),
    ("jax", ("jax",), "pip install jax"),
    ("dask", ("dask",), "pip install 'dask[array]'"),
    ("sparse", ("sparse",), "pip install sparse"),
    ("ndonnx", ("ndonnx",), "pip install ndonnx"),
    ("ml_dtypes", ("ml_dtypes",), "pip install ml_dtypes (bfloat16 in NumPy)"),
)
_FORMATS = (("safetensors", ".safetensors"), ("zarr", ".zarr"), ("pyarrow", ".parquet"))
_COMMAND_LINE = (
    ("rich", "progress bars"), ("shtab", "completion by a shell"), ("matplotlib", "pictures of anynorm bench"),
)  # fmt: skip


def run(parsed: argparse.Namespace) -> int:
    """Print it all; packages are found without importing them."""
    print(
        f"anynorm {anynorm.__version__}, Python {platform.python_version()}, {platform.machine()} {platform.system()}"
    )
    print("\nbackends")
    for module, distributions, advice in _BACKENDS:
        version = _version(module, distributions)
        print(f"  {module:12}{version or f'not installed; {advice}'}")
    print("\nkernels, in order of preference")
    for kernel in KERNELS:
        lacks = _no_driver() if kernel.name == "cuda" else None
        print(f"  {kernel.name:12}{kernel.description}; {lacks or kernel.missing() or 'active'}")
    print("\nfiles\n  .npy          always")
    for module, suffix in _FORMATS:
        version = _version(module, (module,))
        print(f"  {suffix:14}{f'{module} {version}' if version else f'not installed; pip install {module}'}")
    print("\ncommand line")
    for module, purpose in _COMMAND_LINE:
        version = _version(module, (module,))
        print(f"  {module:14}{version or f'not installed; pip install {module}'} ({purpose})")
    return 0


def _no_driver() -> str | None:
    """Without it nothing that could be installed helps, so it is asked for first; None: it is there."""
    try:
        ctypes.CDLL("nvcuda.dll" if platform.system() == "Windows" else "libcuda.so.1")
    except OSError:
        return "no NVIDIA driver is installed"
    return None


def _version(module: str, distributions: tuple[str, ...]) -> str | None:
    """The installed version, found without importing anything."""
    if not installed(module):
        return None
    for distribution in distributions:
        try:
            return metadata.version(distribution)
        except metadata.PackageNotFoundError:
            continue
    return "of unknown version"
