"""The three steps of the definition where no wider dtype exists: float64, and float32 in a library that has no more.

Statistics are pairs of floats (see _pairs.py). Rows are first multiplied by their unit, a power of two that keeps
squares in range, and eps by its square.
"""

from __future__ import annotations

import itertools
import math
from typing import Any

from anynorm._moments import Moments, rescaled
from anynorm._pairs import (
    Pair,
    add_pairs,
    largest,
    multiply_pairs,
    ratio_pair,
    renormalize,
    round_pair,
    split,
    sum_pair,
    two_product,
    two_sum,
)
from anynorm._wording import sentence

Array = Any

# Rows are multiplied by 2**-exponent: that of the last level whose 2**(exponent + low) their largest element reaches.
# Its square then neither overflows nor loses bits, and the root mean square is above 1 for rows of up to 2**(2 * low)
# elements, so that no element with a normal result becomes subnormal on the way.
_LEVELS = {  # digits: (low, exponents)
    24: (11, (-126, -96, -60, -24, 12, 48, 84)),
    53: (20, (-1022, -676, -256, 164, 584)),
}

# An element smaller than this in the unit of its row may become subnormal when it is multiplied by the factor. With
# digits to spare, a unit is only there for an eps that is far above any row.
_FAR_BELOW = {0: math.inf, 24: 2.0**-60, 53: 2.0**-500}
# One larger than this is there for given moments alone, and may be out of range before a small weight brings it back.
_FAR_ABOVE = {0: math.inf, 24: 2.0**90, 53: 2.0**900}

# A sum of squares below this is that of a row without deviations, and of an eps too small to divide by; the factor is
# 0 then. The levels see to it that the squares of any real deviation are far above it.
_EMPTY = {24: 2.0**-110, 53: 2.0**-960}

# A row of scale_norm is divided by eps where the squares of x_hat add up to less than 1 by this much, and else to 1;
# with digits to spare and in pairs of floats. XLA leaves little of the low halves of float32.
BELOW_ONE = {0: 2.0**-40, 24: 2.0**-20, 53: 2.0**-40}

# Of an eps above this 1 / sqrt(eps) is in range.
_LEAST_ALONE = {24: 2.0**-200, 53: 0.0}

# What is left of a gradient that lies along x_hat may be smaller than its terms by so many bits.
_CANCELLED = 20

# Factors below the first number or from the second on are multiplied by the third or its inverse: two_product is exact
# for what lies between, no product of two such factors leaves the range of the dtype, and neither do the scales.
_RANGE = {24: (2.0**-20, 2.0**64, 2.0**62), 53: (2.0**-200, 2.0**500, 2.0**510)}


def reduce(
    xp: Any, x: Array, axes: tuple[int, ...], count: int, centred: bool, digits: int, careful: bool = False
) -> Moments:
    """Step 1: the moments of each row; careful, with squares that the low half of their sum says something of."""

    def rough_sum(values: Array) -> Array:
        # For what needs half the digits. A plain sum of float64 has those in any order; one of float32 has not.
        if digits == 53:
            return xp.sum(values, axis=axes, keepdims=True)
        return sum_pair(xp, values, axes, digits)[0]

    unit = unit_of(xp, x, axes, digits)
    x = x * unit
    mean, low = None, None
    if centred:
        near = rough_sum(x) / count
        x, low = two_sum(x, -near)
        rest = (sum_pair(xp, x, axes, digits)[0] + rough_sum(low)) / count
        mean = near, rest
        x, low = renormalize(x, low - rest)
    if careful:
        square, small = two_product(x, x, digits)
    else:
        # x**2 = high**2 + (x - high) * (x + high): the first is exact, the second small.
        high, tail = split(x, digits)
        square, small = high * high, tail * (x + high)
    if low is not None:
        small = small + 2.0 * x * low
    squares, error = sum_pair(xp, square, axes, digits, _CANCELLED if careful else 0)
    return Moments(count, mean, renormalize(squares, error + rough_sum(small)), unit, xp)


def deviations(x: Array, mean: Pair) -> Pair:
    """The pair x - mean; its high part is x - mean rounded once."""
    high, low = two_sum(x, -mean[0])
    return renormalize(high, low - mean[1])


def finish(
    xp: Any, moments: Moments, own_unit: Array, averaged: bool, eps: float, digits: int
) -> tuple[Pair, Pair, Array]:
    """Step 2: shift, factor = sqrt(numerator / energy), and the unit that both are in."""
    numerator = float(moments.count) if averaged else 1.0
    # The unit must suit eps as well as the row; below the unit that suits eps, squares vanish beside it.
    level, eps_pair = _eps_term(eps, moments.count if averaged else 0, digits)
    unit = xp.where(own_unit > 2.0**-level, 2.0**-level, own_unit)
    shift, squares = rescaled(moments, unit / own_unit)
    eps_pair = _eps_in_unit(xp, eps_pair, level, unit, digits)
    if averaged:
        energy = add_pairs(squares, eps_pair)
    else:
        below = squares[0] < eps_pair[0]
        energy = xp.where(below, eps_pair[0], squares[0]), xp.where(below, eps_pair[1], squares[1])
    return shift, _inverse_root(xp, energy, numerator, digits), unit


