"""Moments elsewhere: in another library, on another device, for data of another width.

What data of some width wants is told by the digits of a `Precision`:

    0   float64, without units: for rows of float32 and narrower
    53  float64 in units, in pairs: for rows of float64
    24  float32 in units, in pairs: for rows of float32 and narrower where float64 is not there, or too slow (JAX)
"""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy

from anynorm._definition.counting import by_row, divisor, dtype_of_counts
from anynorm._definition.norms import Statistics
from anynorm._definition.pairs import renormalize, two_sum
from anynorm._definition.scaling import units_of
from anynorm._libraries import dtype_name, library_of
from anynorm._moments import blocks
from anynorm._moments.parts import is_lazy, mapped, name_of, quietly
from anynorm._wording import describe, is_traced, sentence

Array = Any


def digits_of(xp: Any, found: Statistics) -> int:
    """For data of which width statistics are."""
    if found.unit is None:
        return 0
    return 53 if xp.finfo(found.squares.dtype).bits == 64 else 24


def widened(xp: Any, found: Statistics, digits: int) -> Statistics:
    """Statistics for data of another width, of the same library; a number that is out of range there is lost."""
    if digits_of(xp, found) == digits:
        return found
    if is_lazy(xp):
        return blocks.statistics(partial(_converted, digits=digits), "moments-width", found)
    with quietly(xp, found.squares):
        return _converted(xp, found, digits)


def _converted(xp: Any, found: Statistics, digits: int) -> Statistics:
    own = digits_of(xp, found)
    if own == 24:
        found = _in_float64(xp, found)
    if digits == 0:
        return _without_unit(found)
    magnitude = xp.sqrt(found.squares / divisor(xp, found.elements, found.squares))
    if found.mean is not None:
        magnitude = xp.maximum(magnitude, xp.abs(found.mean))
    if found.unit is not None:
        magnitude = magnitude / found.unit
    if digits == 53:
        return found if own == 24 else _in_unit(found, units_of(xp, magnitude, (), 53))
    found = _in_unit(found, units_of(xp, magnitude, (), 24))
    zero = found.squares * 0.0
    high, *lower = [zero if one is None else one for one in (found.mean, found.mean_low, found.mean_rest)]
    mean: list[Array] = []
    for low in (*lower, zero):  # what is left of each goes to the next
        mean.append(xp.astype(high, xp.float32))
        high = (high - xp.astype(mean[-1], xp.float64)) + low
    squares = found.squares + (zero if found.squares_low is None else found.squares_low)
    squares_high = xp.astype(squares, xp.float32)
    squares_low = xp.astype(squares - xp.astype(squares_high, xp.float64), xp.float32)
    high, low, rest = mean
    return Statistics(found.elements, high, low, rest, squares_high, squares_low, xp.astype(found.unit, xp.float32))


def _in_float64(xp: Any, found: Statistics) -> Statistics:
    """Pairs of float32 as pairs of float64, which hold all of their digits."""
    parts = [None if one is None else xp.astype(one, xp.float64) for one in found[1:-1]]
    mean, low, rest, squares, squares_low, unit = parts
    if mean is not None:
        mean, low = two_sum(mean, 0.0 * mean if low is None else low)
        low = low if rest is None else low + rest
    return Statistics(
        found.elements, mean, low, None, squares if squares_low is None else squares + squares_low, None, unit
    )


def _without_unit(found: Statistics) -> Statistics:
    unit: Any = found.unit
    squares = found.squares if found.squares_low is None else found.squares + found.squares_low
    if found.mean is None:
        return Statistics(found.elements, None, None, None, squares / unit / unit, None, None)
    low = found.mean * 0.0 if found.mean_low is None else found.mean_low
    if found.mean_rest is not None:
        low = low + found.mean_rest
    mean, low = renormalize(found.mean, low)
    return Statistics(found.elements, mean / unit, low / unit, None, squares / unit / unit, None, None)


