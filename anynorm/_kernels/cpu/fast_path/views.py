"""How the program looks at an array: its address, shape, strides and dtype.

NumPy's arrays answer through the buffer protocol, tensors through DLPack's exchange interface for C. Both take some
nanoseconds, where Python would take a microsecond to ask about three arrays.
"""

from __future__ import annotations

import ctypes
from typing import Any

from anynorm._kernels.cpu.fast_path.record import Record
from anynorm._kernels.cpu.language.arithmetic import larger, smaller, where
from anynorm._kernels.cpu.language.calls import Require, call, fails, word
from anynorm._kernels.cpu.language.dtypes import BFLOAT16, FLOAT16, FLOAT32, FLOAT64
from anynorm._kernels.cpu.language.flow import cases, cell, loop, when
from anynorm._kernels.cpu.language.memory import buffer, store_integer
from anynorm._libraries.torch_tensors import LOW_ADDRESS

# Of a Py_buffer, in bytes; it belongs to the stable ABI since Python 3.11.
_BUF, _OBJ, _NDIM, _FORMAT, _SHAPE, _BUFFER_STRIDES = 0, 8, 36, 40, 48, 56
# Behind it: a dtype's code, how many axes, what a stride is in, the first byte and that behind the last, and the order.
_CODE, _AXES, _UNIT, _LOW, _HIGH, _IN_ORDER, VIEW_NBYTES = 80, 88, 96, 104, 112, 120, 128
_STRIDED, _FORMATTED, _WRITABLE = 0x18, 0x04, 0x01  # PyBUF_STRIDES and so on
_FORMATS = {"e": FLOAT16.code, "f": FLOAT32.code, "d": FLOAT64.code}
_UNKNOWN = -1
# Of a DLTensor.
_DATA, _DEVICE, _DL_NDIM, _DTYPE, _DL_SHAPE, _STRIDES, _OFFSET, _DL_NBYTES = 0, 8, 16, 20, 24, 32, 40, 48
_CPU, _FLOAT, _BFLOAT = 1, 2, 4
_DTYPES = {
    _FLOAT | 16 << 8: FLOAT16.code, _BFLOAT | 16 << 8: BFLOAT16.code,
    _FLOAT | 32 << 8: FLOAT32.code, _FLOAT | 64 << 8: FLOAT64.code,
}  # fmt: skip
_ONE_LANE = 1 << 16


class Fields:
    """A structure, the record unless told, whose fields are read as attributes."""

    def __init__(self, address: Any, kind: type[ctypes.Structure] = Record) -> None:
        self.address, self.kind = address, kind

    def __getattr__(self, name: str) -> Any:
        return word(self.address + getattr(self.kind, name).offset, 64)

    def at(self, name: str, place: Any) -> Any:
        """One of a field that is several."""
        return word(self.address + getattr(self.kind, name).offset + 8 * place, 64)


class View:
    """What was seen of an array, in memory."""

    def __init__(self, address: Any) -> None:
        self.at = address

    def clear(self) -> None:
        """Note that nothing was seen yet."""
        for place in (_BUF, _OBJ, _CODE, _AXES):
            store_integer(self.at + place, 0)

    place = property(lambda self: word(self.at + _BUF, 64))  # its address; 0 where there is no array
    ndim = property(lambda self: word(self.at + _AXES, 64))
    shape = property(lambda self: word(self.at + _SHAPE, 64))  # the address of its lengths
    code = property(lambda self: word(self.at + _CODE, 64))
    low = property(lambda self: word(self.at + _LOW, 64))  # where its memory begins
    high = property(lambda self: word(self.at + _HIGH, 64))  # and ends
    in_order = property(lambda self: word(self.at + _IN_ORDER, 64) != 0)  # whether that is C order

    @property
    def itemsize(self) -> Any:
        """Of its elements."""
        return where(self.code == FLOAT64.code, 8, where(self.code == FLOAT32.code, 4, 2))

    def length(self, axis: Any) -> Any:
        """Along one axis."""
        return word(self.shape + axis * 8, 64)

    def stride(self, axis: Any) -> Any:
        """Along one axis, in bytes."""
        return word(word(self.at + _BUFFER_STRIDES, 64) + axis * 8, 64) * word(self.at + _UNIT, 64)

    def measure(self) -> None:
        """Note where its memory begins and ends, and whether it is in C order."""
        low, high, step, in_order = cell(self.place), cell(self.place + self.itemsize), cell(self.itemsize), cell(1)
        for i in loop(1, self.ndim + 1, 1):
            length, stride = self.length(self.ndim - i), self.stride(self.ndim - i)
            reach = (length - 1) * stride
            low[...], high[...] = low + smaller(reach, 0), high + larger(reach, 0)
            in_order[...] = where((length == 1) | (stride == step), in_order, 0)
            step[...] = step * length
        for place, value in ((_LOW, low), (_HIGH, high), (_IN_ORDER, in_order)):
            store_integer(self.at + place, value)

    def release(self, record: Fields) -> None:
        """Give back what NumPy has lent."""
        for _ in when(word(self.at + _OBJ, 64) != 0):
            call(record.PyBuffer_Release, self.at)


