"""The one definition of the three norms, in calls of the Python array API standard alone.

Every norm is the same three steps over the normalized axes, with n elements to a row:

    reduce   a row -> its Moments: count, mean, sum of squared deviations (of squares where nothing is centred)
    finish   moments -> one shift and one factor; the only step in which the norms differ
    apply    (x - shift) * factor * weight + bias

There are two ways through it, fixed by the dtypes alone, so that it can be traced:

- float16, bfloat16 and float32 in a library with float64 are computed in float64. No square can overflow or underflow
  there, and its 29 spare bits absorb the rounding of any sum.
- float64, and everything in a library that stops at float32, is computed in pairs of floats (see _pairs.py). Rows are
  first multiplied by a power of two that keeps squares in range, and eps by its square.

The sums are those of the two-pass algorithm with a correction (Chan, Golub, LeVeque 1983, "Algorithms for computing
the sample variance"): deviations from an approximate mean are summed again, so that a mean of a million standard
deviations costs no accuracy.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

from anynorm._moments import Moments, rescaled, sum_of_squares
from anynorm._pairs import (
    Pair,
    add_pairs,
    multiply_pairs,
    renormalize,
    round_pair,
    split,
    sum_pair,
    two_product,
    two_sum,
)

Array = Any


class Rule(NamedTuple):
    """What tells one norm from another."""

    name: str
    centred: bool  # subtract the mean
    averaged: bool  # divide by sqrt(mean square + eps); otherwise by max(norm, eps)


LAYER_NORM = Rule("layer_norm", centred=True, averaged=True)
RMS_NORM = Rule("rms_norm", centred=False, averaged=True)
SCALE_NORM = Rule("scale_norm", centred=False, averaged=False)


class Precision(NamedTuple):
    """The dtype to compute in, and how much care it takes there."""

    dtype: Any
    digits: int = 0  # 0: the dtype has room to spare; else its significant bits, and statistics are pairs
    paired_apply: bool = False  # each element in pairs too: the result has the dtype that is computed in


# Rows are multiplied by 2**-exponent: that of the last level whose 2**(exponent + low) their largest element reaches.
# Its square then neither overflows nor loses bits, and the root mean square is above 1 for rows of up to 2**(2 * low)
# elements, so that no element with a normal result becomes subnormal on the way.
_LEVELS = {  # digits: (low, exponents)
    24: (11, (-126, -96, -60, -24, 12, 48, 84)),
    53: (20, (-1022, -676, -256, 164, 584)),
}

# A mean square below this is that of a row without deviations, and of an eps too small to divide by: the factor is 0.
# The squares of any real deviation are far above it: 2**-340 for float32 in float64, and in pairs the levels see to it.
_EMPTY = {0: 2.0**-960, 24: 2.0**-110, 53: 2.0**-960}


def reduce(xp: Any, x: Array, axes: tuple[int, ...], rule: Rule, precision: Precision) -> Moments:
    """Step 1: the moments of each row of ``x``, already of the precision's dtype."""
    count = math.prod([x.shape[axis] for axis in axes])
    if precision.digits:
        return _reduce_pairs(xp, x, axes, count, rule, precision.digits)
    mean = None
    if rule.centred:
        near = xp.sum(x, axis=axes, keepdims=True) / max(count, 1)
        rest = xp.sum(x - near, axis=axes, keepdims=True) / max(count, 1)
        mean = near + rest, None
        x = x - mean[0]
    return Moments(count, mean, (xp.sum(x * x, axis=axes, keepdims=True), None), None, xp)


def _reduce_pairs(xp: Any, x: Array, axes: tuple[int, ...], count: int, rule: Rule, digits: int) -> Moments:
    """Step 1 where no wider dtype exists."""

    def rough_sum(values: Array) -> Array:
        # For what needs half the digits. A plain sum of float64 has those in any order; one of float32 has not.
        if digits == 53:
            return xp.sum(values, axis=axes, keepdims=True)
        return sum_pair(xp, values, axes, digits)[0]

    unit = _unit(xp, xp.max(xp.abs(x), axis=axes, keepdims=True), digits)
    x = x * unit
    mean, low = None, None
    if rule.centred:
        near = rough_sum(x) / count
        x, low = two_sum(x, -near)
        rest = (sum_pair(xp, x, axes, digits)[0] + rough_sum(low)) / count
        mean = near, rest
        x, low = renormalize(x, low - rest)
    # x**2 = high**2 + (x - high) * (x + high): the first is exact, the second small.
    high, tail = split(x, digits)
    small = tail * (x + high)
    if low is not None:
        small = small + 2.0 * x * low
    squares, error = sum_pair(xp, high * high, axes, digits)
    return Moments(count, mean, renormalize(squares, error + rough_sum(small)), unit, xp)


