"""What the compiled program of the fast path reads: where the interpreter's functions, its objects and kernels are."""

from __future__ import annotations

import ctypes
from typing import Any

from anynorm._kernels.cpu.language.dtypes import BY_CODE

_WORD = ctypes.c_int64

# All are public: of the stable ABI, which Py_buffer belongs to since Python 3.11, or documented beside it.
FUNCTIONS = (
    "PyObject_GetBuffer", "PyBuffer_Release", "PyObject_Type", "PyObject_GetAttr", "PyObject_CallOneArg",
    "PyFloat_AsDouble", "PyLong_AsLongLong",
    "PyLong_FromLongLong", "PyTuple_New", "PyTuple_SetItem", "Py_IncRef", "Py_DecRef",
    "PyErr_Clear", "PyEval_SaveThread", "PyEval_RestoreThread",
)  # fmt: skip
OBJECTS = (
    "none", "true", "float", "dtype",
    "is_alone",  # a function of None that tells whether a call uses no thread but its own
    "ndarray", "memmap", "empty_like_array",  # NumPy
    "bfloat16",  # a dtype of NumPy's, once an x has had it
    "Tensor", "Parameter", "empty_like_tensor",  # torch, once it is known
)  # fmt: skip
BEGIN = -1  # in place of a number of arguments: a call of the program that gives it the record
MOST_RULES = 32


def place_of(rule: Any, has_residual: Any, code: Any, in_float64: Any) -> Any:
    """Where among `kernels` the address of one lies: by the place of its rule, x's dtype, and whether in float64."""
    return ((rule * 2 + has_residual) * len(BY_CODE) + code) * 2 + in_float64


class Record(ctypes.Structure):
    """The memory of the program, each field of 8 bytes; an address is 0 where there is nothing yet."""

    _fields_ = (
        *((name, _WORD) for name in (*FUNCTIONS, *OBJECTS)),
        ("look_at_tensor", _WORD),  # torch's own function, see views.py
        ("most_nbytes", _WORD),  # of x; results for larger ones are made in huge pages, or stored past the caches
        ("least_shared_nbytes", _WORD),  # from which on calls are shared among threads
        ("few_elements", _WORD),  # for which the lock of the interpreter is kept
        ("rules", _WORD * MOST_RULES),  # the objects: those of the three norms, and of conventions that have been met
        ("norms", _WORD * MOST_RULES),  # which norm it is
        ("rounds_weight", _WORD * MOST_RULES),  # see Variant
        ("kernels", _WORD * (MOST_RULES * 2 * len(BY_CODE) * 2)),  # 0 until it has run on the slow path
    )
