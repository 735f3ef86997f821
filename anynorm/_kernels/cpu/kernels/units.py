"""Units of float64: powers of two that bring what is of extreme magnitude near 1, where pairs are exact.

A product with a power of two is exact as long as it is in range. In its unit a row has the digits that it has; eps is
scaled along.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from anynorm._kernels.cpu.kernels.chunks import chunks_of, elements_of
from anynorm._kernels.cpu.kernels.scatter import gather
from anynorm._kernels.cpu.kernels.values import Arrays, TaskValues
from anynorm._kernels.cpu.language.arithmetic import magnitude, number, power_of_two, root, splat, where
from anynorm._kernels.cpu.language.dtypes import FLOAT64, INSIDE, Lanes, Number
from anynorm._kernels.cpu.language.flow import cell, loop, when

# (bound, unit) of moments, as in anynorm/_definition/scaling.py; the first bound that a row is below has its unit.
_MOMENTS = (
    (2.0**-738, 2.0**855), (2.0**-416, 2.0**690), (2.0**-48, 2.0**368), (2.0**320, 1.0), (2.0**688, 2.0**-368),
    (math.inf, 2.0**-704),
)  # fmt: skip


def larger_of(a: Lanes, b: Lanes) -> Lanes:
    """The larger one of two numbers, or the first where one is NaN."""
    return where(b > a, b, a)


def largest(lanes: Lanes) -> Number:
    """The largest one of all lanes."""
    while len(lanes) > 1:
        half = len(lanes) // 2
        lanes = larger_of(lanes[:half], lanes[half:])
    return lanes[0]


def find_in_units(
    units: Any,
    find: Callable[[Lanes], Lanes],
    unit_of: Callable[[], Lanes],
    are_all: Callable[[Lanes], bool] = lambda is_ordinary: is_ordinary,
    is_none: bool = False,
) -> bool:
    """Find numbers of a row, or of rows side by side, and again in units if not all are ordinary; whether they are.

    ``units`` is a cell that begins with those of ordinary rows; ``find`` leaves in memory what it finds, and returns
    which rows are ordinary. Where it is known beforehand that none is, that is done in units at once.
    """
    are_ordinary, in_units, ended, all_ordinary = cell(units != units), cell(is_none), cell(False), cell(True)
    for _ in loop(0, 2, 1, ended):  # in which each is compiled once
        for _ in when(in_units):
            units[...] = where(are_ordinary, units, unit_of())
            all_ordinary[...] = False
        are_ordinary[...] = find(units + 0.0)
        ended[...] = in_units | are_all(are_ordinary)
        in_units[...] = True
    return all_ordinary


def unit_of(task: TaskValues, size: Lanes) -> Lanes:
    """What a row is multiplied by, of its largest magnitude: that or the root of eps lies between 1 and 2 then.

    Or below 1, where that is subnormal.
    """
    return 1.0 / power_of_two(larger_of(size, length_of_eps(task)))


def size_of(task: TaskValues, row: Arrays) -> Number:
    """The largest magnitude of a row; one that holds NaN has any."""
    zero = splat(0.0, FLOAT64, task.lanes)
    size = cell(zero)
    for start, count in chunks_of(task):
        for value in elements_of(task, gather(task, row, start, count), 0, count, FLOAT64, zero):
            size[...] = larger_of(size, magnitude(value))
    return largest(size)


def unit_of_moments(size: Number) -> Number:
    """The unit of moments of a row, by its largest magnitude; the definition has the same, for it may be given them."""
    unit: Number = number(1) * _MOMENTS[-1][1]
    for bound, one in reversed(_MOMENTS[:-1]):
        unit = where(size < bound, one, unit)
    return unit


def length_of_eps(task: TaskValues) -> Number:
    """Eps as a length, to which that of a row is compared."""
    return root(task.eps) if task.variant.eps_place == INSIDE else task.eps


def multiplier(unit: Lanes) -> Lanes:
    """What a row is multiplied by whose unit may be 0, which stands for none."""
    return where(unit == 0.0, 1.0, unit)


def in_unit(task: TaskValues, unit: Lanes) -> TaskValues:
    """The task with its eps as it counts for a row in such a unit, without a scale."""
    # Where the square of the unit is out of range, the product is not, or eps does not count beside the row.
    eps = task.eps * unit * unit if task.variant.eps_place == INSIDE else task.eps * unit
    return task._replace(eps=eps, scale=number(1))


def product(value: Lanes, factors: list[Lanes]) -> Lanes:
    """The product of a number and positive factors; it leaves the range only where the result does."""
    for factor in paired(factors):
        value = value * factor
    return value


def paired(factors: list[Lanes]) -> list[Lanes]:
    """As many of the same product: one after the other they leave the range only where the result does."""
    left: list[Lanes] = []
    for factor in factors:
        # A factor above 1 is multiplied with one below 1, until all that are left lie on the same side of 1.
        for i, other in enumerate(left):
            opposite = (factor > 1.0) != (other > 1.0)
            both, one = factor * other, other
            left[i], factor = where(opposite, 1.0, one), where(opposite, both, factor)
        left.append(factor)
    return left
