"""Moments of pieces of the same rows, merged; some of the rows; and the rows of several, side by side."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy

from anynorm._definition import merging
from anynorm._definition.counting import by_row, dtype_of_counts
from anynorm._definition.norms import Statistics
from anynorm._lengths import require_blocks_alike, shapes_agree
from anynorm._libraries import Library, library_of
from anynorm._moments import blocks
from anynorm._moments.moved import digits_of, placed, widened
from anynorm._moments.parts import Held, is_lazy, leaves_of, mapped, name_of, of_leaves, quietly
from anynorm._numbers import as_index
from anynorm._wording import describe, sentence

Array = Any


def merged(a: Held, b: Held) -> Held:
    """The statistics of two pieces of the same rows."""
    (xp, mine), (_, theirs) = a, b = _in_one_library(a, b, "other")
    _require_alike("other", xp, mine, theirs)
    if not shapes_agree(tuple(mine.squares.shape), tuple(theirs.squares.shape)):
        must = f"be of another piece of the same rows, of shape {tuple(mine.squares.shape)}"
        got = f"shape {tuple(theirs.squares.shape)}"
        raise ValueError(sentence("other", must, got, "take both along the same axis, of data of one dtype"))
    counted_by_row = by_row(mine.elements) or by_row(theirs.elements)
    if not counted_by_row and not (mine.elements and theirs.elements):  # nothing is merged; Dask gets no task for it
        return a if mine.elements else b
    if is_lazy(xp):
        require_blocks_alike("other", theirs.squares, mine.squares)
        return xp, blocks.statistics(merging.merge, "moments-merge", mine, theirs)
    with quietly(xp, mine.squares):
        return xp, merging.merge(xp, mine, theirs)


def _in_one_library(a: Held, b: Held, argument: str) -> tuple[Held, Held]:
    """Both in one library: NumPy's go with those of any other, as numbers a row that they are."""
    if a[0] is b[0]:
        return a, b
    if numpy not in (a[0], b[0]):
        must, do = f"be of one library with these, {name_of(a[0])}", f"call {argument}.to({name_of(a[0])}) first"
        raise TypeError(sentence(argument, must, f"those of {name_of(b[0])}", do))
    at = 0 if a[0] is numpy else 1
    (_, given), (xp, like) = (a, b) if at == 0 else (b, a)
    taken = xp, taken_over(given, xp, like.squares, digits_of(xp, like))
    return (taken, b) if at == 0 else (a, taken)


def taken_over(found: Statistics, xp: Any, like: Array, digits: int) -> Statistics:
    """NumPy's arrays as those of a library, where an array of it is; for data of the width of those, or wider."""
    device = like.device if library_of(like).devices else None
    is_fit = digits_of(numpy, found) == 53 or digits != 53
    return placed(widened(numpy, found, digits) if is_fit else found, xp, device)


def suited(held: Held, library: Library, x: Array, digits: int) -> Held:
    """The same for an array: NumPy's go with one of any library, those of float64 data with narrower ones."""
    xp, found = held
    if xp is numpy and library.namespace is not numpy and library.is_listed and not library.refuses_to_fill:
        return library.namespace, taken_over(found, library.namespace, x, digits)
    if xp is library.namespace and digits != 53 and digits_of(xp, found) == 53:
        return xp, widened(xp, found, digits)
    return held


def _require_alike(argument: str, xp: Any, mine: Statistics, theirs: Statistics) -> None:
    """Raise unless statistics are of data of one width, and on one device."""
    widths = [digits_of(xp, found) for found in (mine, theirs)]
    if widths[0] != widths[1]:
        own, other = ("float64" if width == 53 else "narrower floats" for width in widths)
        must, do = f"be of data as wide as these, from {own}", "call .to(dtype=...) of either"
        shape = tuple(theirs.squares.shape)
        raise ValueError(sentence(argument, must, f"shape {shape} from {other}", do))
    if library_of(mine.squares).devices and mine.squares.device != theirs.squares.device:
        must = f"be on the device of these, {mine.squares.device}"
        do = "call .to(device=...) of either"
        raise ValueError(sentence(argument, must, f"those on {theirs.squares.device}", do))


