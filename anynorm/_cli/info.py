"""What `anynorm info` prints: versions, backends, kernels, and what to install for more."""

from __future__ import annotations

import argparse
import ctypes
import os
import platform
from collections.abc import Iterator
from importlib import metadata

import anynorm
from anynorm._choose import KERNELS, Kernel
from anynorm._cli.terminal import installed
from anynorm._kernels import cpu, object_files
from anynorm._kernels.cpu.beforehand import compilables, kept_nbytes
from anynorm._kernels.cpu.language.dtypes import CODES, INTERPRETED

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
# Kernels for arrays of one library: what to install before there can be any.
_LIBRARIES = {"blocks": "dask", "pieces": "dask", "xla": "jax"}
_FORMATS = (("safetensors", ".safetensors"), ("zarr", ".zarr"), ("pyarrow", ".parquet"))
_COMMAND_LINE = (
    ("rich", "progress bars"), ("shtab", "completion by a shell"), ("matplotlib", "pictures of anynorm bench"),
)  # fmt: skip


def run(parsed: argparse.Namespace) -> int:
    """Print it all; packages are found without importing them, but for the compiler."""
    print(
        f"anynorm {anynorm.__version__}, Python {platform.python_version()}, {platform.machine()} {platform.system()}"
    )
    print("\nbackends")
    for module, distributions, advice in _BACKENDS:
        version = _version(module, distributions)
        print(f"  {module:12}{version or f'not installed; {advice}'}")
    print("\nkernels, in order of preference")
    cpu.has_compiler()  # which finds out what is missing
    for kernel in KERNELS:
        print(f"  {kernel.name:12}{kernel.description}; {_lacking(kernel) or 'active'}")
    print("\ncompiled kernels")
    for line in _compiled():
        print(f"  {line}")
    print("\nfiles\n  .npy          always")
    for module, suffix in _FORMATS:
        version = _version(module, (module,))
        print(f"  {suffix:14}{f'{module} {version}' if version else f'not installed; pip install {module}'}")
    print("\ncommand line")
    for module, purpose in _COMMAND_LINE:
        version = _version(module, (module,))
        print(f"  {module:14}{version or f'not installed; pip install {module}'} ({purpose})")
    return 0


def _lacking(kernel: Kernel) -> str | None:
    """Why no call can run through a kernel; None: some can."""
    package = _LIBRARIES.get(kernel.name)
    if package is not None and not installed(package):
        return f"{package} is not installed"
    return (_no_driver() if kernel.name == "cuda" else None) or kernel.missing()


def _compiled() -> Iterator[str]:
    """Where compiled kernels are kept, how many of those for the CPU are, and what to do for more."""
    place, given = object_files.folder(), os.environ.get("ANYNORM_CACHE_DIR")
    if place is None:
        yield "there is no home folder to keep them in; set ANYNORM_CACHE_DIR to one"
        return
    yield f"{place}, {'as ANYNORM_CACHE_DIR says' if given else 'the cache folder; ANYNORM_CACHE_DIR sets another'}"
    unread, unwritten = object_files.unreadable(place), object_files.unwritable(place)
    if unread is not None:
        yield f"not used: {unread}"
    else:
        yield "can be written to" if unwritten is None else f"only read: {unwritten}"
    if INTERPRETED:
        yield "none is used for the CPU while ANYNORM_INTERPRET is set"
    elif cpu.missing() is None:
        wanted = list(compilables(CODES))
        found = sum(1 for one in wanted if kept_nbytes(one, place))
        advice = "anynorm warm compiles them"
        if unwritten is not None:
            advice = "anynorm warm --to DIR compiles them into another folder"
        lacks = f"; {advice}" if found < len(wanted) else ""
        yield f"{found} of {len(wanted)} for this processor are there{lacks}"


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
