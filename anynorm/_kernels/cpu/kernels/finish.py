"""Step 2 of the definition for given moments: the numbers that rows are applied with, and those of derivatives.

The definition, of which this has the bits, is `merging.step_of_given` in anynorm/_definition; constants are as there.
"""

from __future__ import annotations

import math
from typing import NamedTuple

from anynorm._kernels.cpu.kernels.pairs import multiply_pairs, two_sum
from anynorm._kernels.cpu.kernels.side_by_side.block import real_lanes
from anynorm._kernels.cpu.kernels.task import GIVEN, GivenTask, Variant
from anynorm._kernels.cpu.language.arithmetic import is_false, magnitude, root, rounded, smaller, splat, where
from anynorm._kernels.cpu.language.dtypes import FINISHED, FLOAT64, FLOOR, INSIDE, LAYER, ONCE, OUTSIDE, SCALE, Lanes
from anynorm._kernels.cpu.language.flow import loop
from anynorm._kernels.cpu.language.memory import buffer, integer, real, store_real

LANES = FLOAT64.lanes
# Less than the mean square of any row that is not all zeros, and the least length to divide by: of narrower rows, and
# of float64.
_LEAST_ENERGY, _LEAST_LENGTH = {False: 2.0**-340, True: 2.0**-480}, 2.0**-1000
_LARGEST = 1.7976931348623157e308
# Rows of float64 whose factor lies beyond, or its reciprocal, or whose shift does, are applied in their unit.
_MOST_FACTOR, _MOST_SHIFT = 2.0**400, 2.0**180
# Of a factor and a unit in one: beyond, and beyond the reciprocal, they stay apart in the derivative.
_LEAST_FACTOR = 2.0**-500


class _Given(NamedTuple):
    """Moments of rows, in a unit in which eps is in range; of narrower rows than float64 that is 1."""

    count: Lanes
    mean: Lanes
    low: Lanes  # what the mean lacks
    squares: Lanes  # of deviations from the mean, or from 0 where nothing is centred
    unit: Lanes


class _Step(NamedTuple):
    """What step 2 makes of them."""

    factor: Lanes
    root: Lanes
    least: Lanes  # what the row is divided by at least


def finish_rows(variant: Variant, address: int, first: int, last: int) -> int:
    """Leave FINISHED numbers of each of the rows first to last in memory, as given.py reads them; return the last.

    For a derivative they are as derivative/rows.py reads them. Then there are as many that the gradient of
    the moments is made of, see launch/given_vjp.py.
    """
    parts, outcome = Parts(variant, address), buffer(FINISHED * LANES * 8)
    to, of_gradient = _word(address, "numbers"), _word(address, "of_gradient")
    for row in loop(first, last, LANES):
        rows = smaller(LANES, last - row)
        given, step, numbers = parts.finish(row, 1, rows)
        _store(to, row, rows, numbers, outcome)
        if variant.has_numbers:
            _store(of_gradient, row, rows, _numbers_of_gradient(variant, address, given, step), outcome)
    return last


def _number(address: int, field: str) -> Lanes:
    return splat(real(address + getattr(GivenTask, field).offset), FLOAT64, LANES)


def _word(address: int, field: str) -> int:
    return integer(address + getattr(GivenTask, field).offset)


class Parts:
    """What moments have of some rows, side by side in lanes; of lanes behind the last row there is anything."""

    def __init__(self, variant: Variant, address: int) -> None:
        self._variant, self._address = variant, address
        self._fields = GIVEN if _is_wide(variant) else GIVEN[:4]

    def finish(self, row: int, aside: int, rows: int) -> tuple[_Given, _Step, tuple[Lanes, ...]]:
        """The moments of up to LANES rows, one of each ``aside`` from one on, and what becomes of them."""
        variant, address = self._variant, self._address
        parts = [self._take(field, row, aside, rows) for field in self._fields]
        given = _moments_of(variant, address, *parts)
        step = _finish(variant, address, given)
        return given, step, (_numbers_of_derivative if variant.has_numbers else _numbers)(variant, address, given, step)

    def _take(self, field: str, row: int, aside: int, rows: int) -> Lanes:
        step = _word(self._address, f"{field}_step")
        return real_lanes(_word(self._address, field) + row * step, aside * step, rows)


