"""The derivative at rows of float64 side by side that are of extreme magnitude: each lane has its units.

It is that of extreme.py, in the same order, and has the same bits.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

from anynorm._kernels.cpu.kernels.derivative.block import DerivativeBlock, sum_up
from anynorm._kernels.cpu.kernels.derivative.extreme import divisor
from anynorm._kernels.cpu.kernels.factors import factor_and_constant
from anynorm._kernels.cpu.kernels.scatter import RESIDUAL, TOTAL, X, Y
from anynorm._kernels.cpu.kernels.units import in_unit, larger_of, length_of_eps, paired, product
from anynorm._kernels.cpu.language.arithmetic import fma, magnitude, number, power_of_two, smaller, splat, where
from anynorm._kernels.cpu.language.dtypes import FLOAT64, LAYER, SCALE, Lanes
from anynorm._kernels.cpu.language.flow import cases, cell, loop
from anynorm._kernels.cpu.language.memory import peek, real, store, store_real

_LANES = FLOAT64.lanes


class _Numbers(NamedTuple):
    """Where float64 numbers of each row lie."""

    size: int  # the largest magnitudes of x, of its differences from the first element, and of dy
    deviation: int
    of_dy: int  # and then what dy is multiplied by
    unit: int  # what makes x_hat of x:
    shift: int
    factor: int
    constant: int
    sums: int
    squares: int
    gradients: int
    along: int  # the sum of g * x_hat
    middle: int
    across: int
    factors: list[int]  # four that dx is multiplied by


class _ExtremeRows:
    """Rows of a block that are taken."""

    def __init__(self, block: DerivativeBlock, of_weight: Any) -> None:
        scratch, group = block.task.scratch, block.group
        places = [scratch.shifts, scratch.sums, scratch.squares, scratch.factors, scratch.constants, *group]
        self.block, self.task, self.at = block, block.task, _Numbers._make([*places[:13], places[13:17]])
        self.of_weight = of_weight  # what weights are divided by

    def get(self, numbers: int, at: int) -> Lanes:
        return self.block.numbers(numbers + at)

    def x_hat(self, feature: int, at: int, column: int) -> Lanes:
        unit, shift, factor, constant = (self.get(one, at) for one in self.at[3:7])
        return fma(self.block.read(X, feature, column) * unit - shift, factor, constant)

    def g(self, feature: int, at: int, column: int) -> Lanes:
        weight = real(self.task.weight + feature * 8) * (1.0 / self.of_weight)
        return (self.block.read(RESIDUAL, feature, column) * self.get(self.at.of_dy, at)) * splat(
            weight, FLOAT64, _LANES
        )

    def find_sizes(self) -> None:
        """The largest magnitudes of x, of its differences from the first element, and of dy."""
        numbers = self.at[:3]
        for at, _ in self.block.slots():
            for one in numbers:
                store_real(one + at, splat(0.0, FLOAT64, _LANES))
        for feature in loop(0, self.task.features, 1):
            for at, column in self.block.slots():
                x, first = (self.block.read(X, one, column) for one in (feature, 0))
                dy = self.block.read(RESIDUAL, feature, column)
                for one, value in zip(numbers, (x, x - first, dy), strict=True):
                    store_real(one + at, larger_of(self.get(one, at), magnitude(value)))

    def set_own(self) -> None:
        """What makes x_hat of x, and the sums of g and of g * x_hat."""
        task, at_ = self.task, self.at
        for at, column in self.block.slots():
            size, deviation, of_dy = (self.get(one, at) for one in at_[:3])
            if task.rule == LAYER:
                # A row without deviations has the unit of eps alone, by the root of which it is divided.
                size = where(deviation == 0.0, deviation, size)
            unit = 1.0 / divisor(larger_of(size, splat(length_of_eps(task), FLOAT64, _LANES)))
            of_dy = divisor(of_dy)
            store_real(at_.size + at, unit)
            unit = where(size == 0.0, 0.0, unit)
            first = self.block.read(X, 0, column) * unit if task.rule == LAYER else splat(0.0, FLOAT64, _LANES)
            for one, value in ((at_.of_dy, 1.0 / of_dy), (at_.unit, unit), (at_.shift, first)):
                store_real(one + at, value)

        def deviation_of(feature: int, at: int, column: int) -> Lanes:
            return self.block.read(X, feature, column) * self.get(at_.unit, at) - self.get(at_.shift, at)

        def move(sums: list[Any], feature: int, at: int, column: int) -> None:
            sums[0][...] = sums[0] + deviation_of(feature, at, column)

        def add(sums: list[Any], feature: int, at: int, column: int) -> None:
            d = deviation_of(feature, at, column)
            for one, value in zip(sums, (d, d * d), strict=True):
                one[...] = one + value

        if task.rule == LAYER:
            sum_up(self.block, [at_.sums], move)
            for at, _ in self.block.slots():
                store_real(at_.shift + at, self.get(at_.shift, at) + self.get(at_.sums, at) / number(task.features))
        sum_up(self.block, [at_.sums, at_.squares], add)
        for at, _ in self.block.slots():
            sums = self.get(at_.sums, at) if task.rule == LAYER else splat(0.0, FLOAT64, _LANES)
            found = factor_and_constant(in_unit(task, self.get(at_.size, at)), sums, self.get(at_.squares, at))
            for one, value in zip((at_.factor, at_.constant), found, strict=True):
                store_real(one + at, value)
        self._sum_up_gradients(None)
        for at, _ in self.block.slots():
            self._set_parts_of_dx(at)

    def _set_parts_of_dx(self, at: int) -> None:
        task, at_ = self.task, self.at
        gradients, along, unit = (self.get(one, at) for one in (at_.gradients, at_.along, at_.size))
        across = along / number(task.features)
        if task.rule == SCALE:
            eps = in_unit(task, unit).eps
            across = where(self.get(at_.squares, at) < eps * eps, 0.0, along)
        # The sum of g is not finite where dy holds NaN or Inf, which makes NaN of the whole row.
        across = where(magnitude(gradients) < math.inf, across, math.nan)
        middle = gradients / number(task.features) if task.rule == LAYER else splat(0.0, FLOAT64, _LANES)
        for one, value in ((at_.across, across), (at_.middle, middle)):
            store_real(one + at, value)
        self._set_factors(at, self.get(at_.factor, at), unit)

    def _set_factors(self, at: int, *factors: Lanes) -> None:
        """What dx is multiplied by: these, and what makes dy and the weights of g."""
        taken_out = 1.0 / self.get(self.at.of_dy, at), splat(self.of_weight, FLOAT64, _LANES)
        for one, value in zip(self.at.factors, paired([*factors, *taken_out]), strict=True):
            store_real(one + at, value)

    def _sum_up_gradients(self, powers: int | None) -> None:
        """The sums of g and of g * x_hat, divided by powers if there are any."""

        def add(sums: list[Any], feature: int, at: int, column: int) -> None:
            g, x_hat = self.g(feature, at, column), self.x_hat(feature, at, column)
            x_hat = x_hat if powers is None else x_hat * (1.0 / self.get(powers, at))
            for one, value in zip(sums, (g, g * x_hat), strict=True):
                one[...] = one + value

        sum_up(self.block, [self.at.gradients, self.at.along], add)

    def set_given(self, given: Any) -> None:
        """The same where moments are given, of which the sums take the place."""
        at_, powers = self.at, self.at.squares
        for at, column in self.block.slots():
            rows = smaller(_LANES, self.block.rows - column)
            given.read(column, rows, [one + at for one in (at_.shift, at_.factor, at_.constant, at_.unit)])
            unit = self.get(at_.unit, at)
            store_real(at_.unit + at, where(unit == 0.0, 1.0, unit))
            store_real(at_.of_dy + at, 1.0 / divisor(self.get(at_.of_dy, at)))
            store_real(powers + at, splat(0.0, FLOAT64, _LANES))
        for feature in loop(0, self.task.features, 1):
            for at, column in self.block.slots():
                size = magnitude(self.x_hat(feature, at, column))
                store_real(powers + at, larger_of(self.get(powers, at), size))
        for at, _ in self.block.slots():
            store_real(powers + at, power_of_two(self.get(powers, at)))
        self._sum_up_gradients(powers)
        for at, column in self.block.slots():
            of_g = [1.0 / self.get(at_.of_dy, at), splat(self.of_weight, FLOAT64, _LANES)]
            gradients = product(self.get(at_.gradients, at), of_g)
            along = product(self.get(at_.along, at), [*of_g, self.get(powers, at)])
            for one, value in ((at_.gradients, gradients), (at_.along, along)):
                store_real(one + at, value)
            for k in loop(0, smaller(_LANES, self.block.rows - column), 1):
                for is_taken in cases(real(self.block.taken + at + 8 * k) != 0.0):
                    if is_taken:
                        store_real(given.at(column + k), real(at_.gradients + at + 8 * k))
                        store_real(given.at(column + k) + 8, real(at_.along + at + 8 * k))
            self._set_factors(at, self.get(at_.factor, at), self.get(at_.unit, at))

    def write(self, sums: int) -> None:
        """Store dx, and add to the sums of the columns, row after row; 0 where there are none."""
        block, task, memory = self.block, self.task, self.block.sums
        for feature in loop(0, task.features, 1):
            for at, column in block.slots():
                g, x_hat = self.g(feature, at, column), self.x_hat(feature, at, column)
                dx = g
                if block.given is None:
                    dx = g - self.get(self.at.middle, at) - x_hat * self.get(self.at.across, at)
                for factor in self.at.factors:
                    dx = dx * self.get(factor, at)
                if task.arrays.total is not None:
                    dx = dx + block.read(TOTAL, feature, column)
                taken = self.get(block.taken, at) != 0.0
                store(block.place(Y, feature, column), FLOAT64, where(taken, dx, block.read(Y, feature, column)))
                for has_sums in cases(sums != 0):
                    if has_sums:
                        store_real(memory, x_hat)
                        self._add(sums + feature * 8, feature, at, column, memory)

    def _add(self, of_weight: int, feature: int, at: int, column: int, x_hats: int) -> None:
        of_bias = of_weight + self.task.features * 8
        by_weight, by_bias = cell(real(of_weight)), cell(real(of_bias))
        for k in range(_LANES):
            dy = peek(self.block.place(RESIDUAL, feature, column + k), FLOAT64)
            taken = real(self.block.taken + at + 8 * k) != 0.0
            by_weight[...] = where(taken, fma(dy, real(x_hats + 8 * k), by_weight), by_weight)
            by_bias[...] = where(taken, by_bias + dy, by_bias)
        store_real(of_weight, by_weight)
        store_real(of_bias, by_bias)


def differentiate_extreme(block: DerivativeBlock, sums: int) -> None:
    """Write dx of the rows of a block that are left, and add to the sums of features; 0 where there are none."""
    for column in loop(0, block.columns, _LANES):
        start = smaller(column, block.columns - _LANES)
        store_real(block.taken + column * 8, block.numbers(block.left + start * 8))
        store_real(block.left + start * 8, splat(0.0, FLOAT64, _LANES))
    size = cell(0.0)
    for feature in loop(0, block.task.features, 1):
        size[...] = larger_of(size, magnitude(real(block.task.weight + feature * 8)))
    rows = _ExtremeRows(block._replace(is_sparse=True), divisor(size + 0.0))
    rows.find_sizes()
    if block.given is None:
        rows.set_own()
    else:
        rows.set_given(block.given)
    rows.write(sums)