def is_of(record: Fields, thing: Any, kind: Any) -> Any:
    """Whether a thing is of a type, and of none that is derived from it."""
    found = call(record.PyObject_Type, thing)
    call(record.Py_DecRef, found)
    return found == kind


def look_at_array(record: Fields, view: View, array: Any, require: Require, writable: Any = False) -> None:
    """See an ndarray, or a map of a file, of a dtype that there are kernels for."""
    require(is_of(record, array, record.ndarray) | is_of(record, array, record.memmap))
    access, code = _STRIDED + where(writable, _WRITABLE, 0), cell(_UNKNOWN)
    for is_nameless in cases(fails(record.PyObject_GetBuffer, array, view.at, access + _FORMATTED)):
        if not is_nameless:
            letter = word(word(view.at + _FORMAT, 64), 16)  # and the 0 behind it
            for name, number in _FORMATS.items():
                code[...] = where(letter == ord(name), number, code)
            continue
        # The buffer protocol has no letter for bfloat16, so that is asked as Python does. Or the array is unfit.
        call(record.PyErr_Clear)
        store_integer(view.at + _OBJ, 0)
        require(record.bfloat16 != 0)
        dtype = call(record.PyObject_GetAttr, array, record.dtype)
        call(record.Py_DecRef, dtype)
        require(dtype == record.bfloat16)
        for _ in when(fails(record.PyObject_GetBuffer, array, view.at, access)):
            call(record.PyErr_Clear)
            store_integer(view.at + _OBJ, 0)
            require(False)
        code[...] = BFLOAT16.code
    store_integer(view.at + _CODE, code)
    store_integer(view.at + _AXES, word(view.at + _NDIM, 32))
    store_integer(view.at + _UNIT, 1)
    require(code >= 0)
    view.measure()


def look_at_tensor(record: Fields, view: View, tensor: Any, require: Require, writable: Any = False) -> None:
    """See a tensor of one of torch's own types on the CPU; its memory is not lent, but the caller's."""
    kind = call(record.PyObject_Type, tensor)
    call(record.Py_DecRef, kind)
    require((kind == record.Tensor) | (kind == record.Parameter))
    told = buffer(_DL_NBYTES)
    for _ in when(fails(record.look_at_tensor, tensor, told)):
        call(record.PyErr_Clear)
        require(False)
    require(word(told + _DEVICE, 32) == _CPU)
    code, dtype, ndim = cell(_UNKNOWN), word(told + _DTYPE, 32), word(told + _DL_NDIM, 32)
    for name, number in _DTYPES.items():
        code[...] = where(dtype == name | _ONE_LANE, number, code)
    require(code >= 0)
    place, shape = word(told + _DATA, 64) + word(told + _OFFSET, 64), word(told + _DL_SHAPE, 64)
    require(place >= LOW_ADDRESS)  # below, there may be no memory: the slow path finds out
    strides = word(told + _STRIDES, 64)
    require((strides != 0) | (ndim == 0))
    store_integer(view.at + _BUF, place)
    store_integer(view.at + _SHAPE, shape)
    store_integer(view.at + _BUFFER_STRIDES, strides)
    store_integer(view.at + _CODE, code)
    store_integer(view.at + _AXES, ndim)
    store_integer(view.at + _UNIT, view.itemsize)
    view.measure()
