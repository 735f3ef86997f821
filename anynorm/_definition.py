"""The one definition of the three norms, in calls of the Python array API standard alone.

Every norm is the same three steps over the normalized axes, with n elements to a row:

    reduce   a row -> its Moments: count, mean, sum of squared deviations (of squares where nothing is centred)
    finish   moments -> one shift and one factor; the only step in which the norms differ
    apply    (x - shift) * factor * weight + bias

The derivative needs no more than the shift and the factor (see derive).

There are two ways through it, fixed by the dtypes alone, so that it can be traced:

- float16, bfloat16 and float32 in a library with float64 are computed in float64. No square can overflow or underflow
  there, and its 29 spare bits absorb the rounding of any sum.
- float64, and everything in a library that stops at float32, is computed in pairs of floats: see _paired.py.

The sums are those of the two-pass algorithm with a correction (Chan, Golub, LeVeque 1983, "Algorithms for computing
the sample variance"): deviations from an approximate mean are summed again, so that a mean of a million standard
deviations costs no accuracy.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

from anynorm import _paired
from anynorm._moments import Moments, sum_of_squares
from anynorm._pairs import Pair, two_sum

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


# A mean square below this is that of a row without deviations, and of an eps too small to divide by: the factor is 0.
# The squares of any real deviation of float32 are far above it, at 2**-340 and more.
_EMPTY = 2.0**-960

# No finite row of float32 is as long.
_LARGE_LENGTH = 2.0**800


def reduce(
    xp: Any, x: Array, axes: tuple[int, ...], rule: Rule, precision: Precision, careful: bool = False
) -> Moments:
    """Step 1: the moments of each row of ``x``, already of the precision's dtype; more careful ones for `derive`."""
    count = math.prod([x.shape[axis] for axis in axes])
    if precision.digits:
        return _paired.reduce(xp, x, axes, count, rule.centred, precision.digits, careful)
    mean = None
    if rule.centred:
        near = xp.sum(x, axis=axes, keepdims=True) / max(count, 1)
        rest = xp.sum(x - near, axis=axes, keepdims=True) / max(count, 1)
        mean = near + rest, None
        x = x - mean[0]
    return Moments(count, mean, (xp.sum(x * x, axis=axes, keepdims=True), None), None, xp)


def finish(
    xp: Any, moments: Moments, rule: Rule, eps: float, precision: Precision
) -> tuple[Pair | None, Pair, Array | None]:
    """Step 2: the shift, the factor, and the unit that both are in."""
    if moments._mean is not None and not rule.centred:
        moments = Moments(moments.count, None, sum_of_squares(moments), moments._unit, xp)
    if moments._unit is not None:
        shift, factor, unit = _paired.finish(xp, moments, moments._unit, rule.averaged, eps, precision.digits)
        return shift if rule.centred else None, factor, unit
    squares = moments._squares[0]
    if not rule.averaged:
        unit = None
        if eps > _LARGE_LENGTH:  # 1 / eps and x / eps may be subnormal, whatever the scale makes of them
            unit, eps = xp.full_like(squares, 2.0**-500), eps * 2.0**-500
        return None, (_inverse_norm(xp, squares, eps), None), unit
    mean_square = squares / max(moments.count, 1) + eps  # of wide values, so neither quotient nor sum overflows
    if rule.centred and eps > _EMPTY:  # no row is empty, and centring has made NaN of every row that holds Inf
        return moments._mean, (1.0 / xp.sqrt(mean_square), None), None
    return moments._mean, (_inverse_root(xp, mean_square, _EMPTY), None), None


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
    if unit is not None and shift is None and weight is not None:
        x, weight = _paired.weighted_early(xp, x, unit, weight, factor[0], precision.digits)
    elif unit is not None:
        x = x * unit
    if precision.paired_apply or (weight is not None and weight[1] is not None):
        return _paired.apply(xp, x, shift, factor, weight, bias, precision.digits)
    if shift is not None and precision.digits:
        x = _paired.deviations(x, shift)[0]
    elif shift is not None:
        x = x - shift[0]
        x = x if shift[1] is None else x - shift[1]
    y = x * factor[0]
    if weight is not None:
        y = y * weight[0]
    return y if bias is None else y + bias


