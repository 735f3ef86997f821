"""What `compiled` and `tracing` do, written in NumPy: lanes are an array of numbers.

This and `interpreted_memory` stand in for them under ANYNORM_INTERPRET=1 and give the same bits, but for the sign and
payload of NaN, a few thousand times slower. A number is a numpy.float64, whose division by zero is not an exception.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy

from anynorm._kernels.cpu.language.dtypes import BFLOAT16, FLOAT64, Dtype, Lanes, Number

# --- what is run when


def cell(start: Any) -> Any:
    """What changes from turn to turn, set by ``cell[...] = value``."""
    return numpy.array(start)


def loop(start: Any, stop: Any, step: Any, ended: Any = None) -> Iterator[int]:
    """Numbers from start, until stop or until the body of the loop has set ``ended``."""
    for index in range(int(start), int(stop), int(step)):
        if ended is not None and ended:
            return
        yield index


def cases(condition: Any) -> Iterator[bool]:
    """The one that is the case."""
    yield bool(condition)


def when(condition: Any) -> Iterator[None]:
    """Once, where that is the case."""
    if condition:
        yield


# --- lanes alone


def widened(raw: numpy.ndarray, dtype: Dtype, compute_dtype: Any) -> Any:
    """Elements as they lie in memory in another dtype; exact in a wider one."""
    if dtype is BFLOAT16:  # the upper half of a float32
        raw = (raw.astype(numpy.uint32) << 16).view(numpy.float32)
    return raw.astype(compute_dtype.name)


def narrowed(value: Any, dtype: Dtype) -> Any:
    """Lanes, or a number, rounded to elements as they lie in memory."""
    if dtype is FLOAT64:
        return value
    value = numpy.asarray(value).astype(numpy.float32)  # float64 reaches 16 bits by way of float32 too
    if dtype is not BFLOAT16:
        return value.astype(dtype.name)
    bits = value.view(numpy.uint32)
    rounded = bits + (bits >> 16 & 1) + numpy.uint32(0x7FFF)  # to nearest even
    rounded = numpy.where(numpy.isnan(value), numpy.uint32(0x7FC00000), rounded)
    return (rounded >> 16).astype(numpy.uint16)


def rounded(value: Any, dtype: Dtype, to_even: bool = True) -> Any:
    """Lanes, or a float64, as a dtype rounds them, in their own.

    Not to even, the middle between two numbers of bfloat16 goes to the larger one, and no NaN may have all bits set.
    """
    if dtype is BFLOAT16 and not to_even:
        bits = numpy.asarray(value).astype(numpy.float32).view(numpy.uint32) + numpy.uint32(0x8000)
        return (bits & numpy.uint32(0xFFFF0000)).view(numpy.float32).astype(numpy.asarray(value).dtype)[()]
    return widened(narrowed(value, dtype), dtype, numpy.asarray(value).dtype)[()]


def splat(value: float, compute_dtype: Dtype, lanes: int) -> Lanes:
    """A number in all lanes."""
    return numpy.full(lanes, value, compute_dtype.name)


def as_lanes(lanes: Lanes, compute_dtype: Dtype) -> Lanes:
    """The same numbers in another dtype."""
    return lanes.astype(compute_dtype.name)


def fma(a: Any, b: Any, c: Any) -> Any:
    """``a * b + c`` of lanes or of float64, rounded once."""
    if not any(map(numpy.ndim, (a, b, c))):
        return _fused(float(a), float(b), float(c))
    a, b, c = numpy.broadcast_arrays(a, b, c)
    if a.dtype == numpy.float32:
        return _fused_singles(a, b, c)
    return numpy.asarray([_fused(*numbers) for numbers in zip(a.tolist(), b.tolist(), c.tolist(), strict=True)])


def _fused(a: float, b: float, c: float) -> Number:
    if not (math.isfinite(a) and math.isfinite(b)) or 0.0 in (a, b):
        return numpy.float64(a) * b + c  # the product is exact
    if not math.isfinite(c):
        return numpy.float64(c)  # even where the rounded product is infinite
    (p, q), (r, s), (t, u) = (number.as_integer_ratio() for number in (a, b, c))
    numerator, denominator = p * r * u + t * q * s, q * s * u
    if numerator == 0:
        return numpy.float64(0.0)  # a zero that comes of numbers which are none is positive
    try:
        return numpy.float64(numerator / denominator)  # Python rounds the quotient of integers once
    except OverflowError:
        return numpy.float64(math.inf if numerator > 0 else -math.inf)


def _fused_singles(a: Lanes, b: Lanes, c: Lanes) -> Lanes:
    """`fma` of float32: the product is exact in float64, and the sum is rounded to odd there.

    That keeps the second rounding from being another one (Boldo and Melquiond 2008, "Emulation of FMA").
    """
    product, c = a.astype(numpy.float64) * b, c.astype(numpy.float64)
    nearest = product + c
    c_seen = nearest - product
    error = (product - (nearest - c_seen)) + (c - c_seen)
    is_even = nearest.view(numpy.int64) & 1 == 0
    odd = numpy.nextafter(nearest, numpy.copysign(math.inf, error))
    # Errors of infinities are NaN, which is neither less nor more than 0.
    return numpy.where(is_even & (numpy.abs(error) > 0.0), odd, nearest).astype(numpy.float32)


def root(a: Any) -> Any:
    """The square root of lanes or of a float64, rounded once."""
    return numpy.sqrt(a)


def magnitude(a: Lanes) -> Lanes:
    """The absolute value."""
    return numpy.abs(a)


def where(condition: Any, then: Any, otherwise: Any) -> Any:
    """One of two numbers; lane by lane where the condition is one of lanes. NaN is neither less nor more."""
    if numpy.ndim(condition):
        return numpy.where(condition, then, otherwise)
    return then if condition else otherwise


def part(value: Lanes, first: int, last: int, rest: Lanes) -> Lanes:
    """Lanes from the first up to the last, and others in place of the rest."""
    numbers = numpy.arange(len(value))
    return numpy.where((numbers >= first) & (numbers < last), value, rest)


def number(a: int) -> Number:
    """An integer as a float64."""
    return numpy.float64(a)


def in_order(lanes: Lanes, dtype: Dtype) -> Lanes:
    """Lanes of elements of a dtype that were loaded by parity, as they lie in memory."""
    return lanes.reshape(2, -1).T.ravel() if dtype is BFLOAT16 else lanes


def split(value: Any) -> tuple[Any, Any]:
    """What float32 holds of float64 when it is cut off, and the rest, with the same sign; of lanes or of numbers."""
    high = with_bits(value, ~((1 << 29) - 1))
    return high, numpy.copysign(value - high, value)[()]


def with_bits(value: Any, kept: int) -> Any:
    """Float64 with some of its bits, the others being 0; of lanes or of numbers."""
    return (numpy.asarray(value).view(numpy.int64) & kept).view(numpy.float64)[()]
