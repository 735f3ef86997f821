"""The program of the fast path as builtin functions of Python, and the record that it reads."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable
from functools import cache, partial
from typing import Any

import numpy

from anynorm._definition.norms import LAYER_NORM, RMS_NORM, SCALE_NORM, Rule
from anynorm._forks import unforked
from anynorm._kernels.cpu.fast_path.record import BEGIN, FUNCTIONS, Record
from anynorm._kernels.cpu.kernels.task import Variant
from anynorm._threads import get_threads

_METH_FASTCALL = 0x80
# To release Python's lock and take it again costs 0.07 microseconds, and a wait where another thread has taken it.
# Such work takes 4 (float32).
_FEW_ELEMENTS = 1 << 13

Program = Callable[..., Any]  # what it takes and returns `program` says


class _Method(ctypes.Structure):
    """PyMethodDef."""

    _fields_ = (
        ("name", ctypes.c_char_p),
        ("function", ctypes.c_int64),
        ("flags", ctypes.c_int),
        ("doc", ctypes.c_char_p),
    )


class _Exchange(ctypes.Structure):
    """DLPackExchangeAPI: a version, those before it, and functions."""

    _fields_ = (
        ("major", ctypes.c_uint32),
        ("minor", ctypes.c_uint32),
        ("previous", ctypes.c_void_p),
        ("allocate", ctypes.c_void_p),
        ("managed_from_tensor", ctypes.c_void_p),
        ("tensor_from_managed", ctypes.c_void_p),
        ("look_at_tensor", ctypes.c_int64),  # dltensor_from_py_object_no_sync, which may be missing
        ("current_stream", ctypes.c_void_p),
    )


def module_of_program(kind: str) -> tuple[str, Callable[[], Any]]:
    """The name of the program for arrays of a kind, "array" or "tensor", and what makes its module."""
    name = f"fast_path_{kind}"
    return name, partial(_trace, name, kind)


def _trace(name: str, kind: str) -> Any:
    from anynorm._kernels.cpu.fast_path import program, views
    from anynorm._kernels.cpu.language.tracing import trace

    look = getattr(views, f"look_at_{kind}")
    return trace(name, partial(program.fast_path, look, f"empty_like_{kind}"), 3)


_keepalive: list[Any] = []  # what there are addresses of in the record


def write(name: str, thing: Any) -> None:
    """Put the address of an object into the record, which is then never freed."""
    if getattr(record(), name) != id(thing):
        _keepalive.append(thing)
        setattr(record(), name, id(thing))


@cache
def record() -> Record:
    """The record, with all that is known from the beginning."""
    found: Record = _never_freed(Record(few_elements=_FEW_ELEMENTS))
    for name in FUNCTIONS:
        setattr(found, name, ctypes.cast(getattr(ctypes.pythonapi, name), ctypes.c_void_p).value)
    objects = {
        "none": None, "true": True, "float": float, "dtype": "dtype",
        "ndarray": numpy.ndarray, "memmap": numpy.memmap, "empty_like_array": numpy.empty_like,
        "is_alone": _is_alone,
    }  # fmt: skip
    for name, thing in objects.items():
        _keepalive.append(thing)
        setattr(found, name, id(thing))
    for rule in (LAYER_NORM, RMS_NORM, SCALE_NORM):
        _write_rule(found, rule, Variant.of(rule, 0, in_float64=False))
    return found


def place_of_rule(rule: Rule, variant: Variant) -> int | None:
    """Where in the record a rule lies, which is that object and none that is equal; None: it has no room for it."""
    found = record()
    for place, address in enumerate(found.rules):
        if address == id(rule):
            return place
    return _write_rule(found, rule, variant)


def _write_rule(found: Record, rule: Rule, variant: Variant) -> int | None:
    place = list(found.rules).index(0) if 0 in found.rules else None
    if place is not None:
        _keepalive.append(rule)
        found.norms[place], found.rounds_weight[place] = variant.rule, variant.rounds_weight
        found.rules[place] = id(rule)
    return place


def _is_alone(_: None) -> bool:
    """Whether a call uses no thread but its own, however large its arrays are."""
    return get_threads() == 1


@cache
def program_of(library: str) -> Any:
    """The program for the arrays of a library; None where torch does not tell by DLPack what a tensor is."""
    with unforked:
        if library == "numpy":
            return _builtin("array")
        import torch

        return _builtin("tensor") if write_torch(torch) else None


def is_served() -> bool:
    """Whether this is CPython on a machine of 64 bits, with all the functions that the program calls."""
    is_cpython = sys.implementation.name == "cpython" and sys.maxsize > 1 << 32
    return is_cpython and all(hasattr(ctypes.pythonapi, name) for name in FUNCTIONS)


def write_torch(torch: Any) -> bool:
    """Put what is needed of torch into the record, where torch has DLPack's exchange interface for C.

    That is of DLPack 1.3; torch 2.13 has it, older releases may not.
    """
    capsule = getattr(torch.Tensor, "__dlpack_c_exchange_api__", None)
    if capsule is None:
        return False
    try:
        exchange = _Exchange.from_address(_pointer_in(capsule, b"dlpack_exchange_api"))
    except ValueError:  # no capsule, or one of another name
        return False
    if exchange.major != 1 or not exchange.look_at_tensor:
        return False
    _keepalive.append(capsule)
    record().look_at_tensor = exchange.look_at_tensor
    write("Tensor", torch.Tensor)
    write("Parameter", torch.nn.Parameter)
    write("empty_like_tensor", torch.empty_like)
    return True


def _pointer_in(capsule: Any, name: bytes) -> int:
    kind = ctypes.PYFUNCTYPE(ctypes.c_int64, ctypes.py_object, ctypes.c_char_p)
    return int(kind(("PyCapsule_GetPointer", ctypes.pythonapi))(capsule, name))


def _builtin(kind: str) -> Program:
    """A builtin function of Python. Called through ctypes it would take several times as long."""
    from anynorm._kernels.cpu.compiler.machine_code import load

    name, make = module_of_program(kind)
    address = load(name, make)
    begin = ctypes.CFUNCTYPE(ctypes.c_int64, ctypes.c_int64, ctypes.c_int64, ctypes.c_int64)(address)
    begin(0, ctypes.addressof(record()), BEGIN)
    method = _never_freed(_Method(name.encode(), address, _METH_FASTCALL, None))
    make_builtin = ctypes.PYFUNCTYPE(ctypes.py_object, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p)
    made: Program = make_builtin(("PyCFunction_NewEx", ctypes.pythonapi))(ctypes.addressof(method), None, None)
    return made


def _never_freed(structure: Any) -> Any:
    """The same, which no end of Python frees: functions, which refer to it, may outlive this module."""
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(structure))
    return structure