def _deviations(x: Array, mean: Pair) -> Pair:
    """The pair x - mean; its high part is x - mean rounded once."""
    high, low = two_sum(x, -mean[0])
    return renormalize(high, low - mean[1])


def finish(
    xp: Any, moments: Moments, rule: Rule, eps: float, precision: Precision
) -> tuple[Pair | None, Pair, Array | None]:
    """Step 2: the shift, the factor, and the unit that both are in."""
    if moments._mean is not None and not rule.centred:
        moments = Moments(moments.count, None, sum_of_squares(moments), moments._unit, xp)
    if moments._unit is not None:
        return _finish_pairs(xp, moments, moments._unit, rule, eps, precision.digits)
    squares = moments._squares[0]
    if not rule.averaged:
        return None, (_inverse_norm(xp, squares, eps), None), None
    mean_square = squares / max(moments.count, 1) + eps  # of wide values, so neither quotient nor sum overflows
    if rule.centred and eps > _EMPTY[0]:  # no row is empty, and centring has made NaN of every row that holds Inf
        return moments._mean, (1.0 / xp.sqrt(mean_square), None), None
    return moments._mean, (_inverse_root(xp, mean_square, _EMPTY[0]), None), None


def _finish_pairs(
    xp: Any, moments: Moments, own_unit: Array, rule: Rule, eps: float, digits: int
) -> tuple[Pair | None, Pair, Array]:
    """Step 2 where no wider dtype exists: factor = sqrt(numerator / energy)."""
    numerator = float(moments.count) if rule.averaged else 1.0
    # The unit must suit eps as well as the row; below the unit that suits eps, squares vanish beside it.
    level, eps_pair = _eps_term(eps, moments.count if rule.averaged else 0, digits)
    unit = xp.where(own_unit > 2.0**-level, 2.0**-level, own_unit)
    shift, squares = rescaled(moments, unit / own_unit)
    eps_pair = _eps_in_unit(xp, eps_pair, level, unit, digits)
    if rule.averaged:
        energy = add_pairs(squares, eps_pair)
    else:
        below = squares[0] < eps_pair[0]
        energy = xp.where(below, eps_pair[0], squares[0]), xp.where(below, eps_pair[1], squares[1])
    return shift if rule.centred else None, _inverse_root_pair(xp, energy, numerator, digits), unit


def apply(
    xp: Any,
    x: Array,
    shift: Pair | None,
    factor: Pair,
    unit: Array | None,
    weight: Pair | None,
    bias: Array | None,
    precision: Precision,
) -> Array:
    """Step 3: (x - shift) * factor * weight + bias, in the precision's dtype."""
    if unit is not None:
        x = x * unit
    if precision.paired_apply or (weight is not None and weight[1] is not None):
        return _apply_pairs(xp, x, shift, factor, weight, bias, precision.digits)
    if shift is not None:
        x = x - shift[0] if shift[1] is None else _deviations(x, shift)[0]
    y = x * factor[0]
    if weight is not None:
        y = y * weight[0]
    return y if bias is None else y + bias


def widen_weight(xp: Any, weight: Array, offset: float, precision: Precision) -> Pair:
    """Return weight + offset, formed in the wide type; a pair where that rounds."""
    if not offset and not precision.paired_apply:
        return weight, None  # multiplication widens it
    weight = xp.astype(weight, precision.dtype, copy=False)
    if not (offset and precision.digits):
        return (weight + offset if offset else weight), None
    high, low = _host_pair("weight_offset", offset, precision.digits)
    total, error = two_sum(weight, high)
    return total, error + low


def widen_scale(scale: float, precision: Precision) -> Pair:
    """Return a number of the host as a weight."""
    return _host_pair("scale", scale, precision.digits) if precision.paired_apply else (scale, None)


def _host_pair(argument: str, value: float, digits: int) -> Pair:
    """A number of the host as a pair; ValueError where the dtype cannot hold it."""
    if digits == 24 and abs(value) > 3.4e38:
        raise ValueError(f"{argument} must be at most 3.4e38 where arrays are computed in float32, got {value}")
    return round_pair((value, 0.0), digits)


def _unit(xp: Any, largest: Array, digits: int) -> Array:
    """The power of two that brings rows with this largest element into range."""
    low, exponents = _LEVELS[digits]
    unit = xp.full_like(largest, 2.0 ** -exponents[0])
    for exponent in exponents[1:]:
        unit = xp.where(largest >= 2.0 ** (exponent + low), 2.0**-exponent, unit)
    return unit


