"""What the factor of a row lacks: each rounding on the way to it would be one of the result."""

from __future__ import annotations

import math
from typing import Any

from anynorm._definition.pairs import round_pair, split, upper_half

Array = Any


def lack_of_factor(
    xp: Any,
    factor: Array,
    root: Array,
    squares: Array,
    count: int,
    is_mean: bool,
    of_eps: Array | float,
    beside: Array | float,
    digits: int,
) -> Array:
    """What a factor lacks of sqrt(count) / (sqrt(squares) + beside), of which it is a few roundings off.

    ``of_eps`` is added to the squares. ``root`` is as near to the root, and where that ``is_mean``, all three are those
    of a mean of ``count`` squares. Where the factor is far off, as that of a row without deviations is, or of one that
    is divided by the least length, 0 is returned.

    Products of two halves are exact, and so are differences of numbers that are close.
    """
    high, low = _root_pair(count, digits)
    if is_mean:
        root, of_eps, beside = root * high, of_eps * count, beside * high
    near, half = upper_half(root, digits), upper_half(factor, digits)
    left = (high - half * near) + (low - half * (((squares - near * near) + of_eps) / (near + root)))
    for part in () if isinstance(beside, float) and beside == 0.0 else split(beside, digits):
        left = left - half * part
    lack = (half - factor) + left * (factor if count == 1 else factor * (1.0 / high))
    return xp.where(xp.abs(lack) < factor * 2.0 ** (4 - digits), lack, 0.0)


def _root_pair(value: int, digits: int) -> tuple[float, float]:
    """The square root of an integer as a pair."""
    high = math.sqrt(value)
    over, under = high.as_integer_ratio()
    low = (value * under * under - over * over) / (2 * over * under)
    return round_pair((high, low), digits)
