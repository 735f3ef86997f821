"""Statistics of two pieces of the same rows -> those of the whole, and of one unit -> of another.

Chan, Golub, LeVeque 1983, "Algorithms for computing the sample variance".
"""

from __future__ import annotations

import math
from typing import Any

from anynorm._definition.counting import (
    by_row,
    count_as_pair,
    multiplier,
    products_share,
    share,
    share_as_pair,
)
from anynorm._definition.norms import Precision, Rule, Statistics, Step, finish
from anynorm._definition.pairs import Pair, add_pairs, multiply_pairs, two_sum
from anynorm._definition.scaling import are_one, largest_unit

Array = Any


def merge(xp: Any, a: Statistics, b: Statistics) -> Statistics:
    """The statistics of two pieces together."""
    like = next((one.elements for one in (a, b) if by_row(one.elements)), None)
    if like is None:
        return _merge_some(xp, a, b) if a.elements and b.elements else (a if a.elements else b)
    a, b = (one if by_row(one.elements) else one._replace(elements=xp.full_like(like, one.elements)) for one in (a, b))
    # Rows of which one piece has no element are those of the other, to the last bit.
    return _where(xp, b.elements == 0, a, _where(xp, a.elements == 0, b, _merge_some(xp, a, b)))


def _merge_some(xp: Any, a: Statistics, b: Statistics) -> Statistics:
    """Merge statistics of one element or more."""
    return _merge_plain(xp, a, b) if a.unit is None or b.unit is None else _merge_paired(xp, a, b, a.unit, b.unit)


def _where(xp: Any, condition: Array, a: Statistics, b: Statistics) -> Statistics:
    """The rows of one where a condition holds, those of the other elsewhere; what one lacks is 0."""

    def part(one: Array | None, other: Array | None) -> Array | None:
        if one is None and other is None:
            return None
        return xp.where(condition, 0.0 if one is None else one, 0.0 if other is None else other)

    parts = [part(one, other) for one, other in zip(a[1:-1], b[1:-1], strict=True)]
    return Statistics(xp.where(condition, a.elements, b.elements), *parts)


def _merge_plain(xp: Any, a: Statistics, b: Statistics) -> Statistics:
    """Merge in float64 the statistics of narrower rows.

    Where the mean is a million standard deviations, a million merges would round it by too much: its rounding error is
    carried along.
    """
    count = a.elements + b.elements
    (a_mean, a_low), (b_mean, b_low) = _mean_of(a), _mean_of(b)
    difference = (b_mean - a_mean) + (b_low - a_low)
    mean, error = two_sum(a_mean, difference * share(xp, b.elements, count, a_mean))
    between = share(xp, a.elements, count, a_mean) * multiplier(xp, b.elements, a_mean)
    squares = a.squares + b.squares + difference * difference * between
    mean, low = two_sum(mean, a_low + error)
    return Statistics(count, mean, low, None, squares, None, None)


def _merge_paired(xp: Any, a: Statistics, b: Statistics, a_unit: Array, b_unit: Array) -> Statistics:
    """Merge in pairs of numbers (pairs.py), the mean in three."""
    count, digits = a.elements + b.elements, _digits(xp, a)
    unit = xp.where(a_unit < b_unit, a_unit, b_unit)
    a_mean, a_rest, a_squares = _rescaled(a, unit / a_unit)
    b_mean, _, b_squares = _rescaled(b, unit / b_unit)
    difference = add_pairs(b_mean, (-a_mean[0], -a_mean[1]))
    step = multiply_pairs(difference, share_as_pair(xp, b.elements, count, digits, a_mean[0]), digits)
    high, low = two_sum(a_mean[0], step[0])
    middle, rest = two_sum(a_mean[1], step[1])
    middle, error = two_sum(middle, low)
    rest = rest + error + a_rest
    high, middle = two_sum(high, middle)
    middle, rest = two_sum(middle, rest)
    between = multiply_pairs(difference, difference, digits)
    of_counts = products_share(xp, a.elements, b.elements, count, digits, a_mean[0])
    between = multiply_pairs(between, of_counts, digits)
    squares = add_pairs(add_pairs(a_squares, b_squares), between)
    return Statistics(count, high, middle, rest, *squares, unit)


def sum_of_squares(xp: Any, found: Statistics) -> Pair:
    """sum(x**2), also from statistics about the mean."""
    low = 0.0 if found.squares_low is None else found.squares_low
    if found.mean is None:
        return found.squares, low
    if found.unit is None:
        return found.squares + found.mean * found.mean * multiplier(xp, found.elements, found.mean), low
    digits = _digits(xp, found)
    # The derivative of a mean may be in its low part alone, whose square pairs leave out; a sum has all of it above.
    mean = two_sum(*_mean_of(found))
    of_mean = multiply_pairs(
        multiply_pairs(mean, mean, digits), count_as_pair(xp, found.elements, digits, found.mean), digits
    )
    return add_pairs((found.squares, low), of_mean)


def step_of_given(xp: Any, found: Statistics, rule: Rule, eps: float, precision: Precision) -> Step:
    """Step 2 of statistics such as `moments` makes, which are for any norm and eps."""
    return finish(xp, _fitted(xp, found, rule, eps, precision.digits), rule, eps, precision)


def _fitted(xp: Any, found: Statistics, rule: Rule, eps: float, digits: int) -> Statistics:
    """Statistics as `finish` wants them: in units in which eps is in range.

    Where a row had no element, nothing is known, and what is made of that is NaN.
    """
    if by_row(found.elements):
        found = found._replace(squares=xp.where(found.elements == 0, math.nan, found.squares))
    if not rule.centred:
        high, low = sum_of_squares(xp, found)
        found = Statistics(found.elements, None, None, None, high + low, None, found.unit)
    if found.unit is None:
        return found
    most = largest_unit(digits, eps, rule.eps_place == "inside")
    if most >= 1.0 and are_one(found.unit):  # nothing is to be rescaled
        low = 0.0 if found.squares_low is None else found.squares_low
        return found._replace(mean_rest=None, squares=found.squares + low, squares_low=None)
    unit = xp.where(found.unit > most, most, found.unit)
    if found.mean is not None:
        # Zeros have the largest unit there is, in which an x that is given their statistics might leave the range.
        unit = xp.where((found.squares == 0.0) & (found.mean == 0.0) & (unit > 1.0), 1.0, unit)
    shift, _, squares = _rescaled(found, unit / found.unit)
    mean, low = (None, None) if found.mean is None else shift
    return Statistics(found.elements, mean, low, None, squares[0] + squares[1], None, unit)


def _rescaled(found: Statistics, ratio: Array) -> tuple[Pair, Array | float, Pair]:
    """The mean as a pair, what that lacks, and the squares as a pair, in another unit."""
    mean, low = _mean_of(found)
    rest = 0.0 if found.mean_rest is None else found.mean_rest * ratio
    squares = found.squares * ratio * ratio
    squares_low = 0.0 * squares if found.squares_low is None else found.squares_low * ratio * ratio
    return (mean * ratio, low * ratio), rest, (squares, squares_low)


def _mean_of(found: Statistics) -> Pair:
    """The mean as a pair; zero where nothing was centred."""
    zero = found.squares * 0.0
    mean = zero if found.mean is None else found.mean
    return mean, zero if found.mean_low is None else found.mean_low


def _digits(xp: Any, found: Statistics) -> int:
    """The significant bits of the dtype."""
    return 53 if xp.finfo(found.squares.dtype).bits == 64 else 24
