"""Which library an array belongs to, and what its arrays are computed in.

Nothing here imports an array library first: one that was never imported has made no arrays, so sys.modules has the
answer.
"""

from __future__ import annotations

import importlib
import sys
import weakref
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy

from anynorm._definition.norms import Precision, as_it_is
from anynorm._libraries.cupy_arrays import CuPy
from anynorm._libraries.memory import Memory
from anynorm._libraries.numpy_arrays import NumPy
from anynorm._libraries.torch_tensors import Torch
from anynorm._pytrees import register
from anynorm._torch.pytrees import register_with_torch
from anynorm._wording import arrays_of_library, holds_numbers, module_of, package_of, with_article

REAL_DTYPES = ("float16", "bfloat16", "float32", "float64")

# What a namespace must have: nothing else is called on arrays of a library that is not listed. Numbers may stand in
# place of arrays in `where`, `maximum` and `minimum`, as they may since this revision of the standard.
NEEDED = (
    "__array_namespace_info__", "abs", "asarray", "astype", "finfo", "float32", "full", "full_like", "max", "maximum",
    "min", "minimum", "ones_like", "reshape", "sqrt", "sum", "where", "zeros_like",
)  # fmt: skip
REVISION = "2024.12"
# What an array of another type has that computes with NumPy's functions: NEP 13 and 18.
_DUCKS_OF_NUMPY = ("__array_ufunc__", "__array_function__")


class UnfitError(TypeError):
    """Why the definition cannot compute with an array or in a namespace: what must hold, and what to do."""

    def __init__(self, must: str, do: str) -> None:
        super().__init__(f"it must {must}; {do}")
        self.must, self.do = must, do


class _Entry(NamedTuple):
    """How the arrays of a library are told apart, and what the library can do."""

    module: str
    array: str  # the class of its arrays, in that module
    namespace: str  # the namespace that follows the standard
    writable: bool = False  # arrays can be written in place: `out=` works
    devices: bool = False  # arrays live on devices that a caller can mix up
    refuses_to_fill: bool = False  # centring or a bias would make every stored zero nonzero
    block: str | None = None  # where an array that is made of another library's shows one of those
    memory: type[Memory] = Memory  # what it says of the memory of its arrays
    is_revisable: bool = False  # the revision of the standard that it follows can be set at any time


class Library:
    """One array library, as far as anynorm deals with it."""

    # No dataclass: making one takes longer than all else that importing this module does.
    def __init__(self, name: str, namespace: Any, entry: _Entry) -> None:
        self.name = name
        self.namespace = namespace
        self.memory = entry.memory
        self.writable = entry.writable
        self.devices = entry.devices
        self.refuses_to_fill = entry.refuses_to_fill
        self.is_listed = bool(entry.array)
        self.is_known_by_type = bool(entry.array) and not entry.is_revisable  # and by its dtype, from then on
        self.block = entry.block
        self.takes_others = entry.block is not None or name in ("jax", "ndonnx")  # parameters may be NumPy's
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
            return Precision(xp.float64, 53, stated=self.name == "jax", constant=self.constant())
        # XLA takes several times as long for float64, which few devices have.
        if self.name == "jax" or not self.has_float64(x):
            reduced = sys.modules["jax"].lax.reduce_precision if self.name == "jax" else None
            return Precision(
                xp.float32, 24, name != "float32", self.name == "jax", self.constant(), narrow=name, reduced=reduced
            )
        return Precision(xp.float64, narrow=name)

    def constant(self) -> Callable[[Any], Any]:
        """The function that makes an array a constant for automatic differentiation."""
        if self.name == "jax":
            constant: Callable[[Any], Any] = sys.modules["jax"].lax.stop_gradient
            return constant
        return _detached if self.name == "torch" else as_it_is

    def has_float64(self, x: Any) -> bool:
        """Whether arrays can be float64 where this one is."""
        if self.name == "torch":  # the namespace reports the dtypes of torch, not those of the device
            return bool(x.device.type != "mps")
        info = self.namespace.__array_namespace_info__()
        device = x.device if self.devices else None
        return "float64" in info.dtypes(device=device, kind="real floating")


_ENTRIES = (
    _Entry("numpy", "ndarray", "numpy", writable=True, memory=NumPy),
    _Entry("torch", "Tensor", "array_api_compat.torch", writable=True, devices=True, memory=Torch),
    _Entry("cupy", "ndarray", "array_api_compat.cupy", writable=True, devices=True, memory=CuPy),
    _Entry("jax", "Array", "jax.numpy"),
    _Entry("dask.array", "Array", "array_api_compat.dask.array", block="_meta"),
    _Entry(
        "array_api_strict._array_object", "Array", "array_api_strict", writable=True, devices=True, is_revisable=True
    ),
    _Entry("sparse", "SparseArray", "sparse", refuses_to_fill=True),
    _Entry("ndonnx", "Array", "ndonnx"),
)


