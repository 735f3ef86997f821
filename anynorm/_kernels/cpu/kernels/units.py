"""Units of float64: powers of two that bring what is of extreme magnitude near 1, where pairs are exact.

A product with a power of two is exact as long as it is in range. In its unit a row has the digits that it has; eps is
scaled along.
"""

from __future__ import annotations

from typing import NamedTuple

from anynorm._kernels.cpu.kernels.chunks import chunks_of, elements_of
from anynorm._kernels.cpu.kernels.scatter import gather
from anynorm._kernels.cpu.kernels.values import Arrays, TaskValues
from anynorm._kernels.cpu.language.arithmetic import magnitude, number, power_of_two, root, splat, where
from anynorm._kernels.cpu.language.dtypes import FLOAT64, SCALE, Lanes, Number
from anynorm._kernels.cpu.language.flow import cell


def larger_of(a: Lanes, b: Lanes) -> Lanes:
    """The larger one of two numbers, or the first where one is NaN."""
    return where(b > a, b, a)


def largest(lanes: Lanes) -> Number:
    """The largest one of all lanes."""
    while len(lanes) > 1:
        half = len(lanes) // 2
        lanes = larger_of(lanes[:half], lanes[half:])
    return lanes[0]


def unit_of(task: TaskValues, row: Arrays) -> Number:
    """What a row is multiplied by: the largest of its magnitudes and of the root of eps lies between 1 and 2 then.

    Or below 1, where that is subnormal.
    """
    zero = splat(0.0, FLOAT64, task.lanes)
    size = cell(zero)
    for start, count in chunks_of(task):
        for value in elements_of(task, gather(task, row, start, count), 0, count, FLOAT64, zero):
            size[...] = larger_of(size, magnitude(value))
    return 1.0 / power_of_two(larger_of(largest(size), length_of_eps(task)))


def length_of_eps(task: TaskValues) -> Number:
    """Eps as a length, to which that of a row is compared."""
    return task.eps if task.rule == SCALE else root(task.eps)


def in_unit(task: TaskValues, unit: Number) -> TaskValues:
    """The task with its eps as it counts for a row in such a unit, without a scale."""
    # Where the square of the unit is out of range, the product is not, or eps does not count beside the row.
    eps = task.eps * unit if task.rule == SCALE else task.eps * unit * unit
    return task._replace(eps=eps, scale=number(1))


class Steps(NamedTuple):
    """What a row that is not centred is multiplied by, power of two by power of two."""

    up: Number
    up_again: Number  # at least 1, as is the one before
    down: Number  # at most 1


def steps_of(unit: Number, factor: Number) -> tuple[Steps, Number]:
    """The product of a unit and a factor in steps, and what is divided out of the factor, which is near 1 then."""
    power = power_of_two(factor)
    both = unit * power
    apart = unit > 1.0  # where the product may be out of range
    again = where(apart, larger_of(power, 1.0), 1.0)
    up, down = where(apart, unit, larger_of(both, 1.0)), where(apart, 1.0, where(both < 1.0, both, 1.0))
    return Steps(up, again, down), where(apart, again, power)


def scale_lanes(value: Lanes, steps: Steps, power: Lanes) -> Lanes:
    """Elements times the steps of their row and a power of two; out of range only where the product of all is.

    The power is that of a weight: it may bring back an element that is far below its row.
    """
    value = value * steps.up * steps.up_again
    return where(power > 1.0, value * (steps.down * power), value * steps.down * power)


def product(value: Lanes, factors: list[Number]) -> Lanes:
    """The product of a number and positive factors; it leaves the range only where the result does."""
    left: list[Number] = []
    for factor in factors:
        # A factor above 1 is multiplied with one below 1, until all that are left lie on the same side of 1.
        for i, other in enumerate(left):
            opposite = (factor > 1.0) != (other > 1.0)
            both, one = factor * other, other
            left[i], factor = where(opposite, 1.0, one), where(opposite, both, factor)
        left.append(factor)
    for factor in left:
        value = value * factor
    return value
