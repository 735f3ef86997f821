"""CuPy in small, on the CPU: NumPy computes, and what CuPy 14 refuses is refused.

An array is never read by the host unless it is asked to (`get`), goes with no array of NumPy's, and is computed with on
the device that is current, or not at all.
"""

import contextlib
import sys
import threading
import types
from unittest import mock

import numpy as np

from anynorm import _arrays
from anynorm._libraries import library

# What NumPy has and CuPy has not; more of it is of no use to norms.
LACKING = {"block", "errstate", "frompyfunc", "geterr", "insert", "longdouble", "memmap", "nditer", "seterr", "spacing"}
_BINARY = ("add", "sub", "mul", "truediv", "floordiv", "mod", "pow", "and", "or", "xor")
_OTHER = ("neg", "pos", "abs", "invert", "lt", "le", "gt", "ge", "eq", "ne")
_OPERATORS = (*_BINARY, *(f"r{name}" for name in _BINARY), *_OTHER)
_ATTRIBUTES = ("shape", "dtype", "ndim", "size", "itemsize", "nbytes", "strides", "flags")
_thread = threading.local()


class Device:
    """Its number; within it, the device is the current one."""

    def __init__(self, device=None):
        self.id = _entered()[-1] if device is None else int(device)

    def __enter__(self):
        _entered().append(self.id)
        return self

    def __exit__(self, *exception):
        _entered().pop()

    def __int__(self):
        return self.id

    def __eq__(self, other):
        return isinstance(other, Device) and self.id == other.id

    def __hash__(self):
        return self.id

    def __repr__(self):
        return f"<CUDA Device {self.id}>"


def _entered():
    _thread.__dict__.setdefault("entered", [0])
    return _thread.entered


class ndarray:  # noqa: N801  # CuPy's name
    """A NumPy array that stands for memory of a device."""

    def __init__(self, shape, dtype=float, *, host=None, device=None):
        self._host = np.empty(shape, dtype) if host is None else host
        self.device = Device() if device is None else device

    @property
    def data(self):
        return types.SimpleNamespace(ptr=self._host.ctypes.data, device=self.device, device_id=self.device.id)

    def get(self):
        return self._host.copy()

    def copy(self, order="C"):
        return _taken(_given(self).copy(order))

    def astype(self, dtype, order="K", casting=None, subok=None, copy=True):
        _refuse(subok=subok, casting=casting)
        if not copy and self.dtype == dtype:
            return self
        return _quietly(np.ndarray.astype, self, dtype, order=order)

    def sum(self, axis=None, dtype=None, out=None, keepdims=False):
        return _quietly(np.sum, self, axis=axis, dtype=dtype, keepdims=keepdims)

    def reshape(self, *shape):
        return _made(self._host.reshape(*shape), self.device)

    def __getitem__(self, index):
        index = index if isinstance(index, tuple) else (index,)
        index = tuple(_given(one) for one in index)
        is_whole = any(one is Ellipsis for one in index)
        return _made(self._host[index if is_whole else (*index, ...)], self.device)  # also of one element a view

    def __setitem__(self, index, value):
        _given(self)[index] = _given(value)

    def __len__(self):
        return len(self._host)

    def __array__(self, *_, **__):
        raise TypeError("Implicit conversion to a NumPy array is not allowed. Please use `.get()`")

    def __float__(self):  # of CuPy it waits for the device, which nothing may while a graph is captured
        raise TypeError("the host waits for the device")

    __bool__ = __int__ = __index__ = __float__
    __array_ufunc__ = None
    __hash__ = None


def _made(host, device=None):
    return ndarray(host.shape, host=host, device=device)


def _attribute(name):
    return property(lambda array: getattr(array._host, name))


def _operator(name):
    of_numpy = getattr(np.ndarray, name)
    return lambda array, *others: _quietly(of_numpy, array, *others)


for _name in _ATTRIBUTES:
    setattr(ndarray, _name, _attribute(_name))
for _name in _OPERATORS:
    setattr(ndarray, f"__{_name}__", _operator(f"__{_name}__"))