def weighted_early(xp: Any, x: Array, unit: Array, weight: Pair, like: Array, digits: int) -> tuple[Array, Pair]:
    """Return x * unit, with the weight in those elements whose x_hat would leave the range before it, and what is left.

    Only without centring, which leaves an error of the row's own scale in every element.
    """
    high = xp.full_like(like, weight[0]) if isinstance(weight[0], float) else weight[0]
    scaled = x * unit
    size, large = xp.abs(scaled), xp.abs(high) > 1.0
    early = (size < _FAR_BELOW[digits]) & large | (size > _FAR_ABOVE[digits]) & ~large
    # In the order in which nothing underflows, and nothing overflows, that does not in the end.
    weighted = xp.where((xp.abs(x) < 1.0) == (unit < 1.0), x * high * unit, scaled * high)
    low = None if weight[1] is None else xp.where(early, 0.0, weight[1] + xp.zeros_like(high))
    return xp.where(early, weighted, scaled), (xp.where(early, 1.0, high), low)


def apply(
    xp: Any, x: Array, shift: Pair | None, factor: Pair, weight: Pair | None, bias: Array | None, digits: int
) -> Array:
    """Step 3 with every intermediate a pair, rounded once at the end."""
    high, low = (x, 0.0) if shift is None else deviations(x, shift)
    boost = _boost(xp, high * factor[0], digits)
    high, low = multiply_pairs((high * boost, low * boost), factor, digits)
    back = 1.0 / boost
    if weight is not None:
        own = _boost(xp, weight[0], digits)
        size = weight[0] * own
        product, error = two_product(high, size, digits)
        error = error + low * size
        high, low = product, error if weight[1] is None else error + high * (weight[1] * own)
        back = back / own
    if bias is not None:
        # Scaled up together if both are small, for the low half of their sum would be subnormal.
        boost = xp.where((xp.abs(high * back) < 1.0) & (xp.abs(bias) < 1.0), _RANGE[digits][2], xp.ones_like(high))
        high, error = two_sum(high * (back * boost), bias * boost)
        low = low * (back * boost) + error
        back = 1.0 / boost
    # Where a parameter is infinite, the low half is NaN and the infinity stands.
    return xp.where(xp.isfinite(low), high + low, high) * back


def derive(
    xp: Any,
    x: Array,
    dy: Array,
    found: tuple[Pair | None, Pair, Array],
    weight: Pair | None,
    axes: tuple[int, ...],
    count: int,
    averaged: bool,
    eps: float,
    digits: int,
) -> tuple[Array, Pair]:
    """The derivative of the definition, every intermediate a pair."""
    shift, factor, unit = found

    def mean(values: Pair) -> Pair:
        high, low = sum_pair(xp, values[0], axes, digits, _CANCELLED)
        low = low + xp.sum(values[1], axis=axes, keepdims=True)
        return multiply_pairs((high, low), ratio_pair(1, max(count, 1), digits), digits)

    x = x * unit
    x_hat = x, 0.0 * x
    if shift is not None:
        x_hat = deviations(x, shift)
        # A mean of a million deviations leaves its pair an error that they would feel.
        left = mean(x_hat)
        x_hat = add_pairs(x_hat, (-left[0], -left[1]))
    x_hat = multiply_pairs(x_hat, factor, digits)
    own = unit_of(xp, dy, axes, digits)
    back = 1.0 / own
    units = [back]
    g = (dy * own, 0.0 * dy)
    share = multiply_pairs(x_hat, g, digits)
    if weight is not None:
        high = xp.full_like(own, weight[0]) if isinstance(weight[0], float) else weight[0]
        of_weight = unit_of(xp, high, tuple(range(len(high.shape))), digits)
        units.append(1.0 / of_weight)
        g = multiply_pairs(g, (high * of_weight, 0.0 if weight[1] is None else weight[1] * of_weight), digits)
    across = mean(share if weight is None else multiply_pairs(x_hat, g, digits))
    if not averaged:
        length = mean(multiply_pairs(x_hat, x_hat, digits))
        short = (length[0] - 1.0) + length[1] < -BELOW_ONE[digits]
        # Where dy holds NaN or Inf it is NaN, and makes NaN of the whole row.
        across = xp.where(short, 0.0 * across[0], across[0]), xp.where(short, 0.0 * across[1], across[1])
    rest = add_pairs(g, multiply_pairs(x_hat, (-across[0], -across[1]), digits))
    if shift is not None:
        middle = mean(g)
        rest = add_pairs(rest, (-middle[0], -middle[1]))
    if averaged and eps > _LEAST_ALONE[digits]:
        factor, unit = _of_eps_alone(xp, factor, unit, eps, digits)
    dx = multiply_pairs(rest, factor, digits)
    return _times_powers(xp, dx[0] + dx[1], [unit, *units]), (share[0] * back, share[1] * back)


