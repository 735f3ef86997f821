"""Sums over axes, exact to a few units of the last place however many the terms are and whatever the library does."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

Array = Any

_ON_NUMPY = ("numpy", "array_api_strict")
_HALVINGS = 3
# Where XLA adds one term after the other, blocks of this many are added here, then the sums of blocks, in blocks again:
# the error grows with the logarithm of the number of terms.
_BLOCK = 64
# From this many elements on XLA for CPUs adds in lanes; and the longest row of which leading bits are worth a sum.
_LANES, _LONGEST_EXACT = 4096, {24: 1 << 20, 53: 1 << 40}


def total(xp: Any, values: Array, axes: tuple[int, ...]) -> Array:
    """The sum over ``axes``, which are kept with length 1."""
    if not _adds_one_by_one(xp, values, axes):
        return xp.sum(values, axis=axes, keepdims=True)
    add = _total_in_blocks if xp.__name__ == "jax.numpy" else _total_by_halves
    for axis in axes:
        values = add(xp, values, axis)
    return values


def total_of_squares(xp: Any, values: Array, axes: tuple[int, ...], bound: Array, digits: int) -> Array:
    """The sum of squares of numbers up to a bound, with an error of one unit or two.

    The leading bits of each square are as many as can be added without rounding, in whatever order. What remains is too
    small for an error to matter (Rump, Ogita, Oishi 2008, "Accurate floating-point summation"). A plain sum is off by
    10 units and more for rows such as (1, 0, ..., 0), or of one magnitude, where each term rounds the same way. NumPy,
    which goes through memory at each step, first adds one half to the other a few times.
    """
    squares = values * values
    count = count_along(values, axes)
    if xp.__name__ in _ON_NUMPY and hasattr(squares, "__setitem__"):  # which not all that wraps NumPy's arrays has
        longest = max(axes, key=squares.shape.__getitem__)
        for _ in range(_HALVINGS):
            squares = _halved(squares, longest)
    if count <= 2 or count > _LONGEST_EXACT[digits]:
        return total(xp, squares, axes)
    # More than 0 in float64, for torch halves the derivative of a minimum where both are the same.
    room = 2.0 ** (2 + math.ceil(math.log2(count)))
    (boundary,) = of_rows(xp, lambda bound: (at_least(xp, bound * bound * room, 2.0**-1000),), bound)
    if xp.__name__ == "sparse":  # added to what is not stored, it would be
        boundary = xp.where(squares != 0.0, boundary, 0.0)
    # They are no larger. XLA fuses a product with a sum, but not this, and so takes the same bits from both sides.
    squares = xp.minimum(squares, boundary)
    leading = (squares + boundary) - boundary
    return total(xp, leading, axes) + total(xp, squares - leading, axes)


def mean(xp: Any, values: Array, axes: tuple[int, ...]) -> Array:
    """The mean over ``axes``; 0 over no elements."""
    return total(xp, values, axes) / max(count_along(values, axes), 1)


def count_along(values: Array, axes: tuple[int, ...]) -> int:
    """How many elements there are along axes."""
    count = 1
    for axis in axes:
        length = values.shape[axis]
        count *= 1 if length is None else length  # of an array that was given it is known; ndonnx forgets a length of 1
    return count


def lowest_and_highest(xp: Any, values: Array, axes: tuple[int, ...]) -> tuple[Array, Array]:
    """The least and the largest element over ``axes``; NaN where one is."""
    return xp.min(values, axis=axes, keepdims=True), xp.max(values, axis=axes, keepdims=True)


def largest(xp: Any, values: Array, axes: tuple[int, ...]) -> Array:
    """The largest magnitude over ``axes``; NaN where one is."""
    return xp.max(xp.abs(values), axis=axes, keepdims=True)


def of_rows(xp: Any, function: Callable[..., tuple[Array, ...]], *rows: Array) -> tuple[Array, ...]:
    """What a function makes of numbers that there is one of for each row.

    For JAX without their axes of length 1: along such a last axis XLA takes one row at a time, in ten times the time.
    """
    if xp.__name__ != "jax.numpy":
        return function(*rows)
    kept = rows[0].shape
    flat = [xp.reshape(one, [length for length in kept if length != 1]) for one in rows]
    return tuple(xp.reshape(one, kept) for one in function(*flat))


def at_least(xp: Any, values: Array, bound: float) -> Array:
    """The larger of values and a number, as an array, which torch wants."""
    return xp.maximum(values, xp.full_like(values, bound))


def at_most(xp: Any, values: Array, bound: float) -> Array:
    """The smaller of values and a number, likewise."""
    return xp.minimum(values, xp.full_like(values, bound))


def _adds_one_by_one(xp: Any, values: Array, axes: tuple[int, ...]) -> bool:
    """Whether the library's own sum lets errors grow with the number of terms."""
    name, shape = xp.__name__, tuple(values.shape)
    if not all(isinstance(length, int) for length in shape):  # ndonnx has None, jax.export a symbol
        return False
    if name == "jax.numpy":
        return bool(math.prod(shape) < _LANES)
    # NumPy adds along the last axis alone in blocks.
    return name in (*_ON_NUMPY, "sparse") and axes != (len(shape) - 1,)


def _total_by_halves(xp: Any, values: Array, axis: int) -> Array:
    """One half is added to the other, and again: an error for each doubling of the number of terms."""
    if values.shape[axis] < 2:
        return xp.sum(values, axis=axis, keepdims=True)
    before, after = (slice(None),) * axis, (slice(None),) * (len(values.shape) - axis - 1)

    def part(first: int, last: int) -> Array:
        return values[(*before, slice(first, last), *after)]

    rest = None
    while (length := values.shape[axis]) > 1:
        if length % 2:
            last = part(length - 1, length)
            rest = last if rest is None else rest + last
        values = part(0, length // 2) + part(length // 2, length // 2 * 2)
    return values if rest is None else values + rest


def _halved(values: Array, axis: int) -> Array:
    """The sums of one half and the other of what is along an axis; where it is odd, the last one goes to the first."""
    length, before = values.shape[axis], (slice(None),) * axis
    if length < 2:
        return values
    near, far, last = (
        (*before, slice(first, end), ...)
        for first, end in ((0, length // 2), (length // 2, length // 2 * 2), (length // 2 * 2, length))
    )
    sums = values[near] + values[far]
    if length % 2:
        first = (*before, slice(0, 1), ...)
        sums[first] = sums[first] + values[last]
    return sums


def _total_in_blocks(xp: Any, values: Array, axis: int) -> Array:
    """Blocks are added, then their sums; XLA makes one sum of both, but not of what is scaled between them."""
    shape = list(values.shape)
    blocks, left = divmod(shape[axis], _BLOCK)
    if blocks < 2:
        return xp.sum(values, axis=axis, keepdims=True)
    before, after = (slice(None),) * axis, (slice(None),) * (len(shape) - axis - 1)
    whole = values if not left else values[(*before, slice(None, blocks * _BLOCK), *after)]
    parts = xp.sum(xp.reshape(whole, (*shape[:axis], blocks, _BLOCK, *shape[axis + 1 :])), axis=axis + 1)
    result = _total_in_blocks(xp, parts * (1.0 / _BLOCK), axis) * float(_BLOCK)
    if left:
        result = result + xp.sum(values[(*before, slice(blocks * _BLOCK, None), *after)], axis=axis, keepdims=True)
    return result
