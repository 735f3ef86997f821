"""How many elements rows have: one int for all, or an array of ints, one a row, where missing elements were left out.

Ints are Python's, and exact. Those of arrays are numbers of the dtype where they are computed with, or pairs of such.
"""

from __future__ import annotations

from typing import Any

from anynorm._definition.pairs import (
    Pair,
    add_pairs,
    multiply_pairs,
    ratio_pair,
    renormalize,
    two_sum,
)
from anynorm._definition.sums import at_least

Array = Any
Count = Any  # int | Array


def by_row(count: Count) -> bool:
    """Whether each row has a count of its own; where lengths are symbols, one count need not be an int."""
    return hasattr(count, "dtype")


def dtype_of_counts(xp: Any) -> Any:
    """The dtype of counts row by row: the library's default one of integers."""
    return xp.__array_namespace_info__().default_dtypes()["integral"]


def divisor(xp: Any, count: Count, like: Array) -> Array | int:
    """What a sum over a row is divided by: the count, 1 where that is 0."""
    return xp.astype(at_least(xp, count, 1), like.dtype) if by_row(count) else max(count, 1)


def multiplier(xp: Any, count: Count, like: Array) -> Array | int:
    """What a mean is multiplied by to be a sum."""
    return xp.astype(count, like.dtype) if by_row(count) else count


def share(xp: Any, part: Count, whole: Count, like: Array) -> Array | float:
    """The quotient of two counts, of which one is a part of the other."""
    if not by_row(whole):
        return part / whole
    return multiplier(xp, part, like) / divisor(xp, whole, like)


def count_as_pair(xp: Any, count: Count, digits: int, like: Array) -> Pair:
    """A count as a pair of numbers of the dtype."""
    if not by_row(count):
        return float(count), 0.0
    low = count % (1 << digits // 2)
    return two_sum(xp.astype(count - low, like.dtype), xp.astype(low, like.dtype))


def share_as_pair(xp: Any, part: Count, whole: Count, digits: int, like: Array) -> Pair:
    """The quotient of two counts as a pair of numbers of the dtype."""
    if not by_row(whole):
        return ratio_pair(part, whole, digits)
    over, under = (count_as_pair(xp, one, digits, like) for one in (part, at_least(xp, whole, 1)))
    quotient = over[0] / under[0]
    high, low = multiply_pairs((quotient, 0.0), under, digits)
    left, lower = add_pairs(over, (-high, -low))
    return renormalize(quotient, (left + lower) / under[0])


def products_share(xp: Any, a: Count, b: Count, whole: Count, digits: int, like: Array) -> Pair:
    """The quotient a * b / whole, where that is the sum of both, as a pair."""
    if not by_row(whole):
        return ratio_pair(a * b, whole, digits)
    return multiply_pairs(count_as_pair(xp, a, digits, like), share_as_pair(xp, b, whole, digits, like), digits)
