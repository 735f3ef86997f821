"""Rows of which only some elements are stored: the definition of rms_norm and scale_norm on SciPy's CSR and CSC.

Nothing is stored where nothing was, except in a row that holds NaN or Inf, which is NaN throughout as any other is.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy

from anynorm._definition.norms import Precision, Rule, Statistics, Step, apply, finish
from anynorm._definition.pairs import multiply_pairs, split, two_sum
from anynorm._definition.scaling import unit_of
from anynorm._libraries import library_of

Array = Any

# Elements that are worked through at a time, so that float64 temporaries stay in cache.
_BLOCK_ELEMENTS = 1 << 15
# Sums of squares of float64 from here to the reciprocal need no unit; mean squares of any row's length do not either.
_SMALLEST = 2.0**-400
# An element that is smaller in its row's unit may have lost digits there.
_LEAST_IN_UNIT = 2.0**-900


class _Runs(NamedTuple):
    """Elements that lie row after row, as in CSR; there is no row without any among them."""

    starts: Array
    lengths: Array

    def total(self, values: Array) -> Array:
        """The sum of each row."""
        return numpy.add.reduceat(values, self.starts)

    def largest(self, values: Array) -> Array:
        """The largest of each row."""
        return numpy.maximum.reduceat(values, self.starts)

    def spread(self, of_rows: Array) -> Array:
        """For each element the number that its row has."""
        return numpy.repeat(of_rows, self.lengths)


def normalize(matrix: Any, rule: Rule, eps: float, scale: float | None) -> Any:
    """Normalize each row of a CSR or CSC matrix in place; return it, or one with more stored where a row is NaN."""
    if not matrix.has_canonical_format:  # indices are sorted then, which other matrices may share
        matrix.indices, matrix.indptr = matrix.indices.copy(), matrix.indptr.copy()
        matrix.sum_duplicates()
    by_rows = matrix.tocsr()
    precision, holds_nan = library_of(by_rows.data).precision(by_rows.data), False
    with numpy.errstate(all="ignore"):
        for elements, rows in _blocks(by_rows.indptr):
            x = by_rows.data[elements].astype(precision.dtype, copy=False)
            found = _reduce(x, rows, matrix.shape[1], rule, precision, eps)
            step = finish(numpy, found, rule, eps, precision)
            by_pairs = precision.digits and not rule.averaged
            apply_step = _apply_pairs if by_pairs else _apply
            by_rows.data[elements] = apply_step(x, step, found, rows, scale, precision)
            holds_nan |= bool(numpy.isnan(step.factor).any())
    if by_rows is not matrix:
        matrix.data[:] = by_rows.tocsc().data
    return _with_whole_rows(matrix) if holds_nan else matrix


def _blocks(bounds: Array) -> Iterator[tuple[slice, _Runs]]:
    """Parts of the stored elements that hold some whole rows each, of which those bounds are given."""
    most = int(numpy.iinfo(bounds.dtype).max)
    first, count = 0, len(bounds) - 1
    while bounds[first] < bounds[count]:
        # In the dtype of the bounds; for another one NumPy would convert them all, block after block.
        end = bounds.dtype.type(min(int(bounds[first]) + _BLOCK_ELEMENTS, most))
        last = min(int(numpy.searchsorted(bounds, end)), count)
        lengths = numpy.diff(bounds[first : last + 1])
        stored = lengths > 0
        starts = bounds[first:last][stored] - bounds[first]
        yield slice(int(bounds[first]), int(bounds[last])), _Runs(starts, lengths[stored])
        first = last


def _reduce(x: Array, rows: _Runs, features: int, rule: Rule, precision: Precision, eps: float) -> Statistics:
    """Step 1 of the definition; what is not stored adds nothing to a sum of squares."""
    values, low, unit = x * x, None, None
    squares = rows.total(values)
    if precision.digits:
        unit = numpy.ones_like(squares)
        if not _in_range(squares, x, rows):
            unit = unit_of(numpy, rows.largest(abs(x)), precision.digits, features, eps, rule.eps_place == "inside")
            values = (x * rows.spread(unit)) ** 2
            squares = rows.total(values)
        # That many leading bits of each square are added without rounding; what is left is small (Rump, Ogita, Oishi
        # 2008, "Accurate floating-point summation").
        boundary = rows.spread(8.0 * squares)
        leading = (values + boundary) - boundary
        squares, low = two_sum(rows.total(leading), rows.total(values - leading))
    return Statistics(features, None, None, None, squares, low, unit)


def _in_range(squares: Array, x: Array, rows: _Runs) -> bool:
    """Whether the sum of squares of each row, but of those that hold zeros alone, lies well within float64."""
    is_zero = squares == 0.0
    if not ((squares > _SMALLEST) & (squares < 1 / _SMALLEST) | is_zero).all():
        return False
    return not (is_zero.any() and x[rows.spread(is_zero)].any())


def _apply(x: Array, step: Step, found: Statistics, rows: _Runs, scale: float | None, precision: Precision) -> Array:
    """Step 3 of the definition, with step 2's numbers of each element."""
    unit = step.unit
    if unit is not None:
        unit = numpy.ones(1) if (unit == 1.0).all() else rows.spread(unit)
    return apply(numpy, x, step._replace(factor=rows.spread(step.factor), unit=unit), scale, None, precision)


def _apply_pairs(
    x: Array, step: Step, found: Statistics, rows: _Runs, scale: float | None, precision: Precision
) -> Array:
    """Step 3 of scale_norm in float64, with a factor of twice the digits: results are off by less than one unit."""
    of_squares = multiply_pairs((step.factor, 0.0), (step.factor, 0.0), 53)
    high, low = multiply_pairs(of_squares, (found.squares, found.squares_low), 53)
    lacking = (1.0 - high) - low
    # Rows that are shorter than eps, and those of zeros, have a factor that is not 1 / sqrt(squares).
    rest = numpy.where(numpy.sqrt(found.squares) > step.least_divisor, step.factor * lacking * 0.5, 0.0)
    factor_high, factor_low = split(step.factor, 53)
    is_ordinary = bool(numpy.all(step.unit == 1.0))
    in_unit = x if is_ordinary else x * rows.spread(step.unit)
    of_high, of_low = rows.spread(factor_high), rows.spread(factor_low + rest)
    x_high, x_low = split(in_unit, 53)
    y = x_high * of_high + (x_low * of_high + in_unit * of_low)  # the first of these products is exact
    y = y if scale is None else y * scale
    if is_ordinary:
        return y
    return numpy.where(abs(in_unit) > _LEAST_IN_UNIT, y, _apply(x, step, found, rows, scale, precision))


def _with_whole_rows(matrix: Any) -> Any:
    """The same with NaN in each place of a row that has one."""
    coordinates = matrix.tocoo()
    rows = numpy.unique(coordinates.row[numpy.isnan(coordinates.data)])
    features = matrix.shape[1]
    places = numpy.repeat(rows, features), numpy.tile(numpy.arange(features), len(rows))
    values = numpy.full(len(places[0]), numpy.nan, matrix.dtype)
    return matrix + type(coordinates)((values, places), shape=matrix.shape).asformat(matrix.format)
