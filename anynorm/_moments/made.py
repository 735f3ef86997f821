"""Moments of a mean and a variance that were found elsewhere."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import numpy

from anynorm._arrays import check_array
from anynorm._definition.counting import by_row, dtype_of_counts, multiplier
from anynorm._definition.norms import Statistics
from anynorm._definition.scaling import units_of
from anynorm._lengths import require_blocks_alike, shapes_agree
from anynorm._libraries import Library
from anynorm._moments import blocks
from anynorm._moments.parts import is_lazy, quietly
from anynorm._numbers import as_index, check_length
from anynorm._wording import describe, sentence

Array = Any


def made(mean: Array, variance: Array, count: Any, axis: Any) -> tuple[Any, Statistics]:
    """The namespace of both, and statistics that go with data of any width."""
    library = check_array("mean", mean)
    if library.refuses_to_fill:
        raise TypeError(sentence("mean", "be dense", describe(mean), "pass mean.todense()"))
    if check_array("variance", variance) is not library:
        must, do = "be an array of the library of mean", "pass both of one library"
        raise TypeError(sentence("variance", must, describe(variance), do))
    if not shapes_agree(tuple(mean.shape), tuple(variance.shape)):
        must, do = f"have the shape of mean, {tuple(mean.shape)}", "pass one for each mean"
        raise ValueError(sentence("variance", must, str(tuple(variance.shape)), do))
    if library.devices and variance.device != mean.device:
        must, do = f"be on the device of mean, {mean.device}", "move it to mean.device"
        raise ValueError(sentence("variance", must, f"one on {variance.device}", do))
    xp = library.namespace
    count = _count(count, mean, xp, library)
    if _has_negative(variance, xp):
        do = "pass the variance, as var_ of scikit-learn or running_var of torch, and not its root or logarithm"
        raise ValueError(sentence("variance", "be 0 or more", "a negative one", do))
    index = _kept(axis, len(mean.shape))
    mean, variance = mean[index], variance[index]
    raw = Statistics(count[index] if by_row(count) else count, mean, None, None, variance, None, None)
    digits = 53 if library.has_float64(mean) else 24
    if is_lazy(xp):
        require_blocks_alike("variance", variance, mean)
        return xp, blocks.statistics(partial(_in_units, digits=digits), "moments-made", raw)
    with quietly(xp, mean):
        return xp, _in_units(xp, raw, digits)


def _count(count: Any, mean: Array, xp: Any, library: Library) -> Any:
    """An int, or an array of ints of the shape of the mean; whole numbers too, which n_samples_seen_ may hold."""
    if isinstance(count, (numpy.ndarray, numpy.floating)) and count.dtype.kind == "f" and (count % 1.0 == 0.0).all():
        count = count.astype(numpy.int64)
    shape = tuple(getattr(count, "shape", ()))
    if not shape:
        return check_length("count", count)
    if shape != tuple(mean.shape) or "int" not in str(getattr(count, "dtype", "")):
        must = f"be an int, or ints of the shape of mean, {tuple(mean.shape)}"
        raise ValueError(sentence("count", must, describe(count), "pass how many elements each mean is of"))
    where = {"device": mean.device} if library.devices else {}
    return xp.asarray(count, dtype=dtype_of_counts(xp), **where) + 0  # a copy: the caller may change theirs


def _kept(axis: Any, ndim: int) -> tuple[Any, ...]:
    """The index that inserts axes of length 1."""
    if axis is None:
        return (slice(None),) * ndim
    several = axis if isinstance(axis, (tuple, list)) else (axis,)
    given = [as_index("axis", one, "an int or a tuple of ints") for one in several]
    whole = ndim + len(given)
    axes = {one % whole for one in given if -whole <= one < whole}
    if len(axes) != len(given):
        must = f"name each axis once, in [{-whole}, {whole}) for a mean of {ndim} axes and {len(given)} more"
        raise ValueError(sentence("axis", must, describe(axis), "pass the axes over which the mean was taken"))
    return tuple(None if place in axes else slice(None) for place in range(whole))


def _has_negative(variance: Array, xp: Any) -> bool:
    """Whether one is negative, where values can be looked at: not lazy ones, nor while a program is traced."""
    if is_lazy(xp):
        return False
    if xp.__name__ == "array_api_compat.torch":
        import torch

        if torch.compiler.is_compiling():
            return False
    try:
        with quietly(xp, variance):
            return bool(xp.any(variance < 0.0))
    except Exception:  # whatever a library raises for values that are not known
        return False


def _in_units(xp: Any, found: Statistics, digits: int) -> Statistics:
    """Statistics of a mean, to its last bit, and of the variance in place of the squares."""
    dtype, count = xp.float64 if digits == 53 else xp.float32, found.elements
    mean, variance = (xp.astype(one, dtype) for one in (found.mean, found.squares))
    if by_row(count):  # whose mean and variance are then nothing
        mean, variance = (xp.where(count == 0, 0.0, one) for one in (mean, variance))
    magnitude = xp.maximum(xp.abs(mean), xp.sqrt(variance))
    # As of a row that holds NaN or Inf: whatever such statistics are applied to is NaN.
    variance = xp.where(magnitude < math.inf, variance, math.nan)
    unit = units_of(xp, magnitude, (), digits)
    squares = variance * unit * unit * multiplier(xp, count, variance)
    return Statistics(count, mean * unit, None, None, squares, None, unit)