def _eps_term(eps: float, count: int, digits: int) -> tuple[int, Pair]:
    """The level that suits eps, and in its unit count * eps as a pair; for count 0, eps**2."""
    # Numbers of the host; torch.compile has to fold all of it, so no Fraction and no cache.
    low, exponents = _LEVELS[digits]
    largest = 1e76 if count else 3.4e38
    if digits == 24 and eps > largest:
        raise ValueError(f"eps must be at most {largest} where arrays are computed in float32, got {eps}")
    size = math.sqrt(eps) if count else eps
    exponent = exponents[0]
    for candidate in exponents:
        if size >= 2.0 ** (candidate + low):
            exponent = candidate
    mantissa, power = math.frexp(eps)
    power = power - 2 * exponent if count else 2 * (power - exponent)
    term, error = two_product(mantissa, float(count) if count else mantissa, 53)
    return exponent, round_pair((math.ldexp(term, power), math.ldexp(error, power)), digits)


def _eps_in_unit(xp: Any, pair: Pair, level: int, unit: Array, digits: int) -> Pair:
    """The term of eps, given in the unit of its own level, in the unit of each row."""
    # Chosen and not multiplied: XLA would gather the literals of pair * (unit / literal)**2 and square the bare unit.
    high, low = xp.full_like(unit, pair[0]), xp.full_like(unit, pair[1])
    for exponent in _LEVELS[digits][1]:
        if exponent > level:
            at = unit == 2.0**-exponent
            smaller = 2.0 ** (2 * (level - exponent))
            high, low = xp.where(at, pair[0] * smaller, high), xp.where(at, pair[1] * smaller, low)
    return high, low


def _inverse_norm(xp: Any, squares: Array, eps: float) -> Array:
    """1 / max(sqrt(squares), eps); eps is not squared where it would overflow, and is no divisor where too small."""
    inverse_eps = 1.0 / eps if eps > 1e-300 else 0.0
    below = squares <= eps * eps
    root = 1.0 / xp.sqrt(xp.where(below, 1.0, squares))
    return xp.where(below, inverse_eps, xp.where(xp.isfinite(squares), root, xp.nan))


def _inverse_root(xp: Any, mean_square: Array, floor: float) -> Array:
    """1 / sqrt(mean_square); 0 below the floor, where every deviation is 0; NaN for a row that holds NaN or Inf.

    The reciprocal comes last: that of mean_square may be out of range, and the derivative of it is sooner.
    """
    empty = mean_square < floor
    root = 1.0 / xp.sqrt(xp.where(empty, 1.0, mean_square))
    return xp.where(empty, 0.0, xp.where(xp.isfinite(mean_square), root, xp.nan))


def _inverse_root_pair(xp: Any, energy: Pair, numerator: float, digits: int) -> Pair:
    """sqrt(numerator / energy) as a pair, after one step of Newton with the residual formed exactly."""
    floor = _EMPTY[digits]
    empty = energy[0] < floor
    high = xp.where(empty, 1.0, energy[0])
    root = _inverse_root(xp, energy[0] / numerator, floor / numerator)
    square, square_error = two_product(root, root, digits)
    product, product_error = two_product(square, high, digits)
    residual = ((numerator - product) - product_error) - square_error * high - square * energy[1]
    step = xp.where(empty, 0.0, root * residual / (2.0 * numerator))
    return renormalize(root, step)


def _apply_pairs(
    xp: Any, x: Array, shift: Pair | None, factor: Pair, weight: Pair | None, bias: Array | None, digits: int
) -> Array:
    """Step 3 with every intermediate a pair, rounded once at the end."""
    # The low half of a small product would be subnormal, which some libraries flush to zero.
    size = x if shift is None else x - shift[0]
    size = xp.abs(size * factor[0] if weight is None else size * factor[0] * weight[0])
    small = size if bias is None else size + xp.abs(bias)
    boost = xp.where(small < 2.0**60, 2.0**64, xp.ones_like(x))
    high, low = x, 0.0
    if shift is not None:
        high, low = _deviations(x, shift)
    high, low = multiply_pairs((high * boost, low * boost), factor, digits)
    if weight is not None:
        product, error = two_product(high, weight[0], digits)
        error = error + low * weight[0]
        high, low = product, error if weight[1] is None else error + high * weight[1]
    if bias is not None:
        high, error = two_sum(high, bias * boost)
        low = low + error
    # Where the product overflows, its error term is meaningless and the infinity stands.
    return xp.where(xp.isfinite(low), high + low, high) / boost
