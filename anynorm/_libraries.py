"""Which library an array belongs to, and what anynorm has to know of that library.

Nothing here imports an array library first: one that was never imported has made no arrays, so sys.modules tells.
"""

from __future__ import annotations

import importlib
import operator
import sys
import weakref
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy

from anynorm._definition.norms import Precision
from anynorm._pytrees import register
from anynorm._wording import holds_numbers

REAL_DTYPES = ("float16", "bfloat16", "float32", "float64")


class _Entry(NamedTuple):
    """How the arrays of a library are told apart, and what the library can do."""

    module: str
    array: str  # the class of its arrays, in that module
    namespace: str  # what speaks the standard for it
    writable: bool = False  # arrays can be written in place: `out=` works
    devices: bool = False  # arrays live on devices that a caller can mix up
    refuses_to_fill: bool = False  # centring or a bias would make every stored zero nonzero
    block: str | None = None  # where an array that is made of another library's shows one of those


class Library:
    """One array library, as far as anynorm deals with it."""

    # No dataclass: making one takes longer than all else that importing this module does.
    def __init__(self, name: str, namespace: Any, entry: _Entry) -> None:
        self.name = name
        self.namespace = namespace
        self.writable = entry.writable
        self.devices = entry.devices
        self.refuses_to_fill = entry.refuses_to_fill
        self.listed = bool(entry.array)  # whether the type of an array tells that it is of this library
        self.block = entry.block
        self.takes_others = entry.block is not None or name == "jax"  # parameters may be of another library
        self.dense = namespace.strided if name == "torch" else None  # the layout that arrays must have
        self._precisions: dict[Any, Precision] = {}

    def precision(self, x: Any) -> Precision:
        """Return what the statistics and the result of an array are computed in."""
        # JAX can be switched to float64 and back at any time, so there the answer is not kept.
        key = (x.dtype, str(x.device)) if self.devices else x.dtype
        found = self._precisions.get(key)
        if found is None:
            found = self._find_precision(x)
            if self.name != "jax":
                self._precisions[key] = found
        return found

    def _find_precision(self, x: Any) -> Precision:
        name, xp = dtype_name(x.dtype), self.namespace
        if name == "float64":
            return Precision(xp.float64, 53, constant=self._constant())
        # XLA takes several times as long for float64, which few devices have.
        if self.name == "jax" or not self._has_float64(x):
            return Precision(xp.float32, 24, name != "float32", self._constant())
        return Precision(xp.float64)

    def _constant(self) -> Callable[[Any], Any]:
        """What has automatic differentiation take an array for a constant."""
        if self.name == "jax":
            constant: Callable[[Any], Any] = sys.modules["jax"].lax.stop_gradient
            return constant
        return operator.methodcaller("detach") if self.name == "torch" else Precision._field_defaults["constant"]

    def _has_float64(self, x: Any) -> bool:
        if self.name == "torch":  # the namespace reports the dtypes of torch, not those of the device
            return bool(x.device.type != "mps")
        info = self.namespace.__array_namespace_info__()
        device = x.device if self.devices else None
        return "float64" in info.dtypes(device=device, kind="real floating")


_ENTRIES = (
    _Entry("numpy", "ndarray", "numpy", writable=True),
    _Entry("torch", "Tensor", "array_api_compat.torch", writable=True, devices=True),
    _Entry("cupy", "ndarray", "array_api_compat.cupy", writable=True, devices=True),
    _Entry("jax", "Array", "jax.numpy"),
    _Entry("dask.array", "Array", "array_api_compat.dask.array", block="_meta"),
    _Entry("array_api_strict._array_object", "Array", "array_api_strict", writable=True, devices=True),
    _Entry("sparse", "SparseArray", "sparse", refuses_to_fill=True),
    _Entry("ndonnx", "Array", "ndonnx"),
)

_by_type: dict[type, Library] = {}
_by_name: dict[str, Library] = {}
# Those that are not listed, by the identity of the namespace, which lives as long as its library.
_others: weakref.WeakValueDictionary[int, Library] = weakref.WeakValueDictionary()


def library_of(x: Any) -> Library:
    """Return the library of an array; TypeError for anything else."""
    kind = type(x)
    found = _by_type.get(kind)
    if found is None:
        found = _find(x)
        if found.listed:  # any other array is asked each time, for those of one type may be of several libraries
            _by_type[kind] = found
    return found


def library_of_blocks(x: Any) -> Library:
    """Return the library of the arrays that a lazy one is made of, or else its own; TypeError for anything else."""
    library = library_of(x)
    return library if library.block is None else library_of(getattr(x, library.block))


def library_named(namespace: Any) -> Library:
    """Return the library that a namespace such as ``torch`` or ``jax.numpy`` belongs to."""
    name = getattr(namespace, "__name__", None)
    if not isinstance(name, str):
        raise TypeError("an array namespace has a name")
    is_itself = sys.modules.get(name) is namespace  # and nothing else that has the name
    name = name.removeprefix("array_api_compat.")
    for entry in _ENTRIES:
        if is_itself and name in (entry.module, entry.namespace.removeprefix("array_api_compat.")):
            return _make(entry)
    if not hasattr(namespace, "__array_namespace_info__"):
        raise TypeError(f"{name} is no array namespace")
    found = _others.get(id(namespace))
    if found is None:
        # Kernels know a listed library by its name.
        is_taken = any(name == entry.module.partition(".")[0] for entry in _ENTRIES)
        called = f"another {name}" if is_taken else name
        found = _others[id(namespace)] = Library(called, namespace, _Entry(name, "", name))
    return found


def dtype_name(dtype: Any) -> str:
    """The name of a dtype in the words of the standard: 'float32'."""
    name = getattr(dtype, "name", None)
    return name if isinstance(name, str) else str(dtype).rpartition(".")[2].lower()


def _find(x: Any) -> Library:
    kind = type(x)
    for entry in _ENTRIES:
        array = getattr(sys.modules.get(entry.module), entry.array, None)
        if array is None or not isinstance(x, array):
            continue
        if entry.module == "numpy" and kind not in (numpy.ndarray, numpy.memmap):
            raise TypeError("a subclass of numpy.ndarray may change what arithmetic means")
        if entry.module == "torch" and kind.__name__ == "MaskedTensor":
            raise TypeError("what a masked element counts for is the caller's to say")
        return _make(entry)
    if hasattr(x, "__array_namespace__") and not issubclass(kind, numpy.generic) and not holds_numbers(x):
        library = library_named(x.__array_namespace__())
        if not library.listed:  # else it is no array of that library, whose kernels could not read it
            return library
    raise TypeError(f"no array library is known for {kind.__qualname__}")


def _make(entry: _Entry) -> Library:
    if entry.module == "torch":  # a statement, because torch.compile follows that and not import_module
        import array_api_compat.torch as namespace
    else:
        namespace = importlib.import_module(entry.namespace)
    return _kept(Library(entry.module.partition(".")[0], namespace, entry))


def _kept(library: Library) -> Library:
    """One Library for each namespace that is listed, so that two arrays of one library compare by identity."""
    if library.name == "jax":  # in no other case, for torch.compile cannot trace it
        register()
    return _by_name.setdefault(library.name, library)
