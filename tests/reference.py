"""The norms in exact arithmetic, written from the formulas; shares no code with anynorm.

Stored values are exact rationals. Sums are exact; square roots and what follows carry 80 decimal digits.
"""

import functools
import math
from dataclasses import dataclass
from fractions import Fraction

import mpmath
import numpy as np

mpmath.mp.dps = 80

# Significant bits, exponent of the smallest subnormal, largest finite value.
FORMATS = {
    "float16": (11, -24, Fraction(65504)),
    "bfloat16": (8, -133, (2 - Fraction(1, 2**7)) * 2**127),
    "float32": (24, -149, (2 - Fraction(1, 2**23)) * 2**127),
    "float64": (53, -1074, (2 - Fraction(1, 2**52)) * 2**1023),
}


@dataclass(frozen=True)
class Exact:
    """One exact result, and the magnitude at which its unit in the last place is taken."""

    value: mpmath.mpf  # NaN where the whole row must be NaN
    magnitude: mpmath.mpf
    slack: float = 0.0  # an error that does not count: of what cancels in a wider dtype, or underflows


def layer_norm(row, weight=None, bias=None, eps=1e-5, offset=0.0):
    """y = (x - mean) / sqrt(var + eps) * (weight + offset) + bias, for one row of floats."""
    return _norm(row, weight, bias, offset, centred=True, eps=Fraction(eps))


def rms_norm(row, weight=None, bias=None, eps=1e-6, offset=0.0):
    """y = x / sqrt(mean(x**2) + eps) * (weight + offset) + bias, for one row of floats."""
    return _norm(row, weight, bias, offset, centred=False, eps=Fraction(eps))


def scale_norm(row, scale=1.0, eps=1e-12):
    """y = scale * x / max(norm2(x), eps), for one row of floats."""
    if not np.isfinite(row).all():
        return [Exact(mpmath.nan, mpmath.nan)] * len(row)
    x, exponent = _integers(row)
    energy = max(sum(v * v for v in x) * _power(2 * exponent), Fraction(eps) ** 2)
    factor = _mpf(Fraction(float(scale)) * _power(exponent)) / _root(energy)
    values = [v * factor for v in x]
    return [Exact(value, abs(value)) for value in values]


def mean_and_variance(row):
    """Exact mean and population variance of a row."""
    x, exponent = _integers(row)
    total = sum(x)
    squares = sum((len(x) * v - total) ** 2 for v in x)
    return Fraction(total, len(x)) * _power(exponent), Fraction(squares, len(x) ** 3) * _power(2 * exponent)


def _norm(row, weight, bias, offset, centred, eps):
    if not np.isfinite(row).all():
        return [Exact(mpmath.nan, mpmath.nan)] * len(row)
    x, exponent = _integers(row)
    count = len(x)
    total = sum(x) if centred else 0
    deviations = [count * v - total for v in x]  # count times too large, and so stay whole
    energy = Fraction(sum(d * d for d in deviations), count**3) * _power(2 * exponent) + eps
    factor = _mpf(_power(exponent)) / (count * _root(energy))
    results = []
    for i, deviation in enumerate(deviations):
        w = mpmath.mpf(1) if weight is None else mpmath.mpf(float(weight[i])) + mpmath.mpf(offset)
        b = mpmath.mpf(0) if bias is None else mpmath.mpf(float(bias[i]))
        scaled = deviation * factor * w
        # Centring leaves an error of the row's own scale, so there x_hat counts as at least 1.
        least = abs(w) if centred else 0
        results.append(Exact(scaled + b, max(abs(scaled), least, abs(b), abs(scaled + b))))
    return results


@dataclass(frozen=True)
class _Slope:
    """What the derivatives of a norm at one row are made of; exact, but for the roots."""

    deviations: list[Fraction]  # d: of x from its mean; without centring x itself
    energy: Fraction  # what the norm divides by, squared
    over: int  # n where squares are averaged, 1 where they are added up
    is_centred: bool
    is_long: bool  # the divisor depends on the row
    weights: list[Fraction]

    @property
    def factor(self) -> mpmath.mpf:
        return 1 / mpmath.sqrt(_mpf(self.energy))

    def centre(self, values):
        """Values less their mean, where the norm subtracts one."""
        middle = sum(values) / len(values) if self.is_centred else 0
        return [value - middle for value in values]

    def mean(self, values, others):
        """The mean, or sum, of products; 0 where the divisor does not depend on the row."""
        return sum(a * b for a, b in zip(values, others, strict=True)) / self.over if self.is_long else 0

    def sizes(self, values) -> list[mpmath.mpf]:
        """The magnitudes of values and, where it is subtracted, of the terms of their mean."""
        sizes = [_mpf(abs(value)) for value in values]
        middle = sum(sizes) / len(sizes) if self.is_centred else 0
        return [size + middle for size in sizes]

    def spread(self) -> list[mpmath.mpf]:
        """The magnitudes of x_hat; its root mean square at least with centring, whose error is of the row's scale."""
        sizes = [_mpf(abs(value)) for value in self.deviations]
        least = mpmath.sqrt(sum(size**2 for size in sizes) / len(sizes)) if self.is_centred else 0
        return [max(size, least) * self.factor for size in sizes]


