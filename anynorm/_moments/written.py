"""Moments as a dict of numbers and lists, and back: what `Moments.from_dict` is given is checked here."""

from __future__ import annotations

import importlib
import math
from collections.abc import Mapping
from typing import Any

import numpy

from anynorm._definition.counting import by_row, dtype_of_counts
from anynorm._definition.norms import Statistics
from anynorm._moments.moved import on_host
from anynorm._moments.parts import PARTS
from anynorm._numbers import check_length
from anynorm._wording import describe, sentence

# Libraries whose namespace of the standard is in array-api-compat.
_WRAPPED = ("cupy", "torch", "dask.array")

_MOST = 2**63 - 1  # elements, as counts of rows have it too

_DO = "pass what Moments.to_dict returned"


def written(xp: Any, found: Statistics) -> dict[str, Any]:
    """The dict of statistics."""
    host = on_host(xp, found)
    count = host.elements.reshape(-1).tolist() if by_row(host.elements) else host.elements
    lists = [None if one is None else one.reshape(-1).tolist() for one in host[1:-1]]
    named = dict(zip(PARTS, lists, strict=True))
    return {"count": count, "shape": list(host.squares.shape), "dtype": host.squares.dtype.name, **named}


def read(values: Any, xp: Any, device: Any) -> tuple[Any, Statistics]:
    """Return the namespace, and the statistics that a dict tells of."""
    if not isinstance(values, Mapping):
        raise TypeError(_wrong("values", "be a dict", values))
    xp = namespace("xp", xp)
    names = ("count", "shape", "dtype", *PARTS)
    missing = [name for name in names if name not in values]
    if missing:
        raise ValueError(sentence("values", f"hold {', '.join(names)}", f"none named {missing[0]}", _DO))
    dtype, count = values["dtype"], values["count"]
    if dtype not in ("float32", "float64"):
        raise ValueError(_wrong("dtype", "be float32 or float64", dtype))
    if not isinstance(values["shape"], (list, tuple)):
        raise TypeError(_wrong("shape", "be a list of lengths", values["shape"]))
    shape = tuple([check_length("shape", length, "a list of ints", least=0) for length in values["shape"]])
    for name in ("mean", "squares"):
        if values[name] is None:
            raise ValueError(_wrong(name, "be a list of numbers", None))
    place = {} if device is None else placement(xp, device)
    if isinstance(count, (list, tuple)):
        counts = [check_length("count", one, least=0) for one in count]
        count = _array_of("count", counts, shape, "int64", xp, place | {"dtype": dtype_of_counts(xp)})
    else:
        count = check_length("count", count, least=0)
        if count > _MOST:
            raise ValueError(_wrong("count", f"be {_MOST} or less", count))
    place_of = {"dtype": getattr(xp, dtype), **place}
    return xp, Statistics(count, *(_array_of(name, values[name], shape, dtype, xp, place_of) for name in PARTS))


def namespace(argument: str, xp: Any) -> Any:
    """The namespace of the standard for a module such as torch."""
    if not (isinstance(getattr(xp, "__name__", None), str) and hasattr(xp, "asarray")):
        do = "pass the module itself, such as numpy or torch"
        raise TypeError(sentence(argument, "be an array namespace", describe(xp), do))
    return importlib.import_module(f"array_api_compat.{xp.__name__}") if xp.__name__ in _WRAPPED else xp


def _wrong(entry: str, must: str, value: Any) -> str:
    return sentence(entry, must, describe(value), _DO)


def placement(xp: Any, device: Any) -> dict[str, Any]:
    """What a library raises about a device where an array is made."""
    try:
        xp.asarray(0.0, dtype=xp.float32, device=device)
    except Exception:  # whatever the library raises for a device that it does not have
        do = "leave it out for the default"
        must = f"be one that {xp.__name__.removeprefix('array_api_compat.')} has"
        raise ValueError(sentence("device", must, describe(device), do)) from None
    return {"device": device}


def _array_of(name: str, values: Any, shape: tuple[int, ...], dtype: str, xp: Any, place: dict[str, Any]) -> Any:
    """The array that was written as a list."""
    if values is None:
        return None
    try:
        read = numpy.asarray(values, dtype=dtype) if isinstance(values, (list, tuple)) else None
    except Exception:  # something in it is no number
        read = None
    if read is None or read.shape != (math.prod(shape),):
        raise ValueError(_wrong(name, f"be a list of {math.prod(shape)} numbers, as shape {shape} says", values))
    return xp.reshape(xp.asarray(values, **place), shape)