def _given(value):
    """What NumPy computes with in place of an argument."""
    if isinstance(value, ndarray):
        if value.device != Device():
            raise ValueError(f"Array device must be same as the current device: {value.device} != {Device()}")
        return value._host
    if isinstance(value, np.ndarray):
        raise TypeError("Unsupported type <class 'numpy.ndarray'>")
    return type(value)(map(_given, value)) if type(value) in (tuple, list) else value


def _taken(result):
    """An array of the current device, also where NumPy returns a number."""
    if isinstance(result, tuple):
        return tuple(map(_taken, result))
    return _made(np.asarray(result)) if isinstance(result, (np.ndarray, np.generic)) else result


def _refuse(**options):
    for name, value in options.items():
        if value is not None:
            raise TypeError(f"{name} is not supported yet")


def _flushed(values):
    """As CuPy's kernels read and write it, which are compiled with -ftz=true: float32 without subnormal numbers."""
    if isinstance(values, (tuple, list)):
        return type(values)(map(_flushed, values))
    if not isinstance(values, (np.ndarray, np.generic)) or values.dtype != np.float32:
        return values
    is_kept = ~(np.abs(values) < np.finfo(np.float32).smallest_normal) | (values == 0)
    return values if is_kept.all() else np.where(is_kept, values, np.copysign(np.float32(0), values))


def _quietly(function, *given, **options):
    with np.errstate(all="ignore"):
        found = function(
            *(_flushed(_given(one)) for one in given), **{name: _flushed(_given(one)) for name, one in options.items()}
        )
        return _taken(_flushed(found))


def _function(of_numpy):
    def function(*given, subok=None, **options):
        _refuse(subok=subok)
        return _quietly(of_numpy, *given, **options)

    return function


def _asarray(values, dtype=None, order=None):
    """Of a list or a NumPy array a copy on the current device."""
    return values if isinstance(values, ndarray) and dtype is None else array(values, dtype, order=order)


def array(values, dtype=None, copy=True, order="K"):
    host = _given(values) if isinstance(values, ndarray) else values
    return _made(np.array(host, dtype, order=order or "K"))


def _modules():
    """CuPy's modules by name."""
    cupy = types.ModuleType("cupy")
    for name in dir(np):
        found = getattr(np, name)
        if name.startswith("_") or name in LACKING or isinstance(found, types.ModuleType):
            continue
        is_kept = isinstance(found, type) or not callable(found) or name in ("finfo", "iinfo", "issubdtype", "isdtype")
        setattr(cupy, name, found if is_kept else _function(found))
    cupy.__version__, cupy.ndarray, cupy.array, cupy.asarray = "14.2.0", ndarray, array, _asarray
    modules = {"cupy": cupy}
    for name in ("linalg", "fft", "cuda", "cuda.device"):
        parent, _, own = f"cupy.{name}".rpartition(".")
        module = modules[f"cupy.{name}"] = types.ModuleType(f"cupy.{name}")
        setattr(modules[parent], own, module)
    for part in (cupy.linalg, cupy.fft):
        of_numpy = getattr(np, part.__name__.rpartition(".")[2])
        for name in of_numpy.__all__:
            setattr(part, name, getattr(of_numpy, name))
    cupy.cuda.Device = cupy.cuda.device.Device = Device
    cupy.cuda.runtime = types.SimpleNamespace(getDevice=lambda: Device().id)
    cupy.cuda.get_current_stream = lambda device_id=-1: types.SimpleNamespace(ptr=0)
    return modules


@contextlib.contextmanager
def installed():
    """Within it, ``import cupy`` brings this one, and anynorm knows its arrays as CuPy's; it is what is returned."""
    ours = ("cupy", "array_api_compat.cupy")
    before = {name: module for name, module in sys.modules.items() if name.startswith(ours)}
    modules = _modules()
    with contextlib.ExitStack() as stack:
        for known in (library._by_name, library._by_type, _arrays._accepted):
            stack.enter_context(mock.patch.dict(known))
        library._by_name.pop("cupy", None)
        for name in before:
            del sys.modules[name]
        sys.modules.update(modules)
        try:
            yield modules["cupy"]
        finally:
            for name in [name for name in sys.modules if name.startswith(ours)]:
                del sys.modules[name]
            sys.modules.update(before)
