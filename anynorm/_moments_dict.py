"""Moments as a dict of numbers and lists: what `Moments.from_dict` is given is checked here, and made arrays."""

from __future__ import annotations

import importlib
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy

from anynorm._numbers import check_length
from anynorm._wording import describe, sentence

# For which array-api-compat speaks the standard.
_WRAPPED = ("cupy", "torch", "dask.array")

_DO = "pass what Moments.to_dict returned"


def read(values: Any, parts: Sequence[str], xp: Any, device: Any) -> tuple[int, list[Any], Any]:
    """Return the count, the arrays of those names and their namespace."""
    if not isinstance(values, Mapping):
        raise TypeError(_wrong("values", "be a dict", values))
    if not (isinstance(getattr(xp, "__name__", None), str) and hasattr(xp, "asarray")):
        do = "pass the module itself, such as numpy or torch"
        raise TypeError(sentence("xp", "be an array namespace", describe(xp), do))
    names = ("count", "shape", "dtype", *parts)
    missing = [name for name in names if name not in values]
    if missing:
        raise ValueError(sentence("values", f"hold {', '.join(names)}", f"none named {missing[0]}", _DO))
    count, dtype = check_length("count", values["count"], least=0), values["dtype"]
    if dtype not in ("float32", "float64"):
        raise ValueError(_wrong("dtype", "be float32 or float64", dtype))
    if not isinstance(values["shape"], (list, tuple)):
        raise TypeError(_wrong("shape", "be a list of lengths", values["shape"]))
    shape = tuple([check_length("shape", length, "a list of ints", least=0) for length in values["shape"]])
    for name in ("mean", "squares"):
        if values[name] is None:
            raise ValueError(_wrong(name, "be a list of numbers", None))
    if xp.__name__ in _WRAPPED:
        xp = importlib.import_module(f"array_api_compat.{xp.__name__}")
    place = {} if device is None else _place(xp, device)
    return count, [_array_of(name, values[name], shape, dtype, xp, place) for name in parts], xp


def _wrong(entry: str, must: str, value: Any) -> str:
    return sentence(entry, must, describe(value), _DO)


def _place(xp: Any, device: Any) -> dict[str, Any]:
    """What is said of the device where an array is made."""
    try:
        xp.asarray(0.0, dtype=xp.float32, device=device)
    except Exception:  # whatever the library raises for a device that it does not have
        do = "leave it out for the default"
        must = f"be one that {xp.__name__.removeprefix('array_api_compat.')} has"
        raise ValueError(sentence("device", must, describe(device), do)) from None
    return {"device": device}


def _array_of(name: str, values: Any, shape: tuple[int, ...], dtype: str, xp: Any, place: dict[str, Any]) -> Any:
    """The array that `to_dict` has written as a list."""
    if values is None:
        return None
    try:
        read = numpy.asarray(values, dtype=dtype) if isinstance(values, (list, tuple)) else None
    except Exception:  # something in it is no number
        read = None
    if read is None or read.shape != (math.prod(shape),):
        raise ValueError(_wrong(name, f"be a list of {math.prod(shape)} numbers, as shape {shape} says", values))
    return xp.reshape(xp.asarray(values, dtype=getattr(xp, dtype), **place), shape)
