"""What is said of a wrong argument: what must hold, what came, and what to do.

Nothing here runs unless an argument is wrong.
"""

from __future__ import annotations

import types
from typing import Any

import numpy

_MOST_CHARACTERS = 120
_REAL_DTYPES = "float16, bfloat16, float32 and float64"
_PLAIN = (int, float, complex, str, bytes, bool, type(None))
# By the package of a class, and by its name.
_LIBRARIES = {
    "numpy": "NumPy array",
    "torch": "torch tensor",
    "cupy": "CuPy array",
    "jax": "JAX array",
    "dask": "Dask array",
    "array_api_strict": "array_api_strict array",
    "sparse": "sparse array",
    "ndonnx": "ndonnx array",
}
_CLASSES = ("ndarray", "memmap", "Tensor", "Parameter", "FakeTensor", "ArrayImpl", "Array", "COO", "GCXS")
_MODULES = {"jax": "jax.numpy", "dask": "dask.array"}
_HAVE_ASTYPE = ("numpy", "cupy", "jax", "dask", "sparse")

# What holds numbers and is no array, and what makes one of it.
_CONVERSIONS = {
    "pandas": "{}.to_numpy()",
    "polars": "{}.to_numpy()",
    "pyarrow": "{}.to_numpy()",
    "xarray": "{}.data",
    "scipy": "{}.toarray()",
    "flax": "{}[...]",
}
# What makes NumPy arrays of those of other libraries.
_TO_NUMPY = {"sparse": ".todense()", "dask": ".compute()", "cupy": ".get()"}
_ANY_LIBRARY = "an array of NumPy, CuPy, PyTorch, JAX, Dask or another library with __array_namespace__"


def sentence(argument: str, must: str, got: str, do: str) -> str:
    """One sentence about one argument; what came is cut where it is long."""
    got = "".join(character if character.isprintable() else "?" for character in got[: 2 * _MOST_CHARACTERS])
    if len(got) > _MOST_CHARACTERS:
        got = got[: _MOST_CHARACTERS - 3] + "..."
    return f"{argument} must {must}, got {got}; {do}"


def describe(value: Any) -> str:
    """A value in a few words: 'the int 3', 'a list', 'a float64 NumPy array of shape (3,)', 'a pandas DataFrame'."""
    try:
        return _described(value)
    except Exception:  # reading its attributes may raise anything
        return with_article(type(value).__name__)


def _described(value: Any) -> str:
    kind = type(value)
    if value is None or kind is bool:
        return str(value)
    if kind in _PLAIN or (kind in (tuple, list) and all(type(one) in _PLAIN for one in value[:8])):
        return f"the {kind.__name__} {_written(value)}"
    if isinstance(value, (type, types.ModuleType)):
        return f"the {'class' if isinstance(value, type) else 'module'} {value.__name__}"
    if is_traced(value):
        return "a traced JAX value"
    root = package_of(value)
    if root in _LIBRARIES and kind.__name__ in _CLASSES:
        return f"{with_article(_name(value.dtype))} {_LIBRARIES[root]} of shape {tuple(value.shape)}"
    return with_article(kind.__name__ if root in ("builtins", "__main__") else f"{root} {kind.__name__}")


def _written(value: Any) -> str:
    """A number, a string, or a list of such, of long ones the beginning; torch.compile cannot trace reprlib."""
    if isinstance(value, (str, bytes)):
        return repr(value[:_MOST_CHARACTERS])
    if not isinstance(value, (tuple, list)):
        return repr(value)
    written = [_written(one) for one in value[:6]] + ["..."] * (len(value) > 6)
    if isinstance(value, list):
        return f"[{', '.join(written)}]"
    return f"({', '.join(written)}{',' * (len(written) == 1)})"


def with_article(noun: str) -> str:
    """'a list', 'an int'."""
    return f"{'an' if noun[:1] in 'aeiox' else 'a'} {noun}"


def arrays_of_library(name: str) -> str:
    """What the arrays of a library are called."""
    return _LIBRARIES.get(name, f"{name} array")


def module_of(library: str) -> str:
    """The name of a library's namespace, as a caller would have imported it."""
    return _MODULES.get(library, library)


def holds_numbers(value: Any) -> bool:
    """Whether a value is one of those that hold numbers and are no arrays, whatever they say of themselves."""
    return package_of(value) in _CONVERSIONS


def package_of(value: Any) -> str:
    """The package that the class of a value is of."""
    if type(value) in (*_PLAIN, list, tuple, dict, set):  # whose module torch.compile cannot ask for
        return "builtins"
    root = str(type(value).__module__).partition(".")[0]
    return "jax" if root == "jaxlib" else root


def _name(dtype: Any) -> str:
    return str(dtype).rpartition(".")[2]


def is_traced(value: Any) -> bool:
    """Whether JAX traces a value, which is not known then."""
    return package_of(value) == "jax" and "Tracer" in type(value).__name__


def must_be_static(argument: str) -> str:
    """What to do where an argument is traced that has to be known."""
    return f"make it static, with {argument} in static_argnames of jax.jit or set by functools.partial"


