"""Parameters of a norm: made in any library, or of the values of a state, which may be of another."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Mapping
from numbers import Real
from typing import Any, NamedTuple

import numpy

from anynorm._described import described
from anynorm._libraries import REAL_DTYPES, Library, UnfitError, dtype_name, library_named, library_of
from anynorm._numbers import check_lengths
from anynorm._pytrees import register
from anynorm._wording import describe, module_of, not_a_real_dtype, not_an_array, sentence

Array = Any


# What other libraries call a parameter: Keras (gamma, beta), Flax (scale), Haiku (scale, offset), x-transformers (g).
_OTHER_NAMES = {
    "weight": ("gamma", "scale", "g"),
    "bias": ("beta", "offset"),
    "scale": ("g", "gamma", "weight"),
}


@described
class IncompatibleKeys(NamedTuple):
    """The names that a state lacks, and those in it that were not taken.

    Attributes
    ----------
    missing_keys : list of str
        The parameters that the state lacks.
    unexpected_keys : list of str
        The keys of the state that belong to no parameter.
    """

    missing_keys: list[str]
    unexpected_keys: list[str]

    def __repr__(self) -> str:
        if not self.missing_keys and not self.unexpected_keys:
            return "<All keys matched successfully>"
        return f"IncompatibleKeys(missing_keys={self.missing_keys}, unexpected_keys={self.unexpected_keys})"


def matched(names: Iterable[str], state: Mapping[str, Array], prefix: str) -> tuple[dict[str, str], IncompatibleKeys]:
    """For each parameter the key of its value in a state, whatever name it has there; and what is left over."""
    keys = {key[len(prefix) :]: key for key in state if isinstance(key, str) and key.startswith(prefix)}
    unexpected = [] if prefix else [str(key) for key in state if not isinstance(key, str)]
    found = {}
    for name in names:
        there = [keys.pop(one) for one in (name, *_OTHER_NAMES[name]) if one in keys]
        if len(there) > 1:
            must = f"hold {prefix}{name} once, under whatever name"
            raise ValueError(sentence("state", must, " and ".join(there), "leave out all but one"))
        if there:
            found[name] = there[0]
    return found, IncompatibleKeys(
        [prefix + name for name in names if name not in found], unexpected + [*keys.values()]
    )


def prefixes(names: Iterable[str], state: Mapping[str, Array]) -> list[str]:
    """The prefixes by which all parameters of those names are in a state."""
    split = [key.rpartition("/" if "/" in key else ".") for key in state if isinstance(key, str)]
    several = [{before + dot for before, dot, last in split if last in (one, *_OTHER_NAMES[one])} for one in names]
    return sorted(set.intersection(*several)) if several else []


def library_and_dtype(xp: Any, dtype: Any) -> tuple[Library, Any]:
    """The library of a namespace, NumPy without one, and the dtype of a norm's parameters there."""
    register()
    try:
        library = library_named(numpy if xp is None else xp)
    except ImportError:
        raise
    except UnfitError as unfit:
        raise TypeError(sentence("xp", unfit.must, describe(xp), unfit.do)) from None
    except Exception:  # reading its attributes may raise anything
        do = "pass the module itself, such as numpy or torch"
        raise TypeError(sentence("xp", "be an array namespace", describe(xp), do)) from None
    if dtype is None:
        return library, library.namespace.float32
    with contextlib.suppress(Exception):  # libraries that share NumPy's dtypes take classes and names for them
        dtype = numpy.dtype(dtype)
    name = None if isinstance(dtype, str) else dtype_name(dtype)
    if name not in REAL_DTYPES:
        must = f"be a real floating dtype ({', '.join(REAL_DTYPES)})"
        got = str(dtype) if hasattr(dtype, "itemsize") else describe(dtype)
        do = f"pass {module_of(library.name)}.float32 or leave it out"
        if isinstance(dtype, str) and dtype == "bfloat16":  # which libraries with NumPy's dtypes do not know by name
            do = f"pass {'torch' if library.name == 'torch' else 'ml_dtypes'}.bfloat16"
        raise TypeError(sentence("dtype", must, got, do))
    return library, dtype


