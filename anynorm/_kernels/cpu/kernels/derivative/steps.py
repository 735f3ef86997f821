"""The steps of the derivative of a group of rows: sums, what follows from them for each row, and the elements of dx.

With x_hat = (x - shift) * factor + constant and g = dy * weight::

    dx = factor * (g - mean(g) - x_hat * mean(g * x_hat))

Rows are computed in float32 as long as that costs no more than a few units of the gradient's own size, and in float64
otherwise. In float32 hardly a digit would be left of a gradient that lies along x_hat: that of sum(y**2), say, is
smaller than its terms by eps / var.

Where moments are given, dx is factor * g alone, and the sums are what the gradient of the moments is made of.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

from anynorm._kernels.cpu.kernels.reduce import is_far
from anynorm._kernels.cpu.kernels.values import TaskValues
from anynorm._kernels.cpu.language.arithmetic import fma, magnitude, number, where
from anynorm._kernels.cpu.language.dtypes import FLOAT32, FLOAT64, GROUP, LAYER, OF_ROW, SCALE, Dtype, Lanes
from anynorm._kernels.cpu.language.memory import load

# Steps of float32 after which sums go on in float64.
FOLD = 8
# Where squares of float64 neither overflow nor lose bits, and those of float32 with all that is made of them.
RANGE64, _RANGE32 = (2.0**-500, 2.0**500), (2.0**-80, 2.0**100)
_FACTORS32 = 2.0**-60, 2.0**60
# Of the weight of a row that is one number: its gradient is formed of dy alone, whose range is that of g then.
NUMBERS32 = 2.0**-20, 2.0**20
# The part of the energy of g that is to be left in dx for float32.
_LEFT = 0.25


class Group(NamedTuple):
    """Memory for a group of rows, 8 bytes for each, beside that in scratch.

    Gradients to energies are float64, shifts to alongs what the derivative is computed in.
    """

    gradients: int  # the sum of g
    products: int  # the sum of g * (x - shift)
    energies: int  # the sum of g**2
    shifts: int
    factors: int
    constants: int
    middles: int  # -factor * mean(g)
    alongs: int  # -factor * mean(g * x_hat)
    # Of rows that have one number of weight and bias each:
    weights: int  # that of the weight
    of_weights: int  # the sum of dy * (x - shift)
    of_biases: int  # the sum of dy
    row: int  # its number; addresses of a chunk of it:
    x: int
    dy: int
    dx: int
    dtotal: int

    @property
    def of_dx(self) -> tuple[int, ...]:
        """Where that lies what `dx_of` is made of."""
        return self.shifts, self.factors, self.constants, self.middles, self.alongs

    def from_row(self, k: int) -> Group:
        """The same from one of the rows on."""
        return Group(*(one + 8 * k for one in self))

    @classmethod
    def at(cls, address: int, rows: int = GROUP) -> Group:
        """Divide up memory, which is GROUP_NBYTES unless there are more rows."""
        return cls(*(address + i * rows * 8 for i in range(len(cls._fields))))


class Columns(NamedTuple):
    """Where the gradients of weight and bias go, from the first feature on; 0 where there is none.

    They are sums of float64 that are added to; where each row has its own, elements of x's dtype that are written.
    """

    of_weight: int
    of_bias: int

    @classmethod
    def at(cls, sums: int, features: int) -> Columns:
        """Those of so many features, at an address or nowhere; it depends on the task whether there is a bias."""
        return cls(sums, where(sums == 0, 0, sums + features * 8))


GROUP_NBYTES = len(Group._fields) * GROUP * 8


def lanes_in(compute_dtype: Dtype) -> int:
    """Elements at a time. More sums of float64 than of this many would not stay in 16 registers."""
    return 16 if compute_dtype is FLOAT32 else 8


def weights_of(task: TaskValues, compute_dtype: Dtype) -> int:
    """Where the weights lie."""
    return task.weight if compute_dtype is FLOAT64 else task.narrow_weight


def load_weights(task: TaskValues, compute_dtype: Dtype, feature: int, lanes: int) -> Lanes:
    """The weights of features from one on, in lanes."""
    if task.variant.parameters == OF_ROW:
        return load(task.weight + feature * task.itemsize, task.dtype, compute_dtype, lanes)
    return load(weights_of(task, compute_dtype) + feature * compute_dtype.itemsize, compute_dtype, compute_dtype, lanes)


def add_to_sums(of_row: list[Any], d: Lanes, g: Lanes) -> None:
    """Add to the sums of deviations from a shift and of their squares, of g, of g times deviations, of squares of g."""
    sums, squares, gradients, products, energies = of_row
    sums[...] = sums + d
    squares[...] = fma(d, d, squares)
    gradients[...] = gradients + g
    products[...] = fma(g, d, products)
    energies[...] = fma(g, g, energies)


def parts_of_dx(
    task: TaskValues, shift: Lanes, sums: Lanes, squares: Lanes, factor: Lanes, constant: Lanes,
    gradients: Lanes, products: Lanes, energy: Lanes,
) -> tuple[tuple[Lanes, ...], Lanes, bool, bool]:  # fmt: skip
    """What a row is multiplied and moved by, and the sum of g * x_hat; whether its range holds x, and whether g.

    Of float64 numbers of a row, or of lanes of them, for rows side by side.
    """
    count = number(task.features)
    along, middle = fma(products, factor, gradients * constant), where(task.rule == LAYER, gradients / count, 0.0)
    across = along / count
    if task.rule == SCALE:
        across = where(squares < task.eps * task.eps, 0.0, along)
    # The sum of g is not finite where dy holds NaN or Inf, which makes NaN of the whole row.
    across = where(magnitude(gradients) < math.inf, across, math.nan)
    of_row = (shift, factor, constant, 0.0 - middle * factor, 0.0 - across * factor)
    if task.compute_dtype is FLOAT32:
        left = energy - gradients * middle - 2.0 * along * across
        near = where(is_far(sums, squares, sums / count), False, lies_within(squares, _RANGE32))
        return (
            of_row,
            along,
            near & lies_within(factor, _FACTORS32),
            lies_within(energy, _RANGE32) & (left > _LEFT * energy),
        )
    if task.dtype is not FLOAT64:
        return of_row, along, True, True
    # Squares of finite numbers add up to Inf at worst: an energy of NaN is that of a row which is to become NaN.
    known = where(energy == energy, lies_within(energy, RANGE64), True)
    return of_row, along, lies_within(squares, RANGE64) & lies_within(factor, RANGE64), known


def lies_within(value: Lanes, bounds: tuple[float, float]) -> bool:
    """Whether a magnitude lies between two bounds."""
    size = magnitude(value)
    return (size > bounds[0]) & (size < bounds[1])


def dx_of(x: Lanes, dy: Lanes, weight: Lanes, of_row: list[Lanes], centred: bool, given: bool) -> tuple[Lanes, Lanes]:
    """Elements of x_hat and dx, of a row or of rows side by side."""
    shift, factor, constant, middle, along = of_row
    x_hat = fma(x - shift, factor, constant) if centred else x * factor
    if given:
        return x_hat, dy * weight * factor
    return x_hat, fma(dy * weight, factor, fma(x_hat, along, middle) if centred else x_hat * along)
