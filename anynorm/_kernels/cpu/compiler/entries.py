"""Kernels by name and by the dtypes they are for, compiled when they are first asked for."""

from __future__ import annotations

import importlib
import time
from collections.abc import Callable
from functools import cache, partial
from typing import Any

from anynorm._forks import unforked
from anynorm._kernels.cpu.language.dtypes import TAGS, WIDE32, WIDE64
from anynorm._kernels.cpu.threads.crew import Job, job_of

# The module in `kernels`, the kernel in it, and in jit.py what finds the types of its arguments.
_NAMES = {
    "rows": ("rows", "normalize_rows", "signature_of_rows"),
    "columns": ("columns", "normalize_columns", "signature_of_rows"),
    "paired": ("float64", "normalize_paired", "signature_of_rows"),
    "reduce": ("moments", "reduce_rows", "signature_of_reduce"),
    "apply": ("given", "apply_rows", "signature_of_apply"),
    "backward": ("derivative", "pull_rows", "signature_of_pull"),
}


_seconds: list[float] = []  # that each kernel took until it could run


def seconds_to_begin() -> float:
    """How long this process has waited for kernels so far: for the compiler to start, and to compile or to be read."""
    return sum(_seconds)


@cache
def entry(name: str, code: int, in_float64: bool, *has: bool) -> Callable[..., int]:
    """A compiled kernel; the compiler is imported with the first one.

    ``has`` tells for which variant, as the function in jit.py does that finds the types of the arguments.
    """
    with unforked:
        started = time.perf_counter()
        function, signature, tags = _found(name, code, in_float64, *has)
        found = partial(_jit().entry(function, signature), *tags)
        _seconds.append(time.perf_counter() - started)
        return found


@cache
def job(name: str, code: int, in_float64: bool, *has: bool) -> Job | None:
    """The same, to be shared among threads."""
    entry(name, code, in_float64, *has)
    with unforked:
        function, signature, _ = _found(name, code, in_float64, *has)
        return job_of(_jit().native(function, signature))


@cache
def address(name: str, code: int, in_float64: bool, *has: bool) -> int:
    """Where the code of a kernel begins, once it is compiled."""
    entry(name, code, in_float64, *has)
    function, signature, _ = _found(name, code, in_float64, *has)
    return int(_jit().address(function, signature))


def _found(name: str, code: int, in_float64: bool, *has: bool) -> tuple[Any, tuple[Any, ...], tuple[Any, Any]]:
    """A kernel, the types of its arguments, and the numbers by whose types it is compiled."""
    file, function, signature = _NAMES[name]
    tags = list(TAGS.values())[code], WIDE64 if in_float64 else WIDE32
    module = importlib.import_module(f"anynorm._kernels.cpu.kernels.{file}")
    return getattr(module, function), getattr(_jit(), signature)(*tags, *has), tags


def _jit() -> Any:
    return importlib.import_module("anynorm._kernels.cpu.compiler.jit")