def check_weight_shape(given: Any, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape of weight and bias, which ends with that of the normalized axes."""
    lengths = shape if given is None else check_lengths("weight_shape", given)
    if lengths[-len(shape) :] != shape:
        must = f"end with the lengths of the normalized axes, {shape}"
        do = f"pass (heads, {', '.join(map(str, shape))}) for a weight for each head"
        raise ValueError(sentence("weight_shape", must, str(lengths), do))
    return lengths


def full(library: Library, shape: tuple[int, ...], value: float, dtype: Any, device: Any) -> Array:
    """A parameter; what a library raises for a wrong dtype or device becomes an error of anynorm."""
    make, module = library.namespace.full, module_of(library.name)
    try:
        return make(shape, value, dtype=dtype, device=device)
    except Exception:
        if not _runs(make, (), value, dtype=dtype):
            of_numpy = isinstance(dtype, numpy.dtype)  # also one that was given by name
            do = f"pass {module}.{dtype.name if of_numpy else 'float32'} or leave it out"
            got = f"NumPy's {dtype.name}" if of_numpy else str(dtype)
            raise TypeError(sentence("dtype", f"be a dtype of {module}", got, do)) from None
        if not _runs(make, (), value, dtype=dtype, device=device):
            do = "leave it out for the default"
            raise ValueError(sentence("device", f"be a device that {module} has", describe(device), do)) from None
        raise ValueError(sentence("shape", "fit into memory", describe(shape), "pass shorter lengths")) from None


def _runs(function: Callable[..., Any], *given: Any, **options: Any) -> bool:
    try:
        function(*given, **options)
    except Exception:
        return False
    return True


def converted(name: str, value: Array, like: Array) -> Array:
    """A loaded value as an array like the present parameter, with a graph of its own."""
    try:
        dtype, given = dtype_name(value.dtype), tuple(value.shape)
        is_array = not isinstance(value.dtype, str) and not isinstance(value, numpy.ma.MaskedArray)
    except Exception:  # reading its attributes may raise anything
        is_array = False
    if not is_array:
        raise TypeError(not_an_array(name, value))
    if dtype not in REAL_DTYPES:
        raise TypeError(not_a_real_dtype(name, value))
    shape = tuple(getattr(like, "shape", ()))
    if shape == () and given == (1,):  # as many keep the scale of ScaleNorm
        value, given = value[0], ()
    if given != shape:
        raise ValueError(sentence(name, f"have shape {shape}", str(given), "load the state of a norm of this shape"))
    if hasattr(value, "detach"):
        value = value.detach()
    if isinstance(like, (Real, numpy.generic)):  # what arithmetic makes of NumPy's 0-d arrays, or a caller's number
        number = float(_as_numpy(name, value))
        return type(like)(number) if isinstance(like, numpy.generic) else number
    library, device = library_of(like), getattr(like, "device", None)
    xp = library.namespace
    if not _is_of(library, value):
        # In a dtype that every library knows; to bfloat16 comes last.
        dtype = dtype_name(like.dtype)
        host = _as_numpy(name, value).astype("float32" if dtype == "bfloat16" else dtype)
        value = xp.asarray(host, device=device)
    elif getattr(value, "device", None) != device:
        from array_api_compat import to_device  # takes half as long to import as all of anynorm

        if xp.finfo(value.dtype).bits > xp.finfo(like.dtype).bits:  # first, for not every device has the wider dtype
            value = xp.astype(value, like.dtype)
        value = to_device(value, device)
    return xp.astype(value, like.dtype, copy=True)


def _is_of(library: Library, value: Array) -> bool:
    """Whether a value, which need not be an array that norms take, is one of this library."""
    try:
        return library_of(value) is library
    except Exception:  # reading its attributes may raise anything
        return False


def _as_numpy(name: str, value: Array) -> Any:
    """Read an array of any library on the host; bfloat16 of torch, which NumPy lacks, by way of float32."""
    if hasattr(value, "detach"):
        value = value.cpu()
        value = value.float() if dtype_name(value.dtype) == "bfloat16" else value
    try:
        host = numpy.asarray(value)
    except Exception:
        host = numpy.asarray(None)
    if host.dtype.kind == "O":
        raise TypeError(not_an_array(name, value))
    return host
