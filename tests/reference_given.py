"""Exact derivatives by way of moments: of norms that are given some, and of moments themselves."""

from fractions import Fraction

import mpmath

from tests.reference import Exact, _mpf, mean_and_variance

NOTHING = Exact(mpmath.mpf(0), mpmath.mpf(0))


def by_given(norm, row, dy, other, weight=None, eps=1e-5, offset=0.0, scale=1.0):
    """(dx, dy * x_hat, by the mean, by the variance) of a norm at a row, given the moments of another one.

    With d = x - mean (without centring x), f the factor and g = dy * weight::

        dx = f * g,  by the mean -f * sum(g),  by the variance -f**3 / 2 * sum(g * d)

    Without centring the mean square is variance + mean**2, so by the mean it is 2 * mean * (by the variance); for
    scale_norm, whose length is sqrt(count * mean square), that is count times as much, and 0 where eps is the divisor.
    Magnitudes are sums of those of the terms.
    """
    count, (mean, variance) = len(other), mean_and_variance(other)
    centred, is_long = norm == "layer_norm", True
    energy = variance + (0 if centred else mean**2)
    if norm == "scale_norm":
        energy, least = count * energy, Fraction(eps) ** 2
        is_long, energy = energy >= least, max(energy, least)
    else:
        energy += Fraction(eps)
    if energy == 0:
        return [NOTHING] * len(row), [mpmath.mpf(0)] * len(row), NOTHING, NOTHING
    f = 1 / mpmath.sqrt(_mpf(energy))
    d = [Fraction(float(v)) - (mean if centred else 0) for v in row]
    upstream = [Fraction(float(v)) for v in dy]
    one = Fraction(scale) if norm == "scale_norm" else 1
    weights = [one] * len(row) if weight is None else [Fraction(float(w)) + Fraction(offset) for w in weight]
    g = [a * b for a, b in zip(upstream, weights, strict=True)]
    dx = [Exact(_mpf(v) * f, abs(_mpf(v)) * f) for v in g]
    products = [a * b for a, b in zip(g, d, strict=True)]
    half = f**3 / 2 * (1 if norm != "scale_norm" else count if is_long else 0)
    by_variance = Exact(-_mpf(sum(products)) * half, _mpf(sum(map(abs, products))) * half)
    if centred:
        by_mean = Exact(-_mpf(sum(g)) * f, _mpf(sum(map(abs, g))) * f)
    else:
        size = sum(abs(Fraction(float(v))) for v in other) / count
        by_mean = Exact(2 * _mpf(mean) * by_variance.value, 2 * _mpf(size) * by_variance.magnitude)
    return dx, [_mpf(a * b) * f for a, b in zip(upstream, d, strict=True)], by_mean, by_variance


def by_moments(row, by_mean, by_variance):
    """The gradient dx of a loss by way of the moments of a row: (by_mean + 2 * by_variance * (x - mean)) / n."""
    count, (mean, _) = len(row), mean_and_variance(row)
    found = []
    for value in row:
        deviation = Fraction(float(value)) - mean
        terms = Fraction(float(by_mean)) / count, 2 * Fraction(float(by_variance)) * deviation / count
        found.append(Exact(_mpf(sum(terms)), _mpf(sum(map(abs, terms)))))
    return found


def as_column(values, slack=0.0):
    """One exact value for each row, as rows of one element; an error of that part of the magnitude does not count."""
    return [[Exact(value.value, value.magnitude, slack * value.magnitude)] for value in values]
