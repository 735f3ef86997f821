"""The largest error of a few rows in units of the last place, against exact arithmetic on integers and fractions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction

from anynorm._bench.cases import Case

# Bits of the significand, and the exponent of the smallest positive number.
FORMATS = {"float16": (11, -24), "bfloat16": (8, -133), "float32": (24, -149), "float64": (53, -1074)}
_ROOT_BITS = 160  # of the one number that is rounded here, the inverse of a root: three times those of float64


def largest_ulp(
    case: Case, x: Sequence[float], weight: Sequence[float], bias: Sequence[float], y: Sequence[float]
) -> float:
    """The largest error of a row y, one unit being taken at the largest of abs(x_hat * weight), abs(bias) and abs(y).

    x_hat is the result before weight and bias; for layer_norm it counts as at least 1. NaN where y has one.
    """
    if not all(map(math.isfinite, y)):
        return math.nan
    least = Fraction(1) if case.norm == "layer_norm" else Fraction(0)
    has_weight, has_bias = case.norm != "scale_norm", case.norm == "layer_norm"
    worst = 0.0
    for place, x_hat in enumerate(normalized(case, x)):
        factor = Fraction(weight[place]) if has_weight else Fraction(1)
        offset = Fraction(bias[place]) if has_bias else Fraction(0)
        exact = x_hat * factor + offset
        scale = max(max(abs(x_hat), least) * abs(factor), abs(offset), abs(exact))
        worst = max(worst, float(abs(Fraction(y[place]) - exact) / unit(scale, case.dtype)))
    return worst


def normalized(case: Case, x: Sequence[float]) -> list[Fraction]:
    """A row before weight and bias, exact but for the root."""
    exact = [Fraction(value) for value in x]
    if case.norm == "scale_norm":
        squares = sum((value * value for value in exact), Fraction(0))
        least = Fraction(case.eps)
        inverse = inverse_root(squares) if squares >= least * least else 1 / least
        return [value * inverse for value in exact]
    if case.norm == "layer_norm":
        mean = sum(exact, Fraction(0)) / len(exact)
        exact = [value - mean for value in exact]
    inverse = inverse_root(sum((value * value for value in exact), Fraction(0)) / len(exact) + Fraction(case.eps))
    return [value * inverse for value in exact]


def inverse_root(value: Fraction) -> Fraction:
    """1 / sqrt(value), a positive one, within a part in 2**_ROOT_BITS of it."""
    top, bottom = value.numerator, value.denominator
    shift = _ROOT_BITS + max(0, (top.bit_length() - bottom.bit_length()) // 2 + 1)
    return Fraction(math.isqrt((bottom << 2 * shift) // top), 1 << shift)


def unit(value: Fraction, dtype: str) -> Fraction:
    """One unit in the last place of a number of this size."""
    bits, least = FORMATS[dtype]
    if not value:
        return Fraction(2) ** least
    return Fraction(2) ** max(math.frexp(float(value))[1] - bits, least)