def _store(to: int, row: int, rows: int, numbers: tuple[Lanes, ...], memory: int) -> None:
    """Store numbers of rows, row after row."""
    for place, one in enumerate(numbers):
        store_real(memory + place * LANES * 8, one)
    for k in loop(0, rows, 1):
        for place in range(FINISHED):
            store_real(to + ((row + k) * FINISHED + place) * 8, real(memory + (place * LANES + k) * 8))


def _all(value: float) -> Lanes:
    """A number in all lanes."""
    return splat(value, FLOAT64, LANES)


def _is_wide(variant: Variant) -> bool:
    return variant.dtypes[0] is FLOAT64


# NaN is neither less nor more, and stays.


def _at_least(value: Lanes, bound: Lanes) -> Lanes:
    return where(value < bound, bound, value)


def _at_most(value: Lanes, bound: Lanes) -> Lanes:
    return where(value > bound, bound, value)


def _reaches(value: Lanes, bound: float) -> Lanes:
    """1 where a number is a power of two or more, its share of that below."""
    return _at_most(value * (1.0 / bound), 1.0)


def _exceeds(value: Lanes, bound: float) -> Lanes:
    """1 where a number is more than a power of two, else 0."""
    return _at_most(_at_least(value * (1.0 / bound) - 1.0, 0.0) * 2.0**53, 1.0)


def _moments_of(
    variant: Variant, address: int, count: Lanes, mean: Lanes, low: Lanes, squares: Lanes, *of_wide: Lanes
) -> _Given:
    """The moments of rows; nothing is known of one without elements, and what is made of that is NaN."""
    squares = where(count == 0.0, math.nan, squares)
    if not _is_wide(variant):
        if variant.rule != LAYER:
            squares = squares + mean * mean * count
        return _Given(count, mean, low, squares, _all(1.0))
    (squares_low, own), most = of_wide, _number(address, "most")
    unit = where(own > most, most, own)
    if variant.rule == LAYER:
        # Zeros have the largest unit there is, in which an x that is given their statistics might leave the range.
        unit = where((squares == 0.0) & (mean == 0.0) & (unit > 1.0), 1.0, unit)
    else:
        pair = two_sum(mean, low)
        of_mean = multiply_pairs(multiply_pairs(pair, pair), (count, _all(0.0)))
        high, rest = two_sum(squares, of_mean[0])
        squares, squares_low = high + (rest + (squares_low + of_mean[1])), _all(0.0)
    ratio = unit / own
    squares = squares * ratio * ratio + squares_low * ratio * ratio
    return _Given(count, mean * ratio, low * ratio, squares, unit)


def _finish(variant: Variant, address: int, given: _Given) -> _Step:
    """1 / sqrt(squares / n + eps), for scale_norm 1 / max(sqrt(squares), eps); where eps is 0, 0 for a row of zeros."""
    wide, place, eps = _is_wide(variant), variant.eps_place, _number(address, "eps")
    is_inside, is_mean = place == INSIDE, variant.rule != SCALE and place != FLOOR
    energy, least_energy, least = given.squares, _LEAST_ENERGY[wide], _all(0.0)
    if is_mean:
        energy = energy / _at_least(given.count, 1.0)
    if is_inside:
        energy = energy + (eps * given.unit * given.unit if wide else eps)
    length = root(_at_least(energy, least_energy))
    if variant.rounds_root:
        length = where(given.squares == 0.0, length, rounded(length, variant.dtypes[0]))
    divisor = length
    if wide or not is_inside:
        least = _at_least(_number(address, "length") * given.unit, _LEAST_LENGTH)
        if is_inside:
            # Only for rows without deviations, where what is added has vanished: any other root exceeds it. An x that
            # is given their statistics may have some, which are to be divided by the root of eps itself.
            least = least * (1.0 - 2.0**-51 * _exceeds(energy, least_energy))
        divisor = length * _reaches(energy, least_energy)
        divisor = divisor + least if place == OUTSIDE else _at_least(divisor, least)
    is_nothing = eps <= (0.0 if wide or not is_inside else least_energy)
    size = given.squares
    factor = where(is_nothing, _reaches(size, least_energy), 1.0) * (1.0 / where(is_nothing, length, divisor))
    if variant.rule != SCALE and not is_mean and not variant.makes_unit_vectors:
        factor = factor * root(given.count)
    # A row that holds Inf is to be NaN; with centring Inf - Inf is.
    return _Step(factor if variant.rule == LAYER else factor + 0.0 * size, length, least)