def picked(xp: Any, found: Statistics, index: Any) -> Statistics:
    """Some of the rows: a slice of each axis, or along one a list of places or of bools."""
    shape, given = found.squares.shape, index if isinstance(index, tuple) else (index,)
    around = [at for at, one in enumerate(given) if one is Ellipsis]
    if len(around) > 1 or len(given) - len(around) > len(shape):
        must = f"be at most one index for each axis of shape {tuple(shape)}"
        raise IndexError(sentence("the index", must, describe(given), "write one ellipsis, or leave axes out"))
    at = around[0] if around else len(given)
    rest = given[at + 1 :]
    whole: tuple[Any, ...] = (slice(None),) * (len(shape) - len(given) + len(around))
    cuts: list[Any] = list(given[:at] + whole + rest)
    chosen = {axis: _places(one, shape[axis]) for axis, one in enumerate(cuts) if not isinstance(one, slice)}
    for axis in chosen:
        cuts[axis] = slice(None)

    def pick(array: Array) -> Array:
        array = array[tuple(cuts)]
        for axis, places in chosen.items():
            array = xp.take(array, _as_index(xp, places, array), axis=axis)
        return array

    with quietly(xp, found.squares):
        return mapped(pick, found)


def _as_index(xp: Any, places: Any, array: Array) -> Any:
    if is_lazy(xp):
        return places
    return xp.asarray(places, **({"device": array.device} if library_of(array).devices else {}))


def _places(index: Any, length: int) -> Any:
    """The places that a list of ints or of bools names, as NumPy's."""
    do = "write 3:4 for a single row, for axes are kept; a slice, a list of ints or of bools"
    try:
        places = numpy.asarray(index)
        if places.ndim != 1 or (places.dtype.kind not in "iub" and places.size):
            raise TypeError
    except Exception:
        raise TypeError(sentence("the index", "keep each axis", describe(index), do)) from None
    if places.dtype.kind == "b":
        if len(places) != length:
            must = f"have {length} bools, as the axis is long"
            raise IndexError(sentence("the index", must, str(len(places)), do))
        return numpy.flatnonzero(places)
    if places.size and not (-length <= places.min() and places.max() < length):
        must = f"lie in [{-length}, {length})"
        raise IndexError(sentence("the index", must, describe(index), do))
    return places.astype(numpy.int64) % max(length, 1)


def joined(several: Sequence[Held], axis: Any) -> Held:
    """The rows of several moments, one after the other along an axis."""
    xp, first = several[0]
    for place, (other_xp, found) in enumerate(several):
        name = f"moments[{place}]"
        if other_xp is not xp:
            must, do = f"be of one library with the first, {name_of(xp)}", f"call .to({name_of(xp)}) of it first"
            raise TypeError(sentence(name, must, f"those of {name_of(other_xp)}", do))
        _require_alike(name, xp, first, found)
        if not (by_row(first.elements) or by_row(found.elements) or found.elements == first.elements):
            do = "take all of as many elements, or with skip_nan=True, which counts row by row"
            raise ValueError(sentence(name, f"have the count of the first, {first.elements}", str(found.elements), do))
    shapes = [tuple(found.squares.shape) for _, found in several]
    along = as_index("axis", axis)
    ndim = len(shapes[0])
    others = [shape[: along % ndim] + shape[along % ndim + 1 :] for shape in shapes] if -ndim <= along < ndim else []
    if not others or any(len(shape) != ndim for shape in shapes) or len(set(others)) > 1:
        must = f"be an axis along which shapes may be joined, {' and '.join(map(str, shapes))}"
        raise ValueError(sentence("axis", must, describe(axis), "pass one along which alone they differ"))
    with quietly(xp, first.squares):
        return xp, _side_by_side(xp, [found for _, found in several], along % ndim)


def _side_by_side(xp: Any, several: Sequence[Statistics], axis: int) -> Statistics:
    counted = any(by_row(found.elements) for found in several)
    lists = []
    for found in several:
        parts = leaves_of(found)
        if counted and parts[-1] is None:
            parts = (*parts[:-1], xp.full_like(found.squares, found.elements, dtype=dtype_of_counts(xp)))
        lists.append(tuple(parts))
    leaves = []
    for column in zip(*lists, strict=True):
        there = any(one is not None for one in column)
        zeros = [found.squares * 0.0 if one is None else one for one, found in zip(column, several, strict=True)]
        leaves.append(xp.concat(zeros, axis=axis) if there else None)
    return of_leaves(None if counted else several[0].elements, tuple(leaves))
