"""Step 1 where NaN stands for a missing element: the statistics of those that are there, and how many there are."""

from __future__ import annotations

import math
from typing import Any

from anynorm._definition.counting import divisor, dtype_of_counts
from anynorm._definition.norms import Precision, Statistics
from anynorm._definition.scaling import scaled, unit_of
from anynorm._definition.sums import count_along, lowest_and_highest, of_rows, total, total_of_squares

Array = Any


def reduce_present(xp: Any, x: Array, axes: tuple[int, ...], precision: Precision) -> Statistics:
    """The statistics about the mean of each row, already of the precision's dtype, without the NaN that it holds.

    A row of nothing else has a count of 0 and a mean of 0, so that it changes nothing where it is merged.
    """
    is_there = x == x
    count = xp.sum(xp.astype(is_there, dtype_of_counts(xp)), axis=axes, keepdims=True)
    number = divisor(xp, count, x)

    def present(values: Array) -> Array:
        return xp.where(is_there, values, 0.0)

    if not precision.digits:
        shift = total(xp, present(x), axes) / number
        x = present(x - shift)
        return Statistics(count, shift, None, None, total(xp, x * x, axes), None, None)
    digits, length, constant = precision.digits, count_along(x, axes), precision.constant
    lowest, _ = lowest_and_highest(xp, xp.where(is_there, constant(x), math.inf), axes)
    _, highest = lowest_and_highest(xp, xp.where(is_there, constant(x), -math.inf), axes)
    lowest, highest = (xp.where(count == 0, 0.0, one) for one in (lowest, highest))

    def in_units(lowest: Array, highest: Array) -> tuple[Array, ...]:
        unit = unit_of(xp, xp.maximum(highest, -lowest), digits, length, 0.0)
        return unit, lowest * unit, highest * unit, highest * unit - lowest * unit

    unit, lowest, highest, size = of_rows(xp, in_units, lowest, highest)
    x = present(scaled(x, unit))
    # Between the two, so that the mean of a constant row is that constant.
    shift = xp.minimum(xp.maximum(total(xp, constant(x), axes) / number, lowest), highest)
    x = present(x - shift)
    low = total(xp, x, axes) / number
    x = present(x - low)
    squares = total_of_squares(xp, x, axes, size, digits)
    # All that merging makes is there from the start, so that moments may be carried through a loop of JAX.
    nothing = xp.zeros_like(squares)
    return Statistics(count, shift, low, nothing, squares, nothing, unit, size)