def _detached(tensor: Any) -> Any:
    return tensor.detach()


_by_type: dict[type, Library] = {}
_by_name: dict[str, Library] = {}
# Those that are not listed, by name and the identity of the namespace, which lives as long as its library.
_others: weakref.WeakValueDictionary[tuple[str, int], Library] = weakref.WeakValueDictionary()


def library_of(x: Any) -> Library:
    """Return the library of an array; TypeError for anything else."""
    kind = type(x)
    found = _by_type.get(kind)
    if found is None:
        found = _find(x)
        if found.is_known_by_type:  # any other is asked each time, for arrays of one type may be of several libraries
            _by_type[kind] = found
    return found


def library_of_blocks(x: Any) -> Library:
    """Return the library of the arrays that a lazy one is made of, or else its own; TypeError for anything else."""
    library = library_of(x)
    return library if library.block is None else library_of(getattr(x, library.block))


def library_named(namespace: Any) -> Library:
    """Return the library that a namespace such as ``torch`` or ``jax.numpy`` belongs to."""
    entry = _entry_of(namespace)
    if entry is not None:
        return _make(entry)
    name = namespace.__name__.removeprefix("array_api_compat.")
    missing = [one for one in NEEDED if not hasattr(namespace, one)]
    if len(missing) > len(NEEDED) // 2:
        raise TypeError(f"{name} is no array namespace")
    if missing:
        must = f"come from a namespace that has {', '.join(missing)}, which {name} lacks"
        raise UnfitError(must, "add it there, or pass an array of another library")
    _require_revision(namespace, "use a newer release")
    return _other(name, namespace)


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
            raise TypeError("only the caller knows what a masked element counts for")
        return _make(entry)
    if not hasattr(x, "__array_namespace__") or issubclass(kind, numpy.generic) or holds_numbers(x):
        raise TypeError(f"no array library is known for {kind.__qualname__}")
    namespace = x.__array_namespace__()
    like = _entry_of(namespace)
    return library_named(namespace) if like is None else _lookalike(x, like)


def _lookalike(x: Any, entry: _Entry) -> Library:
    """The library of an array that computes in the namespace of a listed one, and is none of its arrays."""
    library, kind = _make(entry), type(x)
    own = with_article(arrays_of_library(library.name))
    if library.name != "numpy":  # as those of torch, which want a tensor beside a number
        raise UnfitError(f"be {own}, for the functions of {module_of(library.name)} take no other", f"pass {own}")
    missing = [method for method in _DUCKS_OF_NUMPY if getattr(kind, method, None) is None]
    if missing:
        must = f"have {' and '.join(missing)}, by which the functions of numpy leave the work to it"
        raise UnfitError(must, f"add what it lacks, or pass {own}")
    package = package_of(x)
    return _other(kind.__name__ if package in ("builtins", "__main__") else package, library.namespace)


def _other(name: str, namespace: Any) -> Library:
    """The library of that name, which is not listed; kernels know one that is by its name."""
    found = _others.get((name, id(namespace)))
    if found is None:
        is_taken = any(name == entry.module.partition(".")[0] for entry in _ENTRIES)
        called = f"another {name}" if is_taken else name
        found = _others[name, id(namespace)] = Library(called, namespace, _Entry(name, "", name))
    return found


def _entry_of(namespace: Any) -> _Entry | None:
    """The entry of the library that a namespace belongs to; None where that is not listed."""
    name = getattr(namespace, "__name__", None)
    if not isinstance(name, str):
        raise TypeError("an array namespace has a name")
    if sys.modules.get(name) is namespace:  # and nothing else that has the name
        name = name.removeprefix("array_api_compat.")
        for entry in _ENTRIES:
            if name in (entry.module, entry.namespace.removeprefix("array_api_compat.")):
                return entry
    return None


def _require_revision(namespace: Any, do: str) -> None:
    revision = getattr(namespace, "__array_api_version__", None)
    if isinstance(revision, str) and revision < REVISION:
        must = f"come from a namespace of revision {REVISION} of the array API standard or newer, not {revision}"
        raise UnfitError(must, do)


def _make(entry: _Entry) -> Library:
    if entry.module == "torch":  # a statement, because torch.compile follows that and not import_module
        import array_api_compat.torch as namespace
        import torch

        if not torch.compiler.is_compiling():
            register_with_torch(torch)
    else:
        namespace = importlib.import_module(entry.namespace)
    if entry.is_revisable:
        _require_revision(namespace, f'call {namespace.__name__}.set_array_api_strict_flags(api_version="{REVISION}")')
    return _kept(Library(entry.module.partition(".")[0], namespace, entry))


def _kept(library: Library) -> Library:
    """One Library for each namespace that is listed, so that two arrays of one library compare by identity."""
    if library.name == "jax":  # in no other case, for torch.compile cannot trace it
        register()
    return _by_name.setdefault(library.name, library)
