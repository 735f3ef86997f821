"""Rows of float64 side by side: their sums, and what they are multiplied and moved by, are pairs as in float64.py."""

from __future__ import annotations

from functools import partial

from anynorm._kernels.cpu.kernels.chunks import chunks_of
from anynorm._kernels.cpu.kernels.float64 import (
    PairFactors,
    PairSum,
    add_elements,
    apply_pairs,
    find_factors,
    prepare_parameters,
    two_sum,
    widen_in_pairs,
)
from anynorm._kernels.cpu.kernels.moments import paired_moments_of
from anynorm._kernels.cpu.kernels.side_by_side.block import Block, Chunk, Numbers, are_all, map_feature
from anynorm._kernels.cpu.kernels.side_by_side.sums import SUMS_NBYTES, sum_chunk
from anynorm._kernels.cpu.kernels.streaming import read
from anynorm._kernels.cpu.kernels.values import TaskValues
from anynorm._kernels.cpu.language.arithmetic import splat, where
from anynorm._kernels.cpu.language.dtypes import FINISHED, FLOAT64, LAYER, WIDEST_BLOCK, Lanes
from anynorm._kernels.cpu.language.flow import cell, combinations, loop, when
from anynorm._kernels.cpu.language.memory import load, real, store_real

_LANES = FLOAT64.lanes
# For each row of the widest block one of the numbers that x is multiplied and moved by. A block that is first and last
# has less than lanes more at its head, and less than lanes more at its end.
_FACTORS_NBYTES = (WIDEST_BLOCK + 2 * _LANES) * 8


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

    NBYTES = SUMS_NBYTES + FLOAT64.reduced * _LANES * 8 + FINISHED * _FACTORS_NBYTES

    def __init__(self, task: TaskValues, memory: int) -> None:
        self.task, self._sums, self._centred = task, memory, task.rule == LAYER
        numbers = memory + SUMS_NBYTES
        self._reduced = [numbers + i * _LANES * 8 for i in range(FLOAT64.reduced)]
        self._factors = [numbers + FLOAT64.reduced * _LANES * 8 + i * _FACTORS_NBYTES for i in range(FINISHED)]

    def prepare(self) -> bool:
        """Widen parameters that take no more than a chunk; whether products with the weights keep their range."""
        return prepare_parameters(self.task)

    def reduce(self, block: Block, column: int) -> list[int]:
        """Find the moments of lanes of rows; return where they lie. The unit is 0 of rows that need another than 1."""
        *found, is_ordinary = paired_moments_of(self.task, *self._reduce(block, column))
        zero = splat(0.0, FLOAT64, _LANES)
        for place, value in zip(self._reduced, (*found, where(is_ordinary, 1.0, zero)), strict=True):
            store_real(place, value)
        return self._reduced

    def _reduce(self, block: Block, column: int) -> tuple[Lanes, PairSum, PairSum]:
        zero = splat(0.0, FLOAT64, _LANES)
        shift, sums, squares = cell(zero), PairSum(zero), PairSum(zero)
        if self._centred:
            shift[...] = self._read(block.chunk(0), column, 0)
        near = shift + 0.0
        for start, count in chunks_of(self.task):
            read_feature = partial(self._read, block.chunk(start), column)
            found = sum_chunk(_PairSums(near, self._centred), read_feature, count, _LANES, FLOAT64, self._sums)
            sums.add(*found[:2])
            squares.add(*found[2:])
        return near, sums, squares

    def _read(self, chunk: Chunk, column: int, feature: int) -> Lanes:
        return read(self.task, chunk.at(feature, column * 8), 0, FLOAT64)

    def find_factors(self, block: Block, given: bool) -> tuple[bool, bool]:
        """Find what each row of a block is multiplied and moved by; whether all are safe, and have no unit.

        And whether to go row after row where they are not, which is so.
        """
        safe = cell(True)
        numbers = Numbers(block, FINISHED) if given else None
        for column, rows in block.starts():
            places = [place + column * 8 for place in self._factors]
            if numbers is not None:
                numbers.copy(column, rows, places, given=True)
                safe[...] = safe & are_all(load(places[-1], FLOAT64) == 0.0, rows)
            else:
                found = find_factors(self.task, *self._reduce(block, column))
                safe[...] = safe & are_all(found[2] == found[2], rows)
                for place, value in zip(places, found, strict=True):
                    store_real(place, value)
        return safe, True

    def apply(self, block: Block) -> None:
        """Apply a block of rows, feature after feature."""
        task, scratch = self.task, self.task.scratch
        for start, length in chunks_of(task):
            for _ in when(task.widened & (length != task.features)):
                widen_in_pairs(task, start, length)
            chunk = block.chunk(start)
            conditions = (task.widened, task.weight_offset != 0.0, task.streaming)
            for widened, has_offset, streaming in combinations(*conditions):
                for k in loop(0, length, 1):
                    needed = (
                        (scratch.weights, widened),
                        (scratch.lows, widened and has_offset),
                        (scratch.biases, widened),
                    )
                    parameters = [
                        splat(real(numbers + k * 8), FLOAT64, _LANES) if one else None for numbers, one in needed
                    ]

                    def compute(column: int, value: Lanes, parameters: list[Lanes | None] = parameters) -> Lanes:
                        factors = (load(place + column * 8, FLOAT64) for place in self._factors)
                        return apply_pairs(value, PairFactors(self._centred, *factors), *parameters)

                    map_feature(task, block, chunk, k, streaming, compute)
            block.unpack(start)
