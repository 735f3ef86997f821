"""What moments show of themselves: mean, variance, mean square and deviation of each row."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from anynorm._definition.counting import by_row, multiplier
from anynorm._definition.merging import sum_of_squares
from anynorm._definition.norms import Statistics
from anynorm._moments.blocks import each
from anynorm._moments.parts import is_lazy, quietly

Array = Any


def mean(xp: Any, found: Statistics) -> Array:
    """The mean of each row."""
    mean = found.squares * 0.0 if found.mean is None else found.mean
    mean = mean + (0.0 if found.mean_low is None else found.mean_low)
    if by_row(found.elements):
        mean = xp.where(found.elements == 0, math.nan, mean)
    elif found.elements == 0:
        mean = mean * math.nan
    return _in_units(found, mean, 1)


def variance(xp: Any, found: Statistics) -> Array:
    """The population variance of each row."""
    low = 0.0 if found.squares_low is None else found.squares_low
    return _in_units(found, (found.squares + low) / multiplier(xp, found.elements, found.squares), 2)


def mean_square(xp: Any, found: Statistics) -> Array:
    """The mean square of each row."""
    high, low = sum_of_squares(xp, found)
    return _in_units(found, (high + low) / multiplier(xp, found.elements, found.squares), 2)


def deviation(xp: Any, found: Statistics) -> Array:
    """The root of the variance, in range also where that is not."""
    return _in_units(found, xp.sqrt(variance(xp, found._replace(unit=None))), 1)


def _in_units(found: Statistics, values: Array, power: int) -> Array:
    """Divide by the unit to that power, one division at a time, for unit**2 may be out of range."""
    for _ in range(power if found.unit is not None else 0):
        values = values / found.unit
    return values


def of_rows(function: Callable[[Any, Statistics], Array], xp: Any, found: Statistics) -> Array:
    """Return function(namespace, statistics), for Dask block by block."""
    if is_lazy(xp):
        return each(function, f"moments-{function.__name__}", found, meta=found.squares._meta)
    with quietly(xp):
        return function(xp, found)
