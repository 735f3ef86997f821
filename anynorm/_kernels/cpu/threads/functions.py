"""The program of all crews, as Python calls it."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

from anynorm._forks import unforked
from anynorm._kernels.cpu.threads.memory import system


class Program(NamedTuple):
    """Functions that take the address of the memory of a crew, and run without Python's lock."""

    hire: Callable[[int, Any, int], int]
    run: Callable[[int, int, int, int, int, Any, int], int]
    retire: Callable[[int], None]
    leave: Callable[[int], None]


_ADDRESS, _NUMBER = ctypes.c_void_p, ctypes.c_int64
_TYPES = (
    ctypes.CFUNCTYPE(_NUMBER, _ADDRESS, _ADDRESS, _NUMBER),
    ctypes.CFUNCTYPE(_NUMBER, _ADDRESS, _ADDRESS, _ADDRESS, _NUMBER, _NUMBER, _ADDRESS, _NUMBER),
    ctypes.CFUNCTYPE(None, _ADDRESS),
    ctypes.CFUNCTYPE(None, _ADDRESS),
)


def module_of_crew() -> Any:
    """The module of the program, whose function is `crew`."""
    from anynorm._kernels.cpu.threads.program import module

    return module()


@cache
def program() -> Program | None:
    """The program of all crews; None where the system lacks what it calls."""
    if system() is None:
        return None
    with unforked:
        from anynorm._kernels.cpu.compiler.machine_code import load

        functions = (_ADDRESS * len(_TYPES))()
        ctypes.CFUNCTYPE(None, _ADDRESS)(load("crew", module_of_crew))(functions)
        return Program(*(kind(address) for kind, address in zip(_TYPES, functions, strict=True)))
