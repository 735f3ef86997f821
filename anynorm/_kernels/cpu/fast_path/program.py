"""The program of the fast path, as builtin functions of Python."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import numpy

from anynorm._definition.norms import LAYER_NORM, RMS_NORM, SCALE_NORM
from anynorm._kernels.cpu.compiler.machine_code import load
from anynorm._kernels.cpu.fast_path.instructions import text
from anynorm._kernels.cpu.fast_path.record import FUNCTIONS, Record

_METH_FASTCALL = 0x80
# To release Python's lock and take it again costs 0.07 microseconds, and a wait where another thread has taken it.
# Such work takes 4 (float32).
_FEW_ELEMENTS = 1 << 13

Normalize = Callable[..., Any]  # rule, x, residual, y, total, weight, bias, eps, offset


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


class Program(NamedTuple):
    """What the fast path calls, and the record, which is written to as more becomes known.

    Both functions return y, or y and the total; None where they leave a call to the long way and have written nothing; and the row
    that a kernel stopped at, of a result that was given.
    """

    normalize_arrays: Normalize
    normalize_tensors: Normalize
    record: Record
    held: list[Any]  # what there are addresses of in the record

    def write(self, name: str, held: Any) -> None:
        """Put the address of an object into the record, which is then never freed."""
        self.held.append(held)
        setattr(self.record, name, id(held))

    def write_torch(self, torch: Any) -> bool:
        """Put what is needed of torch into the record; return whether torch tells by DLPack what a tensor is.

        That is DLPackExchangeAPI of DLPack 1.2, which torch has since 2.10.
        """
        capsule = getattr(torch.Tensor, "__dlpack_c_exchange_api__", None)
        if capsule is None:
            return False
        exchange = _Exchange.from_address(_pointer_in(capsule, b"dlpack_exchange_api"))
        if exchange.major != 1 or not exchange.look_at_tensor:
            return False
        self.held.append(capsule)
        self.record.look_at_tensor = exchange.look_at_tensor
        for name, held in (
            ("Tensor", torch.Tensor), ("Parameter", torch.nn.Parameter), ("empty_like_tensor", torch.empty_like),
        ):  # fmt: skip
            self.write(name, held)
        return True


@cache
def program() -> Program | None:
    """The program; None where the interpreter is not CPython on a machine of 64 bits."""
    if sys.implementation.name != "cpython" or sys.maxsize < 1 << 32:
        return None
    begin = ctypes.CFUNCTYPE(ctypes.c_int64)(load("fast_path", text))
    record = Record.from_address(begin())
    for name in FUNCTIONS:
        setattr(record, name, ctypes.cast(getattr(ctypes.pythonapi, name), ctypes.c_void_p).value)
    record.few_elements = _FEW_ELEMENTS
    functions = [_builtin(name, getattr(record, name)) for name in ("normalize_arrays", "normalize_tensors")]
    made = Program(*functions, record, [])
    objects = {
        "none": None, "float": float, "layer_norm": LAYER_NORM, "rms_norm": RMS_NORM, "scale_norm": SCALE_NORM,
        "ndarray": numpy.ndarray, "empty_like_array": numpy.empty_like,
    }  # fmt: skip
    for name, held in objects.items():
        made.write(name, held)
    return made


def _pointer_in(capsule: Any, name: bytes) -> int:
    get = ctypes.pythonapi.PyCapsule_GetPointer
    get.restype, get.argtypes = ctypes.c_int64, (ctypes.py_object, ctypes.c_char_p)
    return int(get(capsule, name))


_methods: list[_Method] = []  # which builtin functions refer to


def _builtin(name: str, address: int) -> Normalize:
    """A function of Python from one of C. Called through ctypes it would take several times as long."""
    _methods.append(_Method(name.encode(), address, _METH_FASTCALL, None))
    new = ctypes.pythonapi.PyCFunction_NewEx
    new.restype, new.argtypes = ctypes.py_object, (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p)
    made: Normalize = new(ctypes.addressof(_methods[-1]), None, None)
    return made