def _in_unit(found: Statistics, unit: Array) -> Statistics:
    """The same in another unit."""
    ratio = unit if found.unit is None else unit / found.unit
    mean, low, rest = (None if one is None else one * ratio for one in found[1:4])
    squares_low = None if found.squares_low is None else found.squares_low * ratio * ratio
    return Statistics(found.elements, mean, low, rest, found.squares * ratio * ratio, squares_low, unit)


def on_host(xp: Any, found: Statistics) -> Statistics:
    """The same as NumPy's arrays; lazy ones are computed."""
    found = mapped(_on_host, blocks.computed(found) if is_lazy(xp) else found)
    return found._replace(elements=found.elements.astype(numpy.int64)) if by_row(found.elements) else found


def _on_host(array: Array) -> Any:
    """An array as NumPy's, by whatever method its library has for that."""
    given = array
    try:
        for step in ("detach", "cpu", "get", "todense", "unwrap_numpy"):
            array = getattr(array, step, lambda array=array: array)()
    except ValueError:  # of ndonnx, which has no values yet
        array = None
    try:
        host = numpy.asarray(None if is_traced(array) else array)
    except RuntimeError:  # it is on a device that NumPy cannot read
        if not hasattr(array, "__dlpack__"):
            raise
        host = numpy.from_dlpack(array, device="cpu")
    if host.dtype.kind not in "fi":
        do = "call this where they are computed, not while they are traced"
        raise TypeError(sentence("moments", "have values that the host can read", f"those in {describe(given)}", do))
    return host


def placed(found: Statistics, xp: Any, device: Any = None) -> Statistics:
    """NumPy's arrays as those of a library, on one of its devices."""
    where = {} if device is None else {"device": device}
    if by_row(found.elements):
        most = xp.iinfo(dtype_of_counts(xp)).max
        if found.elements.size and found.elements.max() > most:
            do = "merge them elsewhere, or in JAX call jax.config.update('jax_enable_x64', True)"
            must = f"have counts that ints of {name_of(xp)} can hold, up to {most}"
            raise ValueError(sentence("moments", must, str(found.elements.max()), do))
    return mapped(lambda one: xp.asarray(one if is_lazy(xp) else one.copy(), **where), found)


def digits_in(xp: Any, device: Any, wide: bool) -> int:
    """For which width statistics are to be, in a library and on a device, of float64 data or of narrower."""
    if is_lazy(xp):  # whose blocks are NumPy's
        return 53 if wide else 0
    probe = xp.asarray(0.0, dtype=xp.float32, **({} if device is None else {"device": device}))
    library = library_of(probe)
    if wide and library.has_float64(probe):
        return 53
    return library.precision(probe).digits


def is_wide(dtype: Any) -> bool:
    """Whether a dtype, of whatever library, is float64; TypeError where it is no real floating one."""
    try:
        name = dtype if isinstance(dtype, str) else dtype_name(numpy.dtype(dtype) if isinstance(dtype, type) else dtype)
        if dtype is not None and not name.startswith(("float", "bfloat")):
            name = numpy.dtype(dtype).name
    except Exception:
        name = ""
    if name not in ("float16", "bfloat16", "float32", "float64"):
        do = "pass the dtype of the arrays that the moments are to be applied to or merged with"
        raise TypeError(sentence("dtype", "be one of float16, bfloat16, float32 and float64", describe(dtype), do))
    return name == "float64"


def moved(xp: Any, found: Statistics, to: Any, device: Any, wide: bool | None) -> Statistics:
    """Statistics in another library, on a device of it, for data of another width; None: where and as they are."""
    own = digits_of(xp, found)
    is_here = to is xp and device is None
    if is_here and wide is None:
        return found
    if is_here and not is_lazy(xp):
        device = getattr(found.squares, "device", None) if library_of(found.squares).devices else None
    digits = digits_in(to, device, own == 53 if wide is None else wide)
    if wide and digits != 53:
        do = "leave dtype out" + (", or call jax.config.update('jax_enable_x64', True)" if "jax" in to.__name__ else "")
        must = f"be one that arrays of {name_of(to)} can have here"
        raise ValueError(sentence("dtype", must, "float64", do))
    if is_here:
        return widened(xp, found, digits)
    return placed(widened(numpy, on_host(xp, found), digits), to, device)
