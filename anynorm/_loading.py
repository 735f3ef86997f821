"""Values of a state, of any library, as the parameters of a norm."""

from __future__ import annotations

from numbers import Real
from typing import Any

import numpy

from anynorm._libraries import REAL_DTYPES, Library, dtype_name, library_of
from anynorm._wording import not_a_real_dtype, not_an_array, sentence

Array = Any


def converted(name: str, value: Array, like: Array) -> Array:
    """A loaded value as an array like the present parameter, with a graph of its own."""
    try:
        dtype, given = dtype_name(value.dtype), tuple(value.shape)
        is_array = not isinstance(value.dtype, str) and not isinstance(value, numpy.ma.MaskedArray)
    except Exception:  # whatever its attributes do when they are looked at
        is_array = False
    if not is_array:
        raise TypeError(not_an_array(name, value))
    if dtype not in REAL_DTYPES:
        raise TypeError(not_a_real_dtype(name, value))
    shape = tuple(getattr(like, "shape", ()))
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
    except Exception:  # whatever its attributes do when they are looked at
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
