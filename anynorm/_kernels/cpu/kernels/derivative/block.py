"""A block of rows side by side whose derivative is formed, and the memory that it is formed in."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from anynorm._kernels.cpu.kernels.chunks import chunks_of, parts_of
from anynorm._kernels.cpu.kernels.derivative.steps import FOLD, Group, lanes_in
from anynorm._kernels.cpu.kernels.scatter import (
    RESIDUAL,
    TOTAL,
    X,
    Y,
    axis_stride,
    copy_tile,
    row_of,
)
from anynorm._kernels.cpu.kernels.side_by_side.block import Block, Numbers
from anynorm._kernels.cpu.kernels.values import Arrays, TaskValues
from anynorm._kernels.cpu.language.arithmetic import as_lanes, smaller, splat, sum_lanes, where
from anynorm._kernels.cpu.language.dtypes import FINISHED, FLOAT32, FLOAT64, TILE_NBYTES, TILES, WIDEST_BLOCK, Lanes
from anynorm._kernels.cpu.language.flow import cell, loop, when
from anynorm._kernels.cpu.language.memory import buffer, load, store, store_real

# Float64 numbers of the rows of a block, the last of which is less than lanes wider than others.
_ROWS = WIDEST_BLOCK + 32
_NUMBERS_NBYTES = _ROWS * 8
# What is summed up at once, in as many positions as there may be, each of which is lanes of rows.
_POSITIONS, LANES_NBYTES = 16, 64
_SUMS_NBYTES = 5 * _POSITIONS * LANES_NBYTES
_WORK_NBYTES = (7 + len(Group._fields)) * _NUMBERS_NBYTES + _SUMS_NBYTES


class DerivativeBlock(NamedTuple):
    """A block of neighbouring rows as its derivative is formed, and memory for the numbers of each row.

    Rows are taken as many at a time as there are lanes. The last ones, where they are fewer, take some before them
    along; their numbers lie where they would if they did not, but for those of ``left``, which has one of each row.
    """

    task: TaskValues  # whose numbers of rows in scratch are those of the block
    group: Group
    row: int  # the first one
    rows: int
    columns: int  # as many, or more of them where they are packed, so that they fill lanes
    is_packed: bool
    first: Arrays  # where elements lie, in a tile if they are packed
    steps: tuple[int, ...]  # from feature to feature
    taken: int  # 1.0 for a row that is computed in the dtype at hand, or 0.0
    left: int  # 1.0 for a row that has not been computed yet, or 0.0
    sums: int  # of positions
    given: Numbers | None  # what rows are applied with by given moments
    is_sparse: bool = False  # whether lanes may be passed over, as most rows have been computed

    @property
    def lanes(self) -> int:
        """Rows that are taken at a time."""
        return lanes_in(self.task.compute_dtype)

    def slots(self, first: int = 0, last: int | None = None) -> Iterator[tuple[int, int]]:
        """Where the numbers of lanes of rows lie, and which row is the first."""
        for column in loop(first, self.columns if last is None else last, self.lanes):
            start = smaller(column, self.columns - self.lanes)
            for _ in when(sum_lanes(self.numbers(self.taken + column * 8)) != 0.0 if self.is_sparse else True):
                yield column * 8, start

    def numbers(self, address: int) -> Lanes:
        """Float64 numbers of lanes of rows."""
        return load(address, FLOAT64, lanes=self.lanes)

    def place(self, which: int, feature: int, column: int) -> int:
        """The address in an array."""
        return self.first[which] + feature * self.steps[which] + column * self.task.itemsize

    def read(self, which: int, feature: int, column: int) -> Lanes:
        """An element of lanes of rows of an array."""
        task = self.task
        return load(self.place(which, feature, column), task.dtype, task.compute_dtype, self.lanes)

    def pack(self) -> None:
        """Copy what is read to tiles, if the block is packed."""
        self._copy((X, RESIDUAL, TOTAL), True)

    def unpack(self) -> None:
        """Copy dx from its tile to where it belongs."""
        self._copy((Y,), False)

    def _copy(self, arrays: tuple[int, ...], gathering: bool) -> None:
        for _ in when(self.is_packed):
            addresses = row_of(self.task, self.row)
            for which in arrays:
                if addresses[which] is not None:
                    copy_tile(
                        self.task, which, addresses[which], 0, self.task.features, self.rows,
                        self.first[which], self.steps[which], gathering,
                    )  # fmt: skip


class Memory:
    """Memory on the stack for the numbers of a block, one block after the other."""

    def __init__(self, task: TaskValues) -> None:
        numbers = buffer(_WORK_NBYTES)
        shifts, sums, squares, factors, constants, self.taken, self.left = (
            numbers + i * _NUMBERS_NBYTES for i in range(7)
        )
        scratch = task.scratch._replace(shifts=shifts, sums=sums, squares=squares, factors=factors, constants=constants)
        self.task, self.group = task._replace(scratch=scratch), Group.at(numbers + 7 * _NUMBERS_NBYTES, _ROWS)
        self.sums = numbers + (_WORK_NBYTES - _SUMS_NBYTES)

    def block(self, neighbours: Block, given: bool) -> DerivativeBlock:
        """The derivative's view of a block, where its elements lie or where they are packed."""
        task, width = self.task, neighbours.columns * self.task.itemsize
        first, steps = [], []
        for which, address in enumerate(row_of(task, neighbours.row)):
            tile = neighbours.tile + which * (TILE_NBYTES // TILES)
            first.append(None if address is None else where(neighbours.is_packed, tile, address))
            steps.append(where(neighbours.is_packed, width, axis_stride(task, which)))
        return DerivativeBlock(
            task, self.group, neighbours.row, neighbours.rows, neighbours.columns, neighbours.is_packed,
            Arrays(*first), tuple(steps), self.taken, self.left, self.sums,
            Numbers(neighbours, FINISHED) if given else None,
        )  # fmt: skip


def sum_up(block: DerivativeBlock, of_sums: list[int], add: Callable[[list[Any], int, int, int], None]) -> None:
    """Set float64 sums of each row, which ``add`` adds a feature to, from positions in their order."""
    task, dtype, lanes = block.task, block.task.compute_dtype, block.lanes
    zero = splat(0.0, dtype, lanes)
    for numbers in of_sums:
        for i in loop(0, _NUMBERS_NBYTES, 64):
            store_real(numbers + i, splat(0.0, FLOAT64, 8))
    for start, count in chunks_of(task):
        for positions, first, last in parts_of(count, lanes):
            step = FOLD * positions if dtype is FLOAT32 else count + 1
            for turn in loop(first, last, step):
                end = smaller(last, turn + step)
                for at, column in block.slots():
                    for position in loop(0, positions, 1):
                        sums = [cell(zero) for _ in of_sums]
                        for i in loop(turn + position, end, positions):
                            add(sums, start + i, at, column)
                        for which, one in enumerate(sums):
                            store(block.sums + (which * _POSITIONS + position) * LANES_NBYTES, dtype, one)
                    for which, numbers in enumerate(of_sums):
                        whole = fold(block, block.sums + which * _POSITIONS * LANES_NBYTES, positions)
                        store_real(numbers + at, block.numbers(numbers + at) + as_lanes(whole, FLOAT64))


def fold(block: DerivativeBlock, sums: int, positions: int) -> Lanes:
    """Add up positions in halves, as `sum_lanes` does with lanes."""
    dtype = block.task.compute_dtype
    found = [load(sums + i * LANES_NBYTES, dtype, dtype, block.lanes) for i in range(positions)]
    while len(found) > 1:
        half = len(found) // 2
        found = [a + b for a, b in zip(found[:half], found[half:], strict=True)]
    return found[0]
