"""Twice the working precision from ordinary floats: a pair (high, low) stands for the exact sum high + low.

Needed where the widest float a library has is the one the data came in. Everything here is additions, multiplications
and comparisons of whole arrays, so it runs under any tracer. Two hazards shaped it:

- Compilers may fuse ``a*b + c`` into one rounding (XLA does on the CPU, every GPU compiler does). Each product that
  is followed by an addition here is either exact, so that fusing changes nothing, or a rounded one that is used twice,
  which XLA's CPU compiler leaves whole; where it is fused all the same the low half is lost, and no more than that. The
  textbook splitting of Veltkamp breaks altogether.
- XLA folds ``(a + c) - c`` to ``a`` where c is a literal, and ``(a * c) * (b * d)`` to ``(a * b) * (c * d)``. Here what
  is added comes from the data, and literal factors stay out of products.

``digits`` is the number of significant bits of the dtype: 53 for float64, 24 for float32.

Sources: Knuth, TAOCP 2, 4.2.2 (two_sum); Dekker 1971 (two_product); Rump, Ogita, Oishi 2008, "Accurate floating-point
summation" (the splitting behind sum_pair).
"""

from __future__ import annotations

import math
from typing import Any

import numpy

Array = Any
Pair = tuple[Any, Any]

# Sums of more terms than this are cut in two first: past it a level of sum_pair takes too few bits of each term.
_LONGEST_SUM = {24: 1 << 14, 53: 1 << 28}


def two_sum(a: Array, b: Array) -> Pair:
    """Return the rounded sum and its rounding error, exactly."""
    total = a + b
    b_seen = total - a
    return total, (a - (total - b_seen)) + (b - b_seen)


def two_product(a: Array, b: Array, digits: int) -> Pair:
    """Return the rounded product and its rounding error while nothing underflows; NaN where it overflows.

    The error is exact, except where a significand lies within 2**(-digits / 2) below a power of two: its low half has
    one bit more then, and what both lack is at most 2**(1 - 2 * digits) of the product.
    """
    product = a * b
    a_high, a_low = split(a, digits)
    b_high, b_low = split(b, digits)
    return product, ((a_high * b_high - product) + a_high * b_low + a_low * b_high) + a_low * b_low


def add_pairs(a: Pair, b: Pair) -> Pair:
    """Return the sum of two pairs as a pair."""
    high, low = two_sum(a[0], b[0])
    return renormalize(high, low + (a[1] + b[1]))


def multiply_pairs(a: Pair, b: Pair, digits: int) -> Pair:
    """Return the product of two pairs as a pair."""
    high, low = two_product(a[0], b[0], digits)
    return renormalize(high, low + (a[0] * b[1] + a[1] * b[0]))


def sum_pair(xp: Any, values: Array, axes: tuple[int, ...], digits: int, spare: int = 0) -> Pair:
    """Sum over ``axes`` (kept with length 1), to within one unit of the last place of the pair's high part.

    That holds where the sum is not much smaller than the terms; ``spare`` is by how many bits it may be.

    Each level takes the leading bits of every term, as many as can be added without any rounding, so that
    the library may add them in whatever order it likes. What remains after the last level is too small to matter.
    """
    terms = math.prod([values.shape[axis] for axis in axes])
    if terms > _LONGEST_SUM[digits]:
        longest = max(axes, key=lambda axis: values.shape[axis])
        return add_pairs(*(sum_pair(xp, half, axes, digits, spare) for half in _halves(values, longest)))
    bits = max(terms - 1, 1).bit_length()
    # A boundary of 4 * 2**bits * largest leaves this many bits of each term to a level, and the remainder has to
    # fall below 2**-(2 * bits + 4) of the largest term before a plain sum of it is harmless.
    bits_per_level = digits - 3 - bits
    levels = -(-(2 * bits + 4 + spare) // bits_per_level)
    boundary = largest(xp, values, axes) * 2.0 ** (bits + 2)
    high, low = None, 0.0
    for _ in range(levels):
        leading = (values + boundary) - boundary
        values = values - leading
        part = xp.sum(leading, axis=axes, keepdims=True)
        if high is None:
            high = part
        else:
            high, error = two_sum(high, part)
            low = low + error
        boundary = boundary * 2.0**-bits_per_level
    high, error = two_sum(high, xp.sum(values, axis=axes, keepdims=True))
    return renormalize(high, low + error)


def largest(xp: Any, values: Array, axes: tuple[int, ...]) -> Array:
    """The largest magnitude over ``axes``, which are kept with length 1."""
    if not xp.__name__.endswith("dask.array"):
        return xp.max(xp.abs(values), axis=axes, keepdims=True)
    # The maximum that Dask has fails where any chunk is empty, as filtering makes them.
    return xp.reduction(
        xp.abs(values), _largest_in_chunk, _largest_in_chunk, axis=axes, keepdims=True, dtype=values.dtype
    )


def round_pair(value: tuple[float, float], digits: int) -> tuple[float, float]:
    """Turn a pair of Python floats into a pair of numbers that are exact in the dtype."""
    if digits == 53:
        return value
    high = _round(value[0], digits)
    return high, _round((value[0] - high) + value[1], digits)


def ratio_pair(numerator: int, denominator: int, digits: int) -> tuple[float, float]:
    """The quotient of two integers as a pair."""
    high = numerator / denominator
    over, under = high.as_integer_ratio()
    low = (numerator * under - over * denominator) / (under * denominator)
    return round_pair((high, low), digits)


def _round(value: float, digits: int) -> float:
    """Round a Python float to so many bits; it is assumed to lie in the range of the dtype."""
    mantissa, exponent = math.frexp(value)
    return math.ldexp(round(math.ldexp(mantissa, digits)), exponent - digits)


def split(a: Array, digits: int) -> Pair:
    """Cut a number into two of half the length; not for numbers near the largest, whose halves become NaN."""
    if isinstance(a, float):  # of the host, whose arithmetic has more digits than the dtype may have
        high = _round(a, digits - (digits + 1) // 2)
        return high, a - high
    # Neither scaled down before nor up after: XLA gathers the constants of a product of two such halves, and the bare
    # product that is left underflows.
    boundary = a * 2.0 ** ((digits + 1) // 2)
    high = (a + boundary) - boundary
    return high, a - high


def renormalize(high: Array, low: Array) -> Pair:
    """Move what fits from the low part into the high one; |low| is at most |high|."""
    total = high + low
    return total, low - (total - high)


def _largest_in_chunk(magnitudes: Array, axis: tuple[int, ...], keepdims: bool) -> Array:
    """The maximum; 0 over no elements, which their sum is in any library."""
    reduce = numpy.max if all(magnitudes.shape[one] for one in axis) else numpy.sum
    return reduce(magnitudes, axis=axis, keepdims=keepdims)


def _halves(values: Array, axis: int) -> Pair:
    """Cut an array in two along an axis."""
    middle = values.shape[axis] // 2
    before = (slice(None),) * (axis % len(values.shape))
    return values[(*before, slice(None, middle))], values[(*before, slice(middle, None))]