def not_an_array(argument: str, value: Any, library: str | None = None) -> str:
    """Say that a value is no array, or none of x's library where that is given."""
    if library is None:
        must, do = "be an array", f"pass {_as_array(argument, value) or _ANY_LIBRARY}"
    else:
        must = f"be {with_article(arrays_of_library(library))} like x"
        do = f"pass {as_array_of(library, argument, value)}"
        if is_traced(value):  # which nothing makes an array of another library
            do = "make x a JAX array"
    if (package_of(value), type(value).__name__) == ("torch", "Proxy"):
        do = "under torch.fx call the functions and modules of anynorm.torch, which it does not look into"
    return sentence(argument, must, describe(value), do)


def _like_x(argument: str, value: Any, library: str) -> str:
    """The expression that makes an array of x's library of a value."""
    if library not in _LIBRARIES:  # how one is made there is not known
        return with_article(arrays_of_library(library))
    module = module_of(library)
    if argument.startswith("out"):
        return f"{module}.empty_like(x)"
    made = _as_array(argument, value)
    if made is None:
        is_array = hasattr(type(value), "__array__") or hasattr(type(value), "__array_namespace__")
        if not is_array:
            return with_article(arrays_of_library(library))
        made = _of_another(argument, value, library)
        return made if library == "numpy" and made != argument else f"{module}.asarray({made})"
    if isinstance(value, (list, tuple, int, float, numpy.generic)):
        array = f"{module}.asarray({argument}, dtype={f'{module}.float32' if argument == 'x' else 'x.dtype'})"
        is_number = isinstance(value, (int, float, numpy.number)) and argument in ("weight", "bias")
        return f"{array}.reshape((1,) * x.ndim)" if is_number else array  # which broadcasts to x
    return made if library == "numpy" else f"{module}.asarray({made})"


def _of_another(argument: str, value: Any, library: str) -> str:
    """The expression for an array of one library that ``asarray`` of another one takes."""
    root, dtype = package_of(value), getattr(value, "dtype", "")
    if root == "torch":  # also of one that requires a gradient, or is on a GPU
        return f"{argument}{'.float()' if _name(dtype) == 'bfloat16' else ''}.numpy(force=True)"
    if root in _TO_NUMPY:
        return f"{argument}{_TO_NUMPY[root]}"
    if library != "torch":
        return argument
    if _name(dtype) not in ("float16", "float32", "float64"):  # torch knows none of ml_dtypes
        return f"numpy.array({argument}, dtype=numpy.float32)"
    if root != "numpy":  # of an array of JAX torch.asarray makes one axis
        return f"numpy.array({argument})"
    if not value.dtype.isnative:
        return f"{argument}.astype(numpy.{value.dtype.name})"
    return f"{argument}.copy()" if min(value.strides, default=0) < 0 else argument


def as_array_of(library: str, argument: str, value: Any) -> str:
    """What to pass in place of a value where an array of that library is wanted."""
    try:
        return _like_x(argument, value, library)
    except Exception:  # reading its attributes may raise anything
        return with_article(arrays_of_library(library))


def _as_array(argument: str, value: Any) -> str | None:
    """The expression that makes a NumPy array of what is none; None where there is no such."""
    kind, argument, root = type(value), argument.rpartition(" ")[2], package_of(value)
    if issubclass(kind, numpy.ma.MaskedArray):
        return f"{argument}.filled(value)"
    if (root, kind.__name__) == ("torch", "MaskedTensor"):
        return f"{argument}.to_tensor(value)"
    if root in _CONVERSIONS:
        return _CONVERSIONS[root].format(argument)
    if issubclass(kind, numpy.ndarray) and kind not in (numpy.ndarray, numpy.memmap):
        return f"numpy.asarray({argument})"
    if issubclass(kind, (list, tuple, int, float, numpy.generic)):
        return f"numpy.asarray({argument}, dtype=numpy.float32)"
    return None


def not_a_real_dtype(argument: str, value: Any) -> str:
    """Say that an array has a dtype that is not computed with."""
    must = f"have one of the real floating dtypes {_REAL_DTYPES}"
    return sentence(argument, must, describe(value), f"pass {_as_real(argument, value)}")


def _as_real(argument: str, value: Any) -> str:
    """The expression that makes one of the real floating dtypes of another dtype."""
    name, library = _name(value.dtype), package_of(value)
    if name.startswith("complex"):
        return f"{argument}.real or abs({argument})"
    if getattr(value.dtype, "names", None):
        return f"numpy.lib.recfunctions.structured_to_unstructured({argument}), of a module to be imported"
    if library == "numpy" and name == "|V2":
        return f"{argument}.view(ml_dtypes.bfloat16), if that is what was saved"
    wide = "float64" if name in ("float128", "float96", "longdouble") else "float32"
    if library == "torch":
        return f"{argument}.dequantize()" if value.is_quantized else f"{argument}.to(torch.{wide})"
    as_method = library in _HAVE_ASTYPE
    return f"{argument}.astype({module_of(library)}.{wide})" if as_method else f"{argument} converted to {wide}"