def _numbers(variant: Variant, address: int, given: _Given, step: _Step) -> tuple[Lanes, ...]:
    """Shift, factor and constant; of float64 the shift as a pair, the factor, and a unit, 0 where the row has none."""
    scale, factor = _number(address, "scale"), step.factor
    if variant.rule == SCALE and variant.rounding == ONCE:
        # Infinity times a zero of the row would be NaN.
        factor = where(scale == 1.0, factor, _at_most(_at_least(factor * scale, -_LARGEST), _LARGEST))
    shift, low = _shift_of(variant, given)
    if not _is_wide(variant):
        return shift, factor, -low * factor, _all(0.0)
    plain = shift / given.unit, low / given.unit, factor * given.unit
    size = magnitude(plain[2])
    near = is_false(magnitude(plain[0]) > _MOST_SHIFT)
    # Of 0 or NaN only where the row or the scale is: a product may also have left the range.
    is_nothing = (size == 0.0) & ((step.factor == 0.0) | (scale == 0.0)) | is_false(step.factor == step.factor)
    is_plain = ((size < _MOST_FACTOR) & (size > 1.0 / _MOST_FACTOR) | is_nothing) & near
    in_unit = shift, low, step.factor
    return *(where(is_plain, *pair) for pair in zip(plain, in_unit, strict=True)), where(is_plain, 0.0, given.unit)


def _shift_of(variant: Variant, given: _Given) -> tuple[Lanes, Lanes]:
    return (given.mean, given.low) if variant.rule == LAYER else (_all(0.0), _all(0.0))


def _factors(variant: Variant, address: int, given: _Given, step: _Step) -> tuple[Lanes, Lanes]:
    """What a gradient is multiplied by: the factor and the unit."""
    if not _is_wide(variant) or variant.rule == SCALE:
        return step.factor, given.unit
    # A flat row has the factor 1 / sqrt(eps), which may be out of range in the unit of a large row.
    is_flat = (1.0 - _reaches(given.squares, _LEAST_ENERGY[True])) * (1.0 - _at_most(given.unit, 1.0))
    of_eps, has_eps = is_flat / _number(address, "length"), _number(address, "eps") > 0.0
    factor, unit = step.factor * (1.0 - is_flat) + of_eps, given.unit * (1.0 - is_flat) + is_flat
    return where(has_eps, factor, step.factor), where(has_eps, unit, given.unit)


def _numbers_of_derivative(variant: Variant, address: int, given: _Given, step: _Step) -> tuple[Lanes, ...]:
    """Shift, factor, constant and unit; the unit is 0 where the factor holds it too."""
    (factor, unit), (shift, low) = _factors(variant, address, given, step), _shift_of(variant, given)
    if not _is_wide(variant):  # whose rows have no unit
        return shift, factor, -low * factor, _all(0.0)
    whole = factor * unit
    size = magnitude(whole)
    is_whole = (size > _LEAST_FACTOR) & (size < 1.0 / _LEAST_FACTOR)
    divisor = given.unit / where(is_whole, 1.0, unit)
    taken = where(is_whole, whole, factor)
    return shift / divisor, taken, -(low / divisor) * taken, where(is_whole, 0.0, unit)


def _numbers_of_gradient(variant: Variant, address: int, given: _Given, step: _Step) -> tuple[Lanes, ...]:
    """Factor and unit, the mean times the factor, and whether the length of the row has a part in the result."""
    of_length = _all(1.0)
    if variant.rule == SCALE:
        of_length = where(_number(address, "eps") == 0.0, 1.0, 1.0 - _exceeds(step.least / step.root, 1.0))
    mean = (given.mean + given.low) * step.factor
    return *_factors(variant, address, given, step), mean, of_length
