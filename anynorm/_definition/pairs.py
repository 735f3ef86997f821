"""Twice the working precision from ordinary floats: a pair (high, low) stands for the exact sum high + low.

Moments are merged in them where no dtype is wider: a number that is rounded at each of a million merges would lose
its last digits. Everything here is additions and multiplications of whole arrays, so it runs under any tracer. Two
hazards shaped it:

- Compilers may fuse ``a*b + c`` into one rounding (XLA does on the CPU, every GPU compiler does). Each product that
  is followed by an addition here is either exact, so that fusing changes nothing, or a rounded one that is used twice,
  which XLA's CPU compiler leaves whole; where it is fused all the same the low half is lost, and no more than that. The
  textbook splitting of Veltkamp breaks altogether.
- XLA folds ``(a + c) - c`` to ``a`` where c is a literal, and ``(a * c) * (b * d)`` to ``(a * b) * (c * d)``. Here what
  is added comes from the data, and literal factors stay out of products.

``digits`` is the number of significant bits of the dtype: 53 for float64, 24 for float32.

Sources: Knuth, TAOCP 2, 4.2.2 (two_sum); Dekker 1971 (two_product).
"""

from __future__ import annotations

import math
from typing import Any

Array = Any
Pair = tuple[Any, Any]


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
    """Round a Python float to ``digits`` bits; it must lie in the range of the dtype."""
    mantissa, exponent = math.frexp(value)
    return math.ldexp(round(math.ldexp(mantissa, digits)), exponent - digits)


def split(a: Array, digits: int) -> Pair:
    """Cut a number into two with half the digits each; NaN for numbers near the largest of the dtype."""
    if isinstance(a, float):  # Python's arithmetic may have more digits than the dtype
        high = _round(a, digits - (digits + 1) // 2)
        return high, a - high
    high = upper_half(a, digits)
    return high, a - high


def upper_half(a: Array, digits: int) -> Array:
    """The first of both, of an array."""
    # The number is not scaled down first and up again: XLA would move the constants out of a product of two halves, and
    # the product that is left underflows.
    boundary = a * 2.0 ** ((digits + 1) // 2)
    return (a + boundary) - boundary


def renormalize(high: Array, low: Array) -> Pair:
    """Return the same sum with the high part rounded to nearest; |low| must be at most |high|."""
    total = high + low
    return total, low - (total - high)
