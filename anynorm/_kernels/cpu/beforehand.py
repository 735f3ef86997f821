"""All that LLVM may have to compile, for those who have it done before anybody waits."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from anynorm._forks import unforked
from anynorm._kernels.cpu.compiler.entries import module_of, variants
from anynorm._kernels.cpu.kernels.task import Variant
from anynorm._kernels.cpu.threads.memory import system

Compilable = tuple[str, Variant | None]  # a kernel by name and variant; None: what all kernels share


def compilables(dtypes: Iterable[str]) -> Iterator[Compilable]:
    """All that arrays of these dtypes may need."""
    yield "fast_path_array", None
    yield "fast_path_tensor", None
    if system() is not None:
        yield "crew", None
    for dtype in dict.fromkeys(dtypes):
        yield from variants(dtype)


def compile_to(place: Path, one: Compilable) -> str | None:
    """Compile one for others to load from a folder; return why it is not kept there, or None."""
    from anynorm._kernels.cpu.compiler import machine_code

    with unforked:
        return machine_code.compile_to(place, *_module(one))


def kept_nbytes(one: Compilable, place: Path) -> int:
    """How large its machine code is in a folder; 0: it is not there."""
    from anynorm._kernels.cpu.compiler import machine_code

    return machine_code.kept_nbytes(_module(one)[0], place)


def _module(one: Compilable) -> tuple[str, Callable[[], Any]]:
    name, variant = one
    if variant is not None:
        return module_of(name, variant)
    if name == "crew":
        from anynorm._kernels.cpu.threads.functions import module_of_crew

        return name, module_of_crew
    from anynorm._kernels.cpu.fast_path.functions import module_of_program

    return module_of_program(name.removeprefix("fast_path_"))
