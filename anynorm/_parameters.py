"""Weight, bias and scale: which shapes they may have, and which axes of x theirs are.

A weight or bias has the shape of the normalized axes, or as many axes as x, with length 1 along those on which it does
not vary. One of the latter kind that varies along every normalized axis, and along no other, is the same for each row,
and so `is_same_for_rows`; kernels that know nothing of rows read it as they do one of the first kind.
"""

from __future__ import annotations

from numbers import Real
from typing import Any

from anynorm._arrays import check_array, check_same_place
from anynorm._lengths import fits, known, require_blocks_alike
from anynorm._libraries import Library, dtype_name, library_of_blocks
from anynorm._numbers import check_number
from anynorm._wording import arrays_of_library, describe, sentence

Array = Any
Shape = tuple[Any, ...]


def check_parameter(argument: str, value: Array, x: Array, library: Library, axes: tuple[int, ...]) -> Array:
    """A weight or bias: library, device, and a shape that fits."""
    if library.takes_others:
        value = _taken_over(argument, value, x, library)
    check_same_place(argument, value, x, library)
    check_shape(argument, value, x, axes)
    if library.block is not None:
        own = axes_of(value, len(x.shape), axes)
        may_broadcast = len(value.shape) == len(x.shape)
        there = {i: axis for i, axis in enumerate(own) if not (may_broadcast and value.shape[i] == 1)}
        require_blocks_alike(argument, value, x, there)
    return value


def check_shape(argument: str, value: Array, x: Array, axes: tuple[int, ...]) -> None:
    """That a weight or bias has the shape of the normalized axes, or broadcasts to x."""
    shape, found = tuple(x.shape), tuple(value.shape)
    if not fits_shape(found, shape, axes):
        expected = tuple([shape[axis] for axis in axes])
        of_x = f"(x has shape {shape}, axis {axes if len(axes) > 1 else axes[0]})"
        must = f"have the shape of the normalized axes, {expected} {of_x}, or {len(shape)} axes and broadcast to x"
        do = f"pass {argument} of that shape, or another axis"
        if len(found) != len(axes) and _fits_trailing(found, shape):
            axes_before = ", ".join("1" * (len(shape) - len(found)))
            do = f"pass {argument}.reshape({axes_before}, *{argument}.shape), or one of that shape"
        elif not found:
            ones = ", ".join("1" * len(shape))
            do = f"pass {argument}.reshape({ones}), or one of that shape"
        elif len(shape) > 2 and found == (shape[0], shape[-1]):
            of_samples = (shape[0], *[1] * (len(shape) - 2), shape[-1])
            do = f"pass {argument}.reshape{of_samples}, if it has a row for each sample, or one of that shape"
        raise ValueError(sentence(argument, must, str(found), do))


def fits_shape(found: Shape, shape: Shape, axes: tuple[int, ...]) -> bool:
    """Whether a weight or bias of the shape ``found`` goes with an x of that shape."""
    expected = (shape[axes[0]],) if len(axes) == 1 else tuple([shape[axis] for axis in axes])
    if found == expected or fits(found, expected):
        return True
    return len(found) == len(shape) and _broadcasts(found, shape)


def _broadcasts(found: Shape, shape: Shape) -> bool:
    return all(m == 1 or m == n or not known(n) for m, n in zip(found, shape, strict=True))


def _fits_trailing(found: Shape, shape: Shape) -> bool:
    """Whether it would be broadcast as NumPy does, which lets the first axes be left out."""
    return 0 < len(found) < len(shape) and _broadcasts(found, shape[len(shape) - len(found) :])


def axes_of(parameter: Array, ndim: int, axes: tuple[int, ...]) -> tuple[int, ...]:
    """The axes of an x with so many that those of a parameter belong to; a scale has none."""
    own = len(parameter.shape)
    return axes if own == len(axes) else tuple(range(ndim)) if own else ()


def is_same_for_rows(parameter: Any, shape: Shape, axes: tuple[int, ...]) -> bool:
    """Whether all rows have one and the same weight or bias, of which each feature has an element."""
    if parameter is None or type(parameter) is float or not parameter.shape or len(parameter.shape) < len(shape):
        return True
    own = tuple(parameter.shape)
    return all(m == (n if axis in axes else 1) for axis, (m, n) in enumerate(zip(own, shape, strict=True)))


def beside_last(parameter: Any, ndim: int) -> Any:
    """A parameter that belongs to the last axes of an x with so many, as one that broadcasts to it."""
    missing = 0 if parameter is None else ndim - len(parameter.shape)
    return parameter if missing <= 0 else parameter[(*(None,) * missing, ...)]


def part_for(parameter: Any, block: tuple[slice, ...], ndim: int) -> Any:
    """What a parameter has for a block of an x with so many axes; each slice is of one, none is of those behind."""
    if parameter is None or type(parameter) is float or len(parameter.shape) < ndim:
        return parameter
    at = zip(block, parameter.shape, strict=False)
    return parameter[tuple(slice(None) if length == 1 else one for one, length in at)]


def check_scale(scale: Any, x: Array, library: Library) -> Array | float:
    """The scale of scale_norm: a number, or an array without axes."""
    must = f"be a number or a 0-d {arrays_of_library(library.name)} like x"
    try:
        is_number = isinstance(scale, Real) and not isinstance(scale, bool)
        shape = () if is_number else tuple(scale.shape)
    except Exception:  # reading its attributes may raise anything
        raise TypeError(sentence("scale", must, describe(scale), "pass a float")) from None
    if is_number:
        return check_number("scale", scale)
    if library.takes_others:
        scale = _taken_over("scale", scale, x, library)
    check_same_place("scale", scale, x, library)
    if shape != ():
        raise ValueError(sentence("scale", must, f"shape {shape}", "pass one number, such as scale.reshape(())"))
    return scale


def _taken_over(argument: str, value: Array, x: Array, library: Library) -> Array:
    """A parameter as an array of x's library, where that takes NumPy's, or those that its blocks are of (Dask)."""
    given = check_array(argument, value, library)
    if not (given.name == "numpy" if library.block is None else given is library_of_blocks(x)):
        return value
    if library.name == "ndonnx" and dtype_name(value.dtype) == "bfloat16":  # which it lacks
        value = value.astype("float32")
    return library.namespace.asarray(value)
