"""What the compiled program of the fast path reads: where the interpreter's functions, its objects and kernels are."""

from __future__ import annotations

import ctypes

_WORD = ctypes.c_int64

# All are public: of the stable ABI, which Py_buffer belongs to since Python 3.11, or documented beside it.
FUNCTIONS = (
    "PyObject_GetBuffer", "PyBuffer_Release", "PyObject_Type", "PyObject_GetAttrString", "PyObject_CallOneArg",
    "PyFloat_AsDouble", "PyLong_FromLongLong", "PyTuple_New", "PyTuple_SetItem", "Py_IncRef", "Py_DecRef",
    "PyErr_Clear", "PyEval_SaveThread", "PyEval_RestoreThread",
)  # fmt: skip
OBJECTS = (
    "none", "float", "layer_norm", "rms_norm", "scale_norm",
    "ndarray", "empty_like_array",  # NumPy
    "bfloat16",  # a dtype of NumPy's, once it is known
    "Tensor", "Parameter", "empty_like_tensor",  # torch, once it is known
)  # fmt: skip
# By the code of x's dtype; the last one is for float32 that is computed in float64.
IN_FLOAT64 = 4
KERNELS = IN_FLOAT64 + 1


class Record(ctypes.Structure):
    """The memory of the program, each field of 8 bytes; an address is 0 where there is nothing yet."""

    _fields_ = (
        ("normalize_arrays", _WORD),  # the functions themselves
        ("normalize_tensors", _WORD),
        *((name, _WORD) for name in (*FUNCTIONS, *OBJECTS)),
        ("look_at_tensor", _WORD),  # torch's own function, see `instructions`
        ("most_nbytes", _WORD),  # of x; larger ones are shared among threads, or stored past the caches
        ("few_elements", _WORD),  # for which the lock of the interpreter is kept
        ("kernels", _WORD * KERNELS),
        ("kernels_with_residual", _WORD * KERNELS),
    )
