"""What is computed of numbers and of lanes, which are vectors of them, without a look at memory.

Operators take numbers, which are int64 or float64, and lanes of float32 or float64. A constant beside lanes stands in
all of them, and so does a float64 beside lanes of float64.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from anynorm._kernels.cpu.language.dtypes import FLOAT64, INTERPRETED, Lanes, Number

if TYPE_CHECKING or INTERPRETED:
    from anynorm._kernels.cpu.language import interpreted as words
else:
    from anynorm._kernels.cpu.language import compiled as words

as_lanes, fma, in_order, magnitude = words.as_lanes, words.fma, words.in_order, words.magnitude
number, part, root, rounded = words.number, words.part, words.root, words.rounded
splat, split, where = words.splat, words.split, words.where

_LEAST_POWER, _MOST_POWER = 2.0**-1022, 2.0**1023


def is_false(condition: Any) -> Any:
    """Whether a condition does not hold."""
    return where(condition, False, True)


def smaller(a: int, b: int) -> int:
    """The smaller one of two integers."""
    return where(a < b, a, b)


def larger(a: int, b: int) -> int:
    """The larger one of two integers."""
    return where(a < b, b, a)


def power_of_two(value: Lanes) -> Lanes:
    """The power of two next to a magnitude, towards 0, among those that are normal numbers; of lanes or of numbers."""
    power = words.with_bits(value, 0x7FF << 52)
    power = where(power < _LEAST_POWER, _LEAST_POWER, power)
    return where(power > _MOST_POWER, _MOST_POWER, power)


def sum_lanes(lanes: Lanes) -> Number:
    """The sum of all lanes as float64: halves are added until one number is left."""
    while len(lanes) > 1:
        half = len(lanes) // 2
        lanes = lanes[:half] + lanes[half:]
    return as_lanes(lanes, FLOAT64)[0]
