"""Rounding on the way, to the numbers of a narrower dtype, by arithmetic in the wide one.

A compiler may take a conversion to a narrower dtype and back for nothing (XLA and torch's Inductor do). NumPy and torch
convert float64 to 16 bits by way of float32, which rounds twice.
"""

from __future__ import annotations

import math
from typing import Any

from anynorm._definition.sums import at_least, at_most

Array = Any

# Significant bits, the least normal number, the largest finite one, the bits of the exponent.
_FORMATS = {
    "float16": (11, 2.0**-14, 65504.0, 5),
    "bfloat16": (8, 2.0**-126, (2.0 - 2.0**-7) * 2.0**127, 8),
    "float32": (24, 2.0**-126, (2.0 - 2.0**-23) * 2.0**127, 8),
}
_BEYOND_ALL = 2.0**200


def rounded(xp: Any, values: Array, dtype: str, precision: Any) -> Array:
    """The nearest numbers of a dtype, of two the even one, still in the dtype of the precision; no derivative."""
    if dtype not in _FORMATS or (precision.digits == 24 and dtype == "float32"):
        return values
    if precision.reduced is not None:
        return _reduced(xp, values, dtype, precision.reduced)
    if precision.digits == 24:  # from float32 a conversion rounds once
        return xp.astype(xp.astype(values, getattr(xp, dtype)), precision.dtype)
    bits, least, largest, _ = _FORMATS[dtype]
    size = at_most(xp, xp.abs(values), _BEYOND_ALL)
    # The size rounded to one bit (Dekker 1971, with exact products alone, for compilers to fuse), and if that was
    # upwards half of it: the power of two that is not above the size.
    both = size * 2.0**52 + size
    power = both - (both - size)
    power = at_least(xp, xp.where(power > size, power * 0.5, power), least)
    shift = power * 2.0 ** (53 - bits)  # beside which one unit in the last place is that of the dtype
    size = (size + shift) - shift
    size = xp.where(size > largest, math.inf, size)
    # The zero of a negative number is a negative one.
    return xp.where(size == 0.0, values * 0.0, xp.where(values < 0.0, -size, size))


def _reduced(xp: Any, values: Array, dtype: str, reduce: Any) -> Array:
    """The same by XLA, which takes the subnormal numbers of float16 for zeros."""
    bits, least, _, exponent_bits = _FORMATS[dtype]
    found = reduce(values, exponent_bits, bits - 1)
    if dtype != "float16":
        return found
    size = xp.abs(values)
    size = (size + 0.5) - 0.5  # numbers below 1 have the unit in the last place of those
    return xp.where(xp.abs(values) < least, xp.where(values < 0.0, -size, size), found)