def _slope(norm, row, weight, eps, offset, scale) -> _Slope:
    count = len(row)
    x, exponent = _integers(row)
    total = sum(x) if norm == "layer_norm" else 0
    d = [Fraction(count * v - total, count) * _power(exponent) for v in x]
    energy = sum(v * v for v in d)
    if norm == "scale_norm":
        least = Fraction(eps) ** 2
        return _Slope(d, max(energy, least), 1, False, energy >= least, [Fraction(scale)] * count)
    weights = [Fraction(1)] * count if weight is None else [Fraction(float(w)) + Fraction(offset) for w in weight]
    return _Slope(d, energy / count + Fraction(eps), count, norm == "layer_norm", True, weights)


def _across(at: _Slope, values):
    """The part of values that lies along neither x_hat nor, where the norm centres, 1; the magnitudes of its terms."""
    across = at.mean(values, at.deviations) / at.energy
    spread, sizes = at.spread(), at.sizes(values)
    terms = at.mean(sizes, spread)
    found = zip(at.centre(values), at.deviations, sizes, spread, strict=True)
    return [(value - d * across, size + h * terms) for value, d, size, h in found]


def gradient(norm, row, dy, weight=None, eps=1e-5, offset=0.0, scale=1.0):
    """The derivative of a norm at one row: dx, and dy * x_hat, whose sum over rows the gradient of the weight is.

    With d the deviations (without centring x itself), f the factor and g = dy * weight::

        dx = f * (g - mean(g) - d * f**2 * mean(g * d))

    The first mean is 0 without centring. For scale_norm g is scale * dy, the other mean is a sum, and 0 where eps is
    the divisor. The magnitude of an element of dx is the sum of those of its terms, those of each mean included. A row
    with NaN or Inf has a dx of NaN throughout; what it adds to the gradient of the weight is NaN there where it holds
    that, in x everywhere.
    """
    count = len(row)
    dy = np.asarray(dy, dtype=np.float64)
    if not np.isfinite(row).all():
        return [Exact(mpmath.nan, mpmath.nan)] * count, [mpmath.nan] * count
    if not np.isfinite(dy).all():
        finite = np.isfinite(dy)
        _, shares = gradient(norm, row, np.where(finite, dy, 0.0), weight, eps, offset, scale)
        kept = [share if is_finite else mpmath.nan for share, is_finite in zip(shares, finite, strict=True)]
        return [Exact(mpmath.nan, mpmath.nan)] * count, kept
    at = _slope(norm, row, weight, eps, offset, scale)
    if at.energy == 0:  # such rows give 0, whatever is near them
        return [Exact(mpmath.mpf(0), mpmath.mpf(0))] * count, [mpmath.mpf(0)] * count
    dy, d, factor = [Fraction(float(v)) for v in dy], at.deviations, at.factor
    g = [a * b for a, b in zip(dy, at.weights, strict=True)]
    dx = [Exact(_mpf(value) * factor, size * factor) for value, size in _across(at, g)]
    return dx, [_mpf(a * b) * factor for a, b in zip(dy, d, strict=True)]


def jvp(norm, row, tangent, weight=None, eps=1e-5, offset=0.0, scale=1.0):
    """The derivative of y at one row along a tangent: that of x, as the parameters stay.

    With d and f as for `gradient`, and t' the tangent less its mean where the norm centres::

        dy = weight * f * (t' - d * f**2 * mean(t * d))

    The mean is a sum for scale_norm, and 0 where eps is the divisor. Magnitudes are as for `gradient`. Rows without
    deviations have 0 for eps = 0, where there is no derivative.
    """
    at = _slope(norm, row, weight, eps, offset, scale)
    if at.energy == 0:
        return [Exact(mpmath.mpf(0), mpmath.mpf(0))] * len(row)
    found = zip(_across(at, [Fraction(float(v)) for v in tangent]), at.weights, strict=True)
    return [Exact(_mpf(w * value) * at.factor, _mpf(abs(w)) * at.factor * size) for (value, size), w in found]