def derive(
    xp: Any,
    x: Array,
    dy: Array,
    found: tuple[Pair | None, Pair, Array | None],
    weight: Pair | None,
    axes: tuple[int, ...],
    rule: Rule,
    eps: float,
    precision: Precision,
) -> tuple[Array, Pair]:
    """The gradient dx, and dy * x_hat, whose sum over all rows is the gradient of the weight.

    With x_hat = (x - shift) * factor and g = dy * weight::

        dx = factor * (g - mean(g) - x_hat * mean(g * x_hat))

    where mean(g) belongs to centring. For scale_norm the last mean is a sum, and 0 where eps is the divisor. ``found``
    is what `finish` returns.
    """
    count = math.prod([x.shape[axis] for axis in axes]) if rule.averaged else 1
    if precision.digits:
        return _paired.derive(xp, x, dy, found, weight, axes, count, rule.averaged, eps, precision.digits)
    shift, (factor, _), unit = found
    x_hat = x if unit is None else x * unit
    if shift is not None:
        x_hat = x_hat - shift[0] if shift[1] is None else _paired.deviations(x_hat, shift)[0]
        # A mean of a million deviations is rounded by more than they are.
        x_hat = x_hat - xp.sum(x_hat, axis=axes, keepdims=True) / max(count, 1)
    x_hat = x_hat * factor
    rest = dy if weight is None else dy * weight[0]
    if rule.centred:
        # Before it is multiplied by x_hat, whose own mean is not 0 to the last bit.
        rest = rest - xp.sum(rest, axis=axes, keepdims=True) / max(count, 1)
    across = xp.sum(rest * x_hat, axis=axes, keepdims=True) / max(count, 1)
    # Of finite numbers it is finite, whatever the row: NaN or Inf in dy makes NaN of all of it.
    across = xp.where(xp.isfinite(across), across, xp.nan)
    if not rule.averaged:
        short = xp.sum(x_hat * x_hat, axis=axes, keepdims=True) < 1.0 - _paired.BELOW_ONE[0]
        across = xp.where(short, 0.0 * across, across)
    rest = rest - x_hat * across
    dx = rest * factor
    return dx if unit is None else dx * unit, (dy * x_hat, None)


def widen_weight(xp: Any, weight: Array, offset: float, precision: Precision) -> Pair:
    """Return weight + offset, formed in the wide type; a pair where that rounds."""
    if not offset and not precision.digits:
        return weight, None  # multiplication widens it, and in its derivative sums are narrowed
    weight = xp.astype(weight, precision.dtype, copy=False)
    if not (offset and precision.digits):
        return (weight + offset if offset else weight), None
    high, low = _paired.host_pair("weight_offset", offset, precision.digits)
    total, error = two_sum(weight, high)
    return total, error + low


def widen_scale(scale: float, precision: Precision) -> Pair:
    """Return a number of the host as a weight."""
    return _paired.host_pair("scale", scale, precision.digits) if precision.paired_apply else (scale, None)


def _inverse_norm(xp: Any, squares: Array, eps: float) -> Array:
    """1 / max(sqrt(squares), eps); eps is not squared where it would overflow, and is no divisor where too small."""
    inverse_eps = 1.0 / eps if eps > 1e-300 else 0.0
    below = squares <= min(eps * eps, 2.0**1000)  # past that only rows with Inf are, and eps * eps may be Inf too
    root = 1.0 / xp.sqrt(xp.where(below, 1.0, squares))
    return xp.where(below, inverse_eps, xp.where(xp.isfinite(squares), root, xp.nan))


def _inverse_root(xp: Any, mean_square: Array, floor: float) -> Array:
    """1 / sqrt(mean_square); 0 below the floor, where every deviation is 0; NaN for a row that holds NaN or Inf.

    The reciprocal comes last: that of mean_square may be out of range, and the derivative of it is sooner.
    """
    empty = mean_square < floor
    root = 1.0 / xp.sqrt(xp.where(empty, 1.0, mean_square))
    return xp.where(empty, 0.0, xp.where(xp.isfinite(mean_square), root, xp.nan))
