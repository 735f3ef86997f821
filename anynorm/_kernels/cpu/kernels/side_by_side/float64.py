"""Rows of float64 side by side: their sums, and what they are multiplied and moved by, are pairs as in float64.py."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from anynorm._kernels.cpu.kernels.chunks import chunks_of
from anynorm._kernels.cpu.kernels.float64 import prepare_parameters, widen_in_pairs
from anynorm._kernels.cpu.kernels.moments import paired_moments_of
from anynorm._kernels.cpu.kernels.pairs import (
    PairFactors,
    PairSum,
    add_elements,
    apply_in_unit,
    apply_pairs,
    find_factors_in_unit,
    two_sum,
)
from anynorm._kernels.cpu.kernels.side_by_side.block import Block, Chunk, are_all, map_feature
from anynorm._kernels.cpu.kernels.side_by_side.given import Given
from anynorm._kernels.cpu.kernels.side_by_side.sums import SUMS_NBYTES, sum_chunk
from anynorm._kernels.cpu.kernels.streaming import read
from anynorm._kernels.cpu.kernels.units import find_in_units, larger_of, multiplier, unit_of, unit_of_moments
from anynorm._kernels.cpu.kernels.values import TaskValues
from anynorm._kernels.cpu.language.arithmetic import (
    fma,
    is_false,
    magnitude,
    number,
    power_of_two,
    smaller,
    splat,
    where,
)
from anynorm._kernels.cpu.language.dtypes import FLOAT64, LAYER, WIDEST_BLOCK, Lanes
from anynorm._kernels.cpu.language.flow import cases, cell, combinations, loop, when
from anynorm._kernels.cpu.language.memory import load, real, store_real

_LANES = FLOAT64.lanes
# For each row of the widest block one of the numbers that x is multiplied and moved by. A block that is first and last
# has less than lanes more at its head, and less than lanes more at its end.
_FACTORS_NBYTES = (WIDEST_BLOCK + 2 * _LANES) * 8
# Where rows before needed units, it is asked of others whether they do before they are reduced: squares of deviations
# of their first elements from the mean of those are less than all squares. Twice the bound of `find_factors`, which is
# above that of moments, leaves room for rounding. They are formed times a power of two, so that they are in range.
_SAMPLE, _OF_SAMPLE, _LEAST_EXTREME = 16, 2.0**-512, 2.0 ** (401 - 1024)


class _PairSums:
    """The sums of deviations from a shift and of their squares, as pairs."""

    def __init__(self, shift: Lanes, centred: bool) -> None:
        zero = splat(0.0, FLOAT64, _LANES)
        self._shift, self._centred, self._sums, self._squares = shift, centred, PairSum(zero), PairSum(zero)
        self.parts = [self._sums.high, self._sums.low, self._squares.high, self._squares.low]

    def add(self, value: Lanes) -> None:
        add_elements(value, self._shift, self._centred, self._sums, self._squares)

    @staticmethod
    def joined(a: list[Lanes], b: list[Lanes]) -> list[Lanes]:
        found = []
        for i in (0, 2):
            high, error = two_sum(a[i], b[i])
            found += [high, (a[i + 1] + b[i + 1]) + error]
        return found


class Float64Columns:
    """The steps for blocks of float64; ``memory`` is for NBYTES."""

    # For each row of a block the mean and the factor as pairs, the unit, which is 0 where there is none, and the power
    # that the factor is divided by; and the size.
    NBYTES = SUMS_NBYTES + FLOAT64.reduced * _LANES * 8 + 7 * _FACTORS_NBYTES

    def __init__(self, task: TaskValues, memory: int) -> None:
        self.task, self.memory, self._sums, self._centred = task, memory, memory, task.rule == LAYER
        numbers = memory + SUMS_NBYTES
        self._reduced = [numbers + i * _LANES * 8 for i in range(FLOAT64.reduced)]
        of_rows = [numbers + FLOAT64.reduced * _LANES * 8 + i * _FACTORS_NBYTES for i in range(7)]
        *self._factors, self._sizes = of_rows
        self._are_weights_safe, self._has_units, self._had_units = cell(True), cell(False), cell(False)
        self._sized = cell(-1)  # the block whose sizes are known

    def prepare(self) -> bool:
        """Widen parameters that take no more than a chunk; all can be applied."""
        self._are_weights_safe[...] = prepare_parameters(self.task)
        return True

    def reduce(self, block: Block, column: int, rows: int) -> list[int]:
        """Find the moments of lanes of rows, of which so many are rows; return where they lie."""

        def find(unit: Lanes) -> Lanes:
            *found, is_ordinary = paired_moments_of(self.task, *self._sum_up(block, column, unit))
            for place, value in zip(self._reduced, (*found, unit), strict=True):
                store_real(place, value)
            return is_ordinary

        self._find_in_units(block, column, rows, 1.0, find, unit_of_moments)
        return self._reduced

    def _find_in_units(
        self, block: Block, column: int, rows: int, of_ordinary: float,
        find: Callable[[Lanes], Lanes], unit_of: Callable[[Lanes], Lanes],
    ) -> None:  # fmt: skip
        """`find_in_units` of lanes of rows, of which so many are rows."""
        units, is_none = cell(splat(of_ordinary, FLOAT64, _LANES)), cell(False)
        are_all_rows = partial(are_all, rows=rows)
        for _ in when(self._had_units):
            is_none[...] = are_all_rows(self._are_extreme(block, column))
        all_ordinary = find_in_units(units, find, lambda: unit_of(self._size(block, column)), are_all_rows, is_none)
        self._had_units[...] = is_false(all_ordinary)

    def _are_extreme(self, block: Block, column: int) -> Lanes:
        """Which of lanes of rows have units for sure, by their first elements; others may have."""
        zero, chunk, count = splat(0.0, FLOAT64, _LANES), block.chunk(0), smaller(self.task.features, _SAMPLE)
        first = self._read(chunk, column, 0) if self._centred else zero
        sums, squares = cell(zero), cell(zero)
        for i in loop(0, count, 1):
            deviation = (self._read(chunk, column, i) - first) * _OF_SAMPLE
            sums[...] = sums + deviation
            squares[...] = fma(deviation, deviation, squares)
        return squares - (sums * sums / number(count) if self._centred else zero) > _LEAST_EXTREME

    def _sum_up(self, block: Block, column: int, unit: Lanes) -> tuple[Lanes, PairSum, PairSum]:
        """The shifts and the sums of lanes of rows, times their units."""
        zero = splat(0.0, FLOAT64, _LANES)
        near = self._read(block.chunk(0), column, 0) * unit if self._centred else zero
        sums, squares = PairSum(zero), PairSum(zero)
        for start, count in chunks_of(self.task):
            read_feature = partial(self._read_in_unit, block.chunk(start), column, unit)
            found = sum_chunk(_PairSums(near, self._centred), read_feature, count, _LANES, FLOAT64, self._sums)
            sums.add(*found[:2])
            squares.add(*found[2:])
        return near, sums, squares

    def _size(self, block: Block, column: int) -> Lanes:
        """The largest magnitudes of lanes of rows, as `size_of` has them."""
        for _ in when(self._sized != block.unit):
            self._find_sizes(block)
            self._sized[...] = block.unit
        return load(self._sizes + column * 8, FLOAT64)

    def _find_sizes(self, block: Block) -> None:
        """The same of all rows of a block, feature after feature, as they lie in memory."""
        for column, _ in block.starts():
            store_real(self._sizes + column * 8, splat(0.0, FLOAT64, _LANES))
        for start, count in chunks_of(self.task):
            chunk = block.chunk(start)
            for i in loop(0, count, 1):
                for column, _ in block.starts():
                    at = self._sizes + column * 8
                    store_real(at, larger_of(load(at, FLOAT64), magnitude(self._read(chunk, column, i))))

    def _read(self, chunk: Chunk, column: int, feature: int) -> Lanes:
        return read(self.task, chunk.at(feature, column * 8), 0, FLOAT64)

    def _read_in_unit(self, chunk: Chunk, column: int, unit: Lanes, feature: int) -> Lanes:
        return self._read(chunk, column, feature) * unit

    def find_factors(self, block: Block, given: Given | None) -> bool:
        """Find what each row of a block is multiplied and moved by; all are safe."""
        self._has_units[...] = is_false(self._are_weights_safe)
        for column, rows in block.starts():
            places = [place + column * 8 for place in self._factors]
            if given is not None:
                mean, mean_low, factor, factor_low, unit, _ = places
                given.read(block, column, rows, [mean, mean_low, factor, unit])
                store_real(factor_low, splat(0.0, FLOAT64, _LANES))
            else:
                self._find_own_factors(block, column, rows, places)
            unit = load(places[4], FLOAT64)
            unit = where(self._are_weights_safe, unit, multiplier(unit))
            factor, power = load(places[2], FLOAT64), splat(1.0, FLOAT64, _LANES)
            if not self._centred:  # the factor of a row that has a unit is near 1 then
                power = where(unit == 0.0, power, power_of_two(factor))
            factor, factor_low = factor / power, load(places[3], FLOAT64) / power
            for place, value in zip(places[2:], (factor, factor_low, unit, power), strict=True):
                store_real(place, value)
            self._has_units[...] = self._has_units | is_false(are_all(unit == 0.0, rows))
        return True

    def _find_own_factors(self, block: Block, column: int, rows: int, places: list[int]) -> None:
        """The same of lanes of rows by their own moments, but for the power."""

        def find(unit: Lanes) -> Lanes:
            found = find_factors_in_unit(self.task, unit, *self._sum_up(block, column, multiplier(unit)))
            for place, value in zip(places, (*found, unit), strict=False):
                store_real(place, value)
            return found[2] == found[2]

        self._find_in_units(block, column, rows, 0.0, find, partial(unit_of, self.task))

    def apply(self, block: Block, given: bool) -> None:
        """Apply a block of rows, feature after feature."""
        task, scratch = self.task, self.task.scratch
        for start, length in chunks_of(task):
            for _ in when(task.widened & (length != task.features)):
                widen_in_pairs(task, start, length)
            chunk = block.chunk(start)
            for has_units, widened, streaming in combinations(self._has_units, task.widened, task.streaming):
                for has_offset in cases(task.has_lows if widened else False):
                    needed = (scratch.weights, widened), (scratch.lows, has_offset), (scratch.biases, widened)
                    for k in loop(0, length, 1):
                        parameters = [
                            splat(real(numbers + k * 8), FLOAT64, _LANES) if one else None for numbers, one in needed
                        ]
                        compute = partial(self._apply, parameters, has_units, given)
                        map_feature(task, block, chunk, k, streaming, compute)
            block.unpack(start)

    def _apply(self, parameters: list[Lanes | None], has_units: bool, given: bool, column: int, value: Lanes) -> Lanes:
        """The result for a feature of lanes of rows, some of which may have units."""
        *factors, unit, power = (load(place + column * 8, FLOAT64) for place in self._factors)
        found = apply_pairs(value, PairFactors(self._centred, *factors), *parameters)
        if not has_units:
            return found
        if given and self._centred:
            factors[3] = None
        row = PairFactors(self._centred, *factors)
        return where(unit == 0.0, found, apply_in_unit(value, row, unit, power, self.task.scale, *parameters))
