"""The derivative at a row of float64 that is of extreme magnitude: x, dy and the weights are multiplied by units.

In extreme_columns.py are such rows side by side, with the same bits.

With x_hat and g = dy * weight, each near 1 in its unit, the formula is that of steps.py. In the end the
units are taken out of dx.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import NamedTuple

from anynorm._kernels.cpu.kernels.chunks import chunks_of, parts_of
from anynorm._kernels.cpu.kernels.derivative.steps import Columns
from anynorm._kernels.cpu.kernels.factors import find_factors
from anynorm._kernels.cpu.kernels.scatter import RESIDUAL, TOTAL, X, Y, gather, numbers_address, row_of, scatter
from anynorm._kernels.cpu.kernels.units import in_unit, larger_of, largest, length_of_eps, product
from anynorm._kernels.cpu.kernels.values import Arrays, TaskValues
from anynorm._kernels.cpu.language.arithmetic import fma, magnitude, number, power_of_two, splat, sum_lanes, where
from anynorm._kernels.cpu.language.dtypes import FINISHED, FLOAT64, LAYER, OF_ROW, SCALE, Lanes, Number
from anynorm._kernels.cpu.language.flow import cell, loop, when
from anynorm._kernels.cpu.language.memory import load, peek, real, store_real

_LANES = FLOAT64.lanes
# The largest of a row comes to lie here, so that what is far below it does not underflow. Of rows below the second it
# lies less high, for their unit would be out of range.
_TARGET, _LEAST_SIZE = 2.0**300, 2.0**-723


class _Elements(NamedTuple):
    """Elements of a row that are taken at a time."""

    feature: int  # the number of the first one
    x: Lanes
    dy: Lanes
    weight: Lanes
    dx: int  # its address
    dtotal: Lanes | None


class _Hat(NamedTuple):
    """What makes x_hat of x."""

    unit: Number
    shift: Number
    factor: Number
    constant: Number

    def of(self, x: Lanes) -> Lanes:
        factor, constant = (splat(one, FLOAT64, len(x)) for one in (self.factor, self.constant))
        return fma(x * self.unit - self.shift, factor, constant)


class _Gradient(NamedTuple):
    """What makes g of dy and the weights, each times its unit; the reciprocals of those."""

    of_dy: Number
    of_weight: Number

    def of(self, at: _Elements) -> Lanes:
        return (at.dy * (1.0 / self.of_dy)) * (at.weight * (1.0 / self.of_weight))


def _parts(
    task: TaskValues, row: Arrays, is_first: bool = False, is_writing: bool = False
) -> Iterator[tuple[int, Iterator[_Elements]]]:
    """Parts of a row, through which so many elements are taken at a time; sums are formed of each part by itself."""
    for start, count in chunks_of(task):
        for _ in when(True if is_first else count != task.features):  # a row of one chunk stays where it was gathered
            gather(task, row, start, count, (X, RESIDUAL, TOTAL))
        chunk = gather(task, row, start, count, ())
        for lanes, first, last in parts_of(count, _LANES):
            yield lanes, _elements_of_part(task, chunk, start, lanes, first, last)
        if is_writing:
            scatter(task, row, start, count, (Y,))


def _elements_of_part(
    task: TaskValues, chunk: Arrays, start: int, lanes: int, first: int, last: int
) -> Iterator[_Elements]:
    for i in loop(first, last, lanes):
        x, dy, weight, dtotal = (
            None if address is None else load(address + i * 8, FLOAT64, lanes=lanes)
            for address in (chunk.x, chunk.residual, task.weight + start * 8, chunk.total)
        )
        yield _Elements(start + i, x, dy, weight, chunk.y + i * 8, dtotal)


def _elements(task: TaskValues, row: Arrays, is_first: bool = False, is_writing: bool = False) -> Iterator[_Elements]:
    for _, elements in _parts(task, row, is_first, is_writing):
        yield from elements


def _totals(task: TaskValues, row: Arrays, terms: Callable[[_Elements], tuple[Lanes, ...]], count: int) -> list[Number]:
    """The sums of so many terms over a row; those of lanes and parts first, so that errors hardly grow with a row."""
    found = [cell(0.0) for _ in range(count)]
    for lanes, elements in _parts(task, row):
        sums = [cell(splat(0.0, FLOAT64, lanes)) for _ in found]
        for at in elements:
            for one, term in zip(sums, terms(at), strict=True):
                one[...] = one + term
        for one, in_lanes in zip(found, sums, strict=True):
            one[...] = one + sum_lanes(in_lanes)
    return [one + 0.0 for one in found]


def differentiate_row(task: TaskValues, row: int, columns: Columns, given: bool) -> None:
    """Write dx of a row, and what it adds to the gradients."""
    addresses = row_of(task, row)
    size, deviation, of_dy, of_weight = _sizes(task, addresses)
    g = _Gradient(divisor(of_dy), divisor(of_weight))
    if given:
        hat, factors = _given_hat(task, row)
        _differentiate_given(task, addresses, numbers_address(task, row, FINISHED), hat, g, columns, factors)
        return
    if task.rule == LAYER:
        # A row without deviations has the unit of eps alone, by the root of which it is divided.
        size = where(deviation == 0.0, deviation, size)
    unit = 1.0 / divisor(larger_of(size, length_of_eps(task)))
    in_its_unit = in_unit(task, unit)
    hat, squares = _own_hat(in_its_unit, addresses, where(size == 0.0, 0.0, unit))
    gradients, along = _sums(task, addresses, hat, g, 1.0)
    across = along / number(task.features)
    if task.rule == SCALE:
        across = where(squares < in_its_unit.eps * in_its_unit.eps, 0.0, along)
    # The sum of g is not finite where dy holds NaN or Inf, which makes NaN of the whole row.
    across = where(magnitude(gradients) < math.inf, across, math.nan)
    middle = gradients / number(task.features) if task.rule == LAYER else 0.0
    for at in _elements(task, addresses, is_writing=True):
        x_hat = hat.of(at.x)
        _write(task, at, x_hat, product(g.of(at) - middle - x_hat * across, [hat.factor, unit, *g]), columns)


def divisor(size: Number) -> Number:
    """The reciprocal of a unit, for a row of this size."""
    return power_of_two(larger_of(size, _LEAST_SIZE)) / _TARGET


def _sizes(task: TaskValues, row: Arrays) -> list[Number]:
    """The largest magnitudes of x, of its differences from the first element, of dy and of the weights."""
    sizes, first = [cell(0.0) for _ in range(4)], peek(row.x, FLOAT64)
    for at in _elements(task, row, is_first=True):
        for size, value in zip(sizes, (at.x, at.x - first, at.dy, at.weight), strict=True):
            size[...] = larger_of(size, largest(magnitude(value)))
    return [size + 0.0 for size in sizes]


def _own_hat(task: TaskValues, row: Arrays, unit: Number) -> tuple[_Hat, Number]:
    """What makes x_hat of x in its unit, in which eps is, and the sum of squares; a flat row has a unit of 0."""
    first, moved = peek(row.x, FLOAT64) * unit, 0.0
    if task.rule != LAYER:
        first = 0.0
    else:
        (moved,) = _totals(task, row, lambda at: (at.x * unit - first,), 1)
    shift = first + moved / number(task.features)

    def deviations(at: _Elements) -> tuple[Lanes, Lanes]:
        d = at.x * unit - shift
        return d, d * d

    found = _totals(task, row, deviations, 2)
    scratch = task.scratch
    sums = found[0] if task.rule == LAYER else 0.0
    for numbers, value in ((scratch.shifts, shift), (scratch.sums, sums), (scratch.squares, found[1])):
        store_real(numbers, value)
    find_factors(task, 1)
    return _Hat(unit, shift, real(scratch.factors), real(scratch.constants)), found[1]


def _given_hat(task: TaskValues, row: int) -> tuple[_Hat, list[Number]]:
    """The same of what step 2 has made of given moments, and what a gradient is multiplied by; with or without unit."""
    shift, factor, constant, unit = (real(numbers_address(task, row, FINISHED) + 8 * i) for i in range(FINISHED))
    unit = where(unit == 0.0, 1.0, unit)
    return _Hat(unit, shift, factor, constant), [factor, unit]


def _differentiate_given(
    task: TaskValues, row: Arrays, numbers: int, hat: _Hat, g: _Gradient, columns: Columns, factors: list[Number]
) -> None:
    size = cell(0.0)
    for at in _elements(task, row):
        size[...] = larger_of(size, largest(magnitude(hat.of(at.x))))
    power = power_of_two(size + 0.0)
    gradients, along = _sums(task, row, hat, g, power)
    store_real(numbers, product(gradients, [*g]))
    store_real(numbers + 8, product(along, [*g, power]))
    for at in _elements(task, row, is_writing=True):
        _write(task, at, hat.of(at.x), product(g.of(at), [*factors, *g]), columns)


def _sums(task: TaskValues, row: Arrays, hat: _Hat, g_of: _Gradient, power: Number) -> tuple[Number, Number]:
    """The sums of g and of g * x_hat / power."""

    def terms(at: _Elements) -> tuple[Lanes, Lanes]:
        g = g_of.of(at)
        return g, g * (hat.of(at.x) * (1.0 / power))

    gradients, along = _totals(task, row, terms, 2)
    return gradients, along


def _write(task: TaskValues, at: _Elements, x_hat: Lanes, dx: Lanes, columns: Columns) -> None:
    """Store dx, and add to the sums of the columns."""
    store_real(at.dx, dx if at.dtotal is None else dx + at.dtotal)
    for address, share in ((columns.of_weight, x_hat), (columns.of_bias, splat(1.0, FLOAT64, len(dx)))):
        for _ in when(address != 0):
            place = address + at.feature * 8
            zero = splat(0.0, FLOAT64, len(dx))
            own = task.variant.parameters == OF_ROW
            store_real(place, fma(at.dy, share, zero if own else load(place, FLOAT64, lanes=len(dx))))
