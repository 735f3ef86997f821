"""Statistics of two pieces of the same rows -> those of the whole, and of one unit -> of another.

Chan, Golub, LeVeque 1983, "Algorithms for computing the sample variance".
"""

from __future__ import annotations

from typing import Any

from anynorm._definition.norms import Statistics
from anynorm._definition.pairs import Pair, add_pairs, multiply_pairs, ratio_pair, two_sum
from anynorm._definition.scaling import largest_unit

Array = Any


def merge(xp: Any, a: Statistics, b: Statistics) -> Statistics:
    """The statistics of two pieces together."""
    if not a.elements or not b.elements:
        return a if a.elements else b
    return _merge_plain(a, b) if a.unit is None or b.unit is None else _merge_paired(xp, a, b, a.unit, b.unit)


def _merge_plain(a: Statistics, b: Statistics) -> Statistics:
    """Merge in float64 the statistics of narrower rows.

    Where the mean is a million standard deviations, a million merges would round it by too much: its rounding error is
    carried along.
    """
    count = a.elements + b.elements
    (a_mean, a_low), (b_mean, b_low) = _mean_of(a), _mean_of(b)
    difference = (b_mean - a_mean) + (b_low - a_low)
    mean, error = two_sum(a_mean, difference * (b.elements / count))
    squares = a.squares + b.squares + difference * difference * (a.elements / count * b.elements)
    mean, low = two_sum(mean, a_low + error)
    return Statistics(count, mean, low, None, squares, None, None)


def _merge_paired(xp: Any, a: Statistics, b: Statistics, a_unit: Array, b_unit: Array) -> Statistics:
    """Merge in pairs of numbers (pairs.py), the mean in three."""
    count, digits = a.elements + b.elements, _digits(xp, a)
    unit = xp.where(a_unit < b_unit, a_unit, b_unit)
    a_mean, a_rest, a_squares = _rescaled(a, unit / a_unit)
    b_mean, _, b_squares = _rescaled(b, unit / b_unit)
    difference = add_pairs(b_mean, (-a_mean[0], -a_mean[1]))
    step = multiply_pairs(difference, ratio_pair(b.elements, count, digits), digits)
    high, low = two_sum(a_mean[0], step[0])
    middle, rest = two_sum(a_mean[1], step[1])
    middle, error = two_sum(middle, low)
    rest = rest + error + a_rest
    high, middle = two_sum(high, middle)
    middle, rest = two_sum(middle, rest)
    between = multiply_pairs(difference, difference, digits)
    between = multiply_pairs(between, ratio_pair(a.elements * b.elements, count, digits), digits)
    squares = add_pairs(add_pairs(a_squares, b_squares), between)
    return Statistics(count, high, middle, rest, *squares, unit)


def sum_of_squares(xp: Any, found: Statistics) -> Pair:
    """sum(x**2), also from statistics about the mean."""
    low = 0.0 if found.squares_low is None else found.squares_low
    if found.mean is None:
        return found.squares, low
    if found.unit is None:
        return found.squares + found.mean * found.mean * found.elements, low
    digits = _digits(xp, found)
    # The derivative of a mean may be in its low part alone, whose square pairs leave out; a sum has all of it above.
    mean = two_sum(*_mean_of(found))
    of_mean = multiply_pairs(multiply_pairs(mean, mean, digits), (float(found.elements), 0.0), digits)
    return add_pairs((found.squares, low), of_mean)


def fitted(xp: Any, found: Statistics, centred: bool, squared: bool, eps: float, digits: int) -> Statistics:
    """Statistics of `moments`, made for any norm and eps, as `finish` wants them: in units in which eps is in range."""
    if not centred:
        high, low = sum_of_squares(xp, found)
        found = Statistics(found.elements, None, None, None, high + low, None, found.unit)
    if found.unit is None:
        return found
    most = largest_unit(digits, eps, squared)
    unit = xp.where(found.unit > most, most, found.unit)
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
