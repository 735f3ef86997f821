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


class Shown:
    """What a caller sees of statistics."""

    __slots__ = ("_statistics", "_xp")

    def __init__(self, statistics: Statistics, xp: Any) -> None:
        self._statistics = statistics
        self._xp = xp

    @property
    def count(self) -> Any:
        """How many elements a row has: an int, or with ``skip_nan`` an array of ints, one for each row.

        Those ints are of the library's default dtype: in JAX without x64 no count may exceed 2**31 - 1.
        """
        return self._statistics.elements

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the rows' array, with the normalized axes of length 1."""
        return tuple(self._statistics.squares.shape)

    @property
    def namespace(self) -> Any:
        """The array namespace that the moments were formed in."""
        return self._xp

    @property
    def paired(self) -> bool:
        """Whether the moments are in a unit of each row, as those of float64 arrays are."""
        return self._statistics.unit is not None

    @property
    def mean(self) -> Array:
        """The mean of each row; normalized axes are kept with length 1. NaN where no element was counted."""
        return _of_rows(_mean, self._xp, self._statistics)

    @property
    def variance(self) -> Array:
        """The population variance of each row, sum((x - mean)**2) / count."""
        return _of_rows(_variance, self._xp, self._statistics)

    @property
    def std(self) -> Array:
        """The population standard deviation of each row, sqrt(variance); exactly 0 for a constant row."""
        return _of_rows(_deviation, self._xp, self._statistics)

    @property
    def mean_square(self) -> Array:
        """The mean square of each row, sum(x**2) / count."""
        return _of_rows(_mean_square, self._xp, self._statistics)


def _mean(xp: Any, found: Statistics) -> Array:
    """The mean of each row."""
    mean = found.squares * 0.0 if found.mean is None else found.mean
    mean = mean + (0.0 if found.mean_low is None else found.mean_low)
    if by_row(found.elements):
        mean = xp.where(found.elements == 0, math.nan, mean)
    elif found.elements == 0:
        mean = mean * math.nan
    return _in_units(found, mean, 1)


def _variance(xp: Any, found: Statistics) -> Array:
    """The population variance of each row."""
    low = 0.0 if found.squares_low is None else found.squares_low
    return _in_units(found, (found.squares + low) / multiplier(xp, found.elements, found.squares), 2)


def _mean_square(xp: Any, found: Statistics) -> Array:
    """The mean square of each row."""
    high, low = sum_of_squares(xp, found)
    return _in_units(found, (high + low) / multiplier(xp, found.elements, found.squares), 2)


def _deviation(xp: Any, found: Statistics) -> Array:
    """The root of the variance, in range also where that is not."""
    return _in_units(found, xp.sqrt(_variance(xp, found._replace(unit=None))), 1)


def _in_units(found: Statistics, values: Array, power: int) -> Array:
    """Divide by the unit to that power, one division at a time, for unit**2 may be out of range."""
    for _ in range(power if found.unit is not None else 0):
        values = values / found.unit
    return values


def _of_rows(function: Callable[[Any, Statistics], Array], xp: Any, found: Statistics) -> Array:
    """Return function(namespace, statistics), for Dask block by block."""
    if is_lazy(xp):
        return each(function, f"moments{function.__name__}", found, meta=found.squares._meta)
    with quietly(xp, found.squares):
        return function(xp, found)
