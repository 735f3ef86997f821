"""Norms by conventions in exact arithmetic, with roundings at the stated places; shares no code with anynorm.

What is computed in a wide dtype is off by a little. Where that is next to the middle between two numbers of the narrow
dtype, either may come out, and everything goes on with both: a result must be one of a few numbers, mostly of one.
"""

from fractions import Fraction

import mpmath
import numpy as np

from tests.reference import FORMATS, ulp

# How far off what is computed in the wide dtype may be, relative to the size of a value: float64, and JAX's float32.
FLOAT64, FLOAT32 = mpmath.mpf(2) ** -44, mpmath.mpf(2) ** -19


def nearest(value, dtype: str):
    """The number of a dtype next to a value, of two the even one; infinite beyond the largest."""
    value = mpmath.mpf(value)
    if not mpmath.isfinite(value) or value == 0:
        return value
    unit = ulp(value, dtype)
    found = mpmath.nint(value / unit) * unit  # to even, by mpmath's own rounding
    largest = FORMATS[dtype][2]
    if abs(found) > mpmath.mpf(largest.numerator) / largest.denominator:
        return mpmath.sign(value) * mpmath.inf
    return found


def _near(values, dtype, off, least=0):
    """What may become of values that are a little off when they are rounded."""
    found = set()
    for value in values:
        room = off * max(abs(value), least)
        found |= {nearest(one, dtype) for one in (value - room, value, value + room)}
    return found


def meant(norm, convention):
    """What a convention says of a norm: layer_norm has its eps inside where another would have a least length."""
    if norm == "layer_norm" and convention.eps_place == "floor":
        return convention.replace(eps=None, eps_place="inside", statistics="wide")
    return convention


def row(norm, x, weight, bias, convention, eps, dtype, weight_dtype=None, offset=0.0, off=FLOAT64):
    """For each element the set of numbers that the norm of a row may have there."""
    convention = meant(norm, convention)
    d, root, divisors = _divided(norm, x, convention, eps, dtype, off)
    is_each, spread = convention.rounding == "each", mpmath.mpf(1)
    if norm != "scale_norm" and convention.eps_place == "floor":
        spread = mpmath.sqrt(int(len(x) * convention.portion))
    results = []
    least = 1 if norm == "layer_norm" else 0
    for i, deviation in enumerate(d):
        hats = {mpmath.mpf(0)} if root == 0 else {deviation / divisor for divisor in divisors}
        if is_each and spread != 1:
            hats = _near(hats, dtype, off, least)
        hats = {hat * spread for hat in hats}
        if convention.rounding != "once":
            hats = _near(hats, dtype, off, least)
        if weight is not None:
            factor = mpmath.mpf(float(weight[i] if np.ndim(weight) else weight)) + mpmath.mpf(offset)
            if convention.offset == "weight" and offset:
                factor = nearest(factor, weight_dtype)
            hats = {hat * factor for hat in hats}
            hats = _near(hats, dtype, off) if is_each else hats
        if bias is not None:
            hats = {hat + mpmath.mpf(float(bias[i])) for hat in hats}
        size = max(least if convention.rounding == "once" else 0, 0 if bias is None else abs(float(bias[i])))
        results.append(_near(hats, dtype, off, size))
    return results


def _divided(norm, x, convention, eps, dtype, off):
    """The deviations of a row, its root, and what they may be divided by."""
    values = [Fraction(float(one)) for one in x]
    part = values[: int(len(values) * convention.portion)]
    middle = sum(part) / len(part) if norm == "layer_norm" else Fraction(0)
    squares = sum((one - middle) ** 2 for one in part)
    is_length = norm == "scale_norm" or convention.eps_place == "floor"
    energy = squares if is_length else squares / len(part)
    if convention.eps_place == "inside" and norm != "scale_norm":
        energy += Fraction(eps)
    root = mpmath.sqrt(mpmath.mpf(energy.numerator) / energy.denominator)
    roots = _near({root}, dtype, off) if convention.statistics == "x" and root else {root}
    if convention.eps_place == "outside":
        roots = {one + mpmath.mpf(eps) for one in roots}
    elif is_length:
        roots = {max(one, mpmath.mpf(eps)) for one in roots}
    d = [mpmath.mpf((one - middle).numerator) / (one - middle).denominator for one in values]
    return d, root if squares == 0 else mpmath.mpf(1), roots


def gradient(norm, x, dy, weight, convention, eps, offset=0.0):
    """The gradient dx at one row, and dy * x_hat, by the formula of a convention; by the limit of a difference.

    The central difference with a step of 2**-60 of the row, in 80 digits, is right to 30.
    """
    convention = meant(norm, convention)
    values = [mpmath.mpf(float(one)) for one in x]
    dy = [mpmath.mpf(float(one)) for one in dy]
    n = len(values)
    part = int(n * convention.portion)
    weights = [mpmath.mpf(1)] * n
    if weight is not None:
        weights = [mpmath.mpf(float(weight[i] if np.ndim(weight) else weight)) + mpmath.mpf(offset) for i in range(n)]

    def normalized(row):
        middle = sum(row[:part]) / part if norm == "layer_norm" else 0
        squares = sum((one - middle) ** 2 for one in row[:part])
        length, root = mpmath.sqrt(squares), mpmath.sqrt(squares / part)
        place = convention.eps_place
        if norm == "scale_norm":
            divisor = length + eps if place == "outside" else max(length, mpmath.mpf(eps))
        elif place == "floor":
            divisor = max(length, mpmath.mpf(eps)) / mpmath.sqrt(part)
        else:
            divisor = root + eps if place == "outside" else mpmath.sqrt(squares / part + mpmath.mpf(eps))
        return [(one - middle) / divisor for one in row]

    def loss(row):
        return sum(a * b * c for a, b, c in zip(normalized(row), dy, weights, strict=True))

    step = max(abs(one) for one in values) * mpmath.mpf(2) ** -60
    dx = []
    for i in range(n):
        above, below = list(values), list(values)
        above[i] += step
        below[i] -= step
        dx.append((loss(above) - loss(below)) / (2 * step))
    return dx, [a * b for a, b in zip(dy, normalized(values), strict=True)]
