"""Kernels by name and variant, compiled or read from disk when they are first asked for."""

from __future__ import annotations

import ctypes
import importlib
import time
from collections.abc import Callable, Iterator
from functools import cache, partial
from itertools import product
from typing import Any, NamedTuple

from anynorm._forks import unforked
from anynorm._kernels.cpu.kernels.task import Variant
from anynorm._kernels.cpu.language.dtypes import CODES, INTERPRETED, LAYER, NUMBERS, OF_ROW, OF_TURN, RULES, SCALE

# The module in `kernels`, and the function in it.
_NAMES = {
    "rows": ("rows", "normalize_rows"),
    "columns": ("side_by_side.columns", "normalize_columns"),
    "float64": ("float64", "normalize_float64"),
    "moments": ("moments", "reduce_rows"),
    "moments_columns": ("side_by_side.columns", "reduce_columns"),
    "finish": ("finish", "finish_rows"),
    "given": ("given", "apply_rows"),
    "given_columns": ("side_by_side.columns", "apply_columns"),
    "derivative": ("derivative.rows", "differentiate_rows"),
    "derivative_columns": ("derivative.columns", "differentiate_columns"),
    "derivative_turns": ("derivative.turns", "differentiate_turns"),
    "groups": ("groups", "normalize_groups"),
    "derivative_groups": ("groups", "differentiate_groups"),
}
_Function = ctypes.CFUNCTYPE(ctypes.c_int64, ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64)


class Kernel(NamedTuple):
    """A compiled kernel."""

    address: int  # of its machine code; 0 where it is interpreted
    function: Callable[[int, int, int], int]  # releases Python's lock

    @property
    def place(self) -> int:
        """The address at which another kernel calls this one, also where they are interpreted."""
        return self.address or ctypes.cast(_callback(self.function), ctypes.c_void_p).value or 0

    def run(self, task: ctypes.Structure, first: int, last: int) -> int:
        """Work on rows first to last, or blocks of them; return which is the next."""
        return self.function(ctypes.addressof(task), first, last)


@cache
def _callback(function: Callable[[int, int, int], int]) -> Any:
    return _Function(function)


_seconds: list[float] = []  # that each kernel took until it could run


def seconds_to_begin() -> float:
    """How long this process has waited for kernels so far: for the compiler to start, and to compile or to be read."""
    return sum(_seconds)


def variants(dtype: str) -> Iterator[tuple[str, Variant]]:
    """All kernels for arrays of a dtype, by name and variant."""
    code, in_float64 = CODES[dtype], dtype == "float64"
    if code == 0:  # those of groups are the same for all
        yield from ((name, Variant(LAYER, 0, False)) for name in ("groups", "derivative_groups"))
    for rule in RULES.values():
        # There is no norm of a sum by scale_norm.
        for has_residual, has_layout in product((False, True) if rule != SCALE else (False,), (False, True)):
            one = Variant(rule, code, in_float64, has_residual, has_layout)
            widths = (True,) if in_float64 else (False, True)
            names = ["float64" if in_float64 else "rows", *(["columns"] * has_layout)]
            yield from ((name, one._replace(in_float64=width)) for name, width in product(names, widths))
            if rule != SCALE and not has_layout:
                numbers = () if in_float64 else (NUMBERS,)
                yield from (
                    (names[0], one._replace(in_float64=width, parameters=which))
                    for width, which in product(widths, (OF_TURN, *numbers))
                )
                yield "derivative_turns", one._replace(in_float64=True)
                yield from (
                    ("derivative", one._replace(in_float64=True, parameters=which)) for which in (OF_ROW, *numbers)
                )
            names = ["derivative", *(["derivative_columns"] * has_layout)]
            yield from (
                (name, one._replace(in_float64=True, has_numbers=given))
                for name, given in product(names, (False, True))
            )
            if not has_residual:
                if not has_layout:
                    yield from (("finish", one._replace(in_float64=True, has_numbers=given)) for given in (False, True))
                names = ["given", *(["given_columns"] * has_layout)]
                if rule == LAYER:  # for those of any norm
                    names += ["moments", *(["moments_columns"] * has_layout)]
                yield from ((name, one._replace(in_float64=True)) for name in names)


@cache
def kernel(name: str, variant: Variant) -> Kernel:
    """A kernel of this variant."""
    with unforked:
        started = time.perf_counter()
        found = _interpreted(name, variant) if INTERPRETED else _compiled(name, variant)
        _seconds.append(time.perf_counter() - started)
        return found


def module_of(name: str, variant: Variant) -> tuple[str, Callable[[], Any]]:
    """The symbol of a kernel, and what writes its module."""
    of_variant = "".join(str(int(one)) for one in variant)
    symbol = f"{name}_{of_variant}"
    return symbol, lambda: _trace(symbol, name, variant)


def _compiled(name: str, variant: Variant) -> Kernel:
    from anynorm._kernels.cpu.compiler.machine_code import load

    address = load(*module_of(name, variant))
    return Kernel(address, _Function(address))


def _trace(symbol: str, name: str, variant: Variant) -> Any:
    from anynorm._kernels.cpu.language.tracing import trace

    return trace(symbol, partial(_source(name), variant), 3)


def _interpreted(name: str, variant: Variant) -> Kernel:
    from anynorm._kernels.cpu.language.interpreted_memory import as_compiled

    return Kernel(0, as_compiled(partial(_source(name), variant)))


def _source(name: str) -> Callable[..., int]:
    module, function = _NAMES[name]
    found: Callable[..., int] = getattr(importlib.import_module(f"anynorm._kernels.cpu.kernels.{module}"), function)
    return found