def second(norm, row, dy, tangent, weight=None, eps=1e-5, offset=0.0, scale=1.0):
    """The derivative of dx at one row along a tangent, for one and the same dy; the norm's Hessian, times both.

    With d and f as for `gradient`, and g' and t' for g and the tangent less their means where the norm centres::

        -f**3 * (a * g' + b * t' + c * d - 3 * f**2 * a * b * d)
        a = mean(t * d), b = mean(g * d), c = mean(g' * t')

    Means are sums for scale_norm, and all is 0 where eps is the divisor. Magnitudes are as for `gradient`.
    """
    at = _slope(norm, row, weight, eps, offset, scale)
    if at.energy == 0 or not at.is_long:
        return [Exact(mpmath.mpf(0), mpmath.mpf(0))] * len(row)
    t, d, f = [Fraction(float(v)) for v in tangent], at.deviations, at.factor
    g = [Fraction(float(v)) * w for v, w in zip(dy, at.weights, strict=True)]
    g_centred, t_centred = at.centre(g), at.centre(t)
    a, b, c = at.mean(t, d), at.mean(g, d), at.mean(g_centred, t_centred)
    along = c - 3 * a * b / at.energy
    spread, sizes_g, sizes_t = at.spread(), at.sizes(g), at.sizes(t)
    size_a, size_b = at.mean(sizes_t, spread), at.mean(sizes_g, spread)
    size_along = at.mean(sizes_g, sizes_t) + 3 * size_a * size_b
    return [
        Exact(
            -_mpf(a * one + b * other + along * deviation) * f**3,
            f**2 * (size_a * size_g + size_b * size_t + size_along * h),
        )
        for one, other, deviation, size_g, size_t, h in zip(
            g_centred, t_centred, d, sizes_g, sizes_t, spread, strict=True
        )
    ]


def _integers(row):
    """The values of a row as integers times one power of two: (integers, exponent)."""
    ratios = [float(v).as_integer_ratio() for v in row]
    largest = max(denominator for _, denominator in ratios)
    return [numerator * (largest // denominator) for numerator, denominator in ratios], 1 - largest.bit_length()


def _power(exponent) -> Fraction:
    return Fraction(2) ** exponent


def _root(energy: Fraction) -> mpmath.mpf:
    """The square root; 1 where every deviation is 0 and so is eps, for such rows give 0."""
    return mpmath.sqrt(_mpf(energy)) if energy else mpmath.mpf(1)


def _mpf(value: Fraction) -> mpmath.mpf:
    return mpmath.mpf(value.numerator) / value.denominator


def ulp(magnitude, dtype: str) -> mpmath.mpf:
    """The unit in the last place of a dtype at a magnitude."""
    return mpmath.ldexp(1, _power_of_ulp(magnitude, dtype))


def _power_of_ulp(magnitude, dtype) -> int:
    digits, smallest, _ = FORMATS[dtype]
    return max(int(mpmath.frexp(magnitude)[1]) - digits, smallest) if magnitude else smallest


@functools.cache
def _far_below_largest(dtype) -> float:
    return float(FORMATS[dtype][2]) / 4


def error_in_ulp(got: float, exact: Exact, dtype: str) -> float:
    """How far a result is from the exact one; infinite where one is NaN and the other is not."""
    got = float(got)
    if math.isnan(got) or mpmath.isnan(exact.value):
        return 0.0 if mpmath.isnan(exact.value) and math.isnan(got) else float("inf")
    power = _power_of_ulp(exact.magnitude, dtype)
    if abs(got) < _far_below_largest(dtype):  # most are, and there are many
        error = abs(float(mpmath.ldexp(exact.value - got, -power)))
        return max(0.0, error - float(mpmath.ldexp(exact.slack, -power))) if exact.slack else error
    unit = mpmath.ldexp(1, power)
    largest = _mpf(FORMATS[dtype][2])
    if math.isinf(got):
        # Right only if the exact value is past the largest number, or within the allowed error of it.
        beyond = largest - exact.value * (1 if got > 0 else -1)
        return max(0.0, float(beyond / unit)) if got * exact.value > 0 else float("inf")
    if abs(exact.value) > largest:
        return float("inf") if got * exact.value <= 0 else float(max(0, largest - abs(mpmath.mpf(got))) / unit)
    return float(max(0, abs(mpmath.mpf(got) - exact.value) - exact.slack) / unit)