def _of_eps_alone(xp: Any, factor: Pair, unit: Array, eps: float, digits: int) -> tuple[Pair, Array]:
    """Factor and unit, where a row without deviations has those of eps, which may have vanished in the row's unit."""
    flat, (high, low), of_eps = factor[0] == 0.0, *_inverse_root_of(eps, digits)
    return (xp.where(flat, high, factor[0]), xp.where(flat, low, factor[1])), xp.where(flat, of_eps, unit)


def _times_powers(xp: Any, value: Array, powers: list[Array]) -> Array:
    """A number times powers of two, out of range only where all of them together lead there."""
    left: list[Array] = []
    for power in powers:
        # What leads up and what leads down become one, so that all that is left goes the same way.
        for i, other in enumerate(left):
            opposite = (power > 1.0) != (other > 1.0)
            product, one = power * other, xp.ones_like(other)
            left[i], power = xp.where(opposite, one, other), xp.where(opposite, product, power)
        left.append(power)
    for power in left:
        value = value * power
    return value


def host_pair(argument: str, value: float, digits: int) -> Pair:
    """A number of the host as a pair; ValueError where the dtype cannot hold it."""
    if digits == 24 and abs(value) > 3.4e38:
        must = "be at most 3.4e38 where arrays are computed in float32"
        raise ValueError(sentence(argument, must, str(value), "pass a smaller one"))
    return round_pair((value, 0.0), digits)


def _boost(xp: Any, factor: Array, digits: int) -> Array:
    """The power of two by which a factor comes to lie where two_product is exact."""
    small, large, step = _RANGE[digits]
    size = xp.abs(factor)
    return xp.where(size < small, step, xp.where(size < large, xp.ones_like(size), 1.0 / step))


def unit_of(xp: Any, values: Array, axes: tuple[int, ...], digits: int) -> Array:
    """The power of two that brings rows into range; for a row with NaN one that keeps its other elements there."""
    low, exponents = _LEVELS[digits]
    magnitude = largest(xp, values, axes) if axes else xp.abs(values)
    unit = xp.full_like(magnitude, 2.0 ** -exponents[-1])
    for exponent, above in reversed(list(itertools.pairwise(exponents))):
        unit = xp.where(magnitude < 2.0 ** (above + low), 2.0**-exponent, unit)
    return unit


def _eps_term(eps: float, count: int, digits: int) -> tuple[int, Pair]:
    """The level that suits eps, and in its unit count * eps as a pair; for count 0, eps**2."""
    # Numbers of the host; torch.compile has to fold all of it, so no Fraction and no cache.
    low, exponents = _LEVELS[digits]
    largest = 1e76 if count else 3.4e38
    if digits == 24 and eps > largest:
        must = f"be at most {largest} where arrays are computed in float32"
        raise ValueError(sentence("eps", must, str(eps), "pass a smaller one"))
    size = math.sqrt(eps) if count else eps
    exponent = exponents[0]
    for candidate in exponents:
        if size >= 2.0 ** (candidate + low):
            exponent = candidate
    mantissa, power = math.frexp(eps)
    power = power - 2 * exponent if count else 2 * (power - exponent)
    term, error = two_product(mantissa, float(count) if count else mantissa, 53)
    return exponent, round_pair((math.ldexp(term, power), math.ldexp(error, power)), digits)


def _inverse_root_of(eps: float, digits: int) -> tuple[Pair, float]:
    """1 / sqrt(eps) as a pair of numbers of the host near 1, and the power of two that it is to be multiplied by."""
    mantissa, power = math.frexp(eps)
    if power % 2:
        mantissa, power = mantissa * 2.0, power - 1
    high = 1.0 / math.sqrt(mantissa)
    square, square_error = two_product(high, high, 53)
    product, error = two_product(square, mantissa, 53)
    low = high * (((1.0 - product) - error) - square_error * mantissa) / 2.0
    return round_pair((high, low), digits), math.ldexp(1.0, -power // 2)


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


def _inverse_root(xp: Any, energy: Pair, numerator: float, digits: int) -> Pair:
    """sqrt(numerator / energy) as a pair; 0 for an empty row, NaN for one that holds NaN or Inf.

    One step of Newton, with the residual formed exactly, after a root whose reciprocal comes last: that of the energy
    may be out of range, and the derivative of it is sooner.
    """
    empty = energy[0] < _EMPTY[digits]
    high = xp.where(empty, 1.0, energy[0])
    root = xp.where(xp.isfinite(high), 1.0 / xp.sqrt(high / numerator), xp.nan)
    square, square_error = two_product(root, root, digits)
    product, product_error = two_product(square, high, digits)
    residual = ((numerator - product) - product_error) - square_error * high - square * energy[1]
    root, step = xp.where(empty, 0.0, root), xp.where(empty, 0.0, root * residual / (2.0 * numerator))
    return renormalize(root, step)
