"""pydata/sparse: the definition runs on arrays of coordinates, and results have the format that was given."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from anynorm._check import Call, Gradient
from anynorm._moments import Moments, arrays_of, of_arrays

Array = Any


def run(call: Call, run_whole: Callable[[Call], Any]) -> Any:
    """Return y, or (y, total), in x's format."""
    result = run_whole(_in_coordinates(call))
    return _in_format(result, call.x) if call.residual is None else tuple(_in_format(one, call.x) for one in result)


def vjp(gradient: Gradient, vjp_whole: Callable[..., tuple[Any, ...]]) -> tuple[Any, ...]:
    """Return dx, dweight and dbias, each in the format of what it is the gradient of."""
    call, dy, dtotal, wanted = gradient
    found = vjp_whole(_in_coordinates(call), _coordinates(dy), _coordinates(dtotal), wanted)
    found = tuple(None if one is None else one + 0.0 for one in found)  # -0.0 + 0.0 is 0.0, which is not stored
    return tuple(_in_format(one, like) for one, like in zip(found, (call.x, call.weight, None), strict=True))


def at_stored(xp: Any, array: Array, weight: Array | float | None) -> Array | None:
    """The weight where an array is not zero, else 0: a zero times a negative weight is -0.0, which would be stored."""
    return None if weight is None else xp.where(array != 0.0, weight, 0.0)


def _in_coordinates(call: Call) -> Call:
    x, weight, residual = map(_coordinates, (call.x, call.weight, call.residual))
    moments = None if call.moments is None else _filled(call.moments)
    return call._replace(x=x, weight=weight, residual=residual, moments=moments)


def _filled(moments: Moments) -> Moments:
    """Given moments with a unit of 1, and not 0, where none is stored; a division by 0 would make NaN of empty rows."""
    *others, unit = arrays_of(moments)
    xp = moments.namespace
    filled = None if unit is None else xp.COO.from_numpy(unit.todense(), fill_value=1.0)
    return of_arrays(moments.count, [*others, filled], xp)


def _coordinates(array: Any) -> Any:
    return array if array is None or type(array) is float else array.asformat("coo")


def _in_format(array: Array | None, like: Any) -> Array | None:
    """An array of coordinates (COO) in the format of another array."""
    if array is None or not hasattr(like, "asformat"):
        return array
    name = type(like).__name__.lower()
    return array.asformat(name, **({"compressed_axes": like.compressed_axes} if name == "gcxs" else {}))
