"""What a benchmark ran on: processor, caches, memory, system, packages."""

from __future__ import annotations

import datetime
import os
import platform
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

PACKAGES = (
    *("numpy", "llvmlite", "torch", "onnx", "onnxruntime", "jax", "jaxlib", "scikit-learn", "array-api-compat"),
    *("array-api-strict", "dask", "ndonnx"),
)


def describe() -> dict[str, Any]:
    """Read the description from Linux; elsewhere what cannot be read is None."""
    import anynorm

    return {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "processor": _field("/proc/cpuinfo", "model name") or platform.processor(),
        "cores": usable_cores(),
        "caches": caches(),
        "memory": _field("/proc/meminfo", "MemTotal"),
        "huge_pages": _read("/sys/kernel/mm/transparent_hugepage/enabled"),
        "load": load(),
        "system": platform.platform(),
        "python": platform.python_version(),
        "anynorm": anynorm.__version__,
        "commit": _commit(),
        "packages": {name: version for name in PACKAGES if (version := _version(name))},
    }


def usable_cores() -> int:
    """How many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def load() -> float | None:
    """How many processes wanted to run at a time in the last minute."""
    try:
        return round(os.getloadavg()[0], 2)
    except (AttributeError, OSError):  # the system does not say
        return None


def caches() -> list[dict[str, Any]]:
    """List the data caches that the first core sees, with the cores that share each."""
    found = []
    for folder in sorted(Path("/sys/devices/system/cpu/cpu0/cache").glob("index*")):
        kind, size = _read(folder / "type"), _read(folder / "size")
        if kind in ("Data", "Unified") and size:
            level, cores = int(_read(folder / "level") or 0), _read(folder / "shared_cpu_list")
            found.append({"level": level, "nbytes": int(size.rstrip("K")) * 1024, "cores": cores})
    return found


def _read(path: str | Path) -> str | None:
    try:
        return Path(path).read_text().strip()
    except OSError:
        return None


def _field(path: str, name: str) -> str | None:
    for line in (_read(path) or "").splitlines():
        key, _, value = line.partition(":")
        if key.strip() == name:
            return value.strip()
    return None


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _commit() -> str | None:
    checkout = Path(__file__).resolve().parents[2]
    if not (checkout / ".git").exists():  # an installed package may lie in a checkout of something else
        return None
    command = ["git", "describe", "--always", "--dirty"]
    try:
        done = subprocess.run(command, cwd=checkout, capture_output=True, text=True)
    except OSError:
        return None
    return done.stdout.strip() or None
