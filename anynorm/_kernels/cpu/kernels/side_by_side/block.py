"""Blocks of rows that are neighbours along the last free axis, and taken side by side.

Where neighbours lie one after the other in memory, features are read and written there. Where they do not, and where
rows are too short to fill lanes, chunks of a block are packed into a tile, see scatter.py.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from anynorm._kernels.cpu.kernels.scatter import (
    RESIDUAL,
    TOTAL,
    X,
    Y,
    axis_length,
    axis_stride,
    copy_tile,
    neighbour_stride,
    numbers_address,
    row_of,
)
from anynorm._kernels.cpu.kernels.streaming import flush, further, map_chunk
from anynorm._kernels.cpu.kernels.values import Arrays, TaskValues, word
from anynorm._kernels.cpu.language.arithmetic import larger, number, part, smaller, splat, sum_lanes, where
from anynorm._kernels.cpu.language.dtypes import CHUNK, FLOAT64, TILE_NBYTES, Lanes
from anynorm._kernels.cpu.language.flow import cell, loop, when
from anynorm._kernels.cpu.language.memory import buffer, real, store_real


class Block:
    """Neighbouring rows from one on.

    There may be more columns in a tile than rows, so that they fill lanes; what is there is of no use.
    """

    def __init__(self, task: TaskValues, unit: int, row: int, rows: int, is_packed: bool, tile: int) -> None:
        self.task, self.unit, self.row, self.rows, self.is_packed, self.tile = task, unit, row, rows, is_packed, tile
        lanes = task.lanes
        self.columns = where(is_packed, (rows + lanes - 1) // lanes * lanes, rows)
        self._addresses, self._width = row_of(task, row), self.columns * task.itemsize
        # A result takes the place of what it is made of.
        half = tile + TILE_NBYTES // 2
        self._tiles = (tile, half, tile, half)
        self._held = cell(-1)  # where the chunk begins that is in the tile

    def starts(self) -> Iterator[tuple[int, int]]:
        """For each vector of rows: its first column, and how many rows there are from there on, up to that of lanes."""
        lanes = self.task.lanes
        for at in loop(0, self.columns, lanes):
            column = smaller(at, self.columns - lanes)
            yield column, smaller(lanes, self.rows - column)

    def chunk(self, start: int) -> Chunk:
        """The chunk from a feature on; in the tile if it is packed."""
        for _ in when(self.is_packed & (self._held != start)):
            self._copy(start, (X, RESIDUAL), True)
            self._held[...] = start
        addresses, steps = [], []
        for which, address in enumerate(self._addresses):
            step = where(self.is_packed, self._width, axis_stride(self.task, which))
            place = None if address is None else where(self.is_packed, self._tiles[which], address + start * step)
            addresses.append(place)
            steps.append(step)
        return Chunk(Arrays(*addresses), steps)

    def unpack(self, start: int) -> None:
        """Copy a chunk of results from the tile to where it belongs."""
        for _ in when(self.is_packed):
            self._copy(start, (Y, TOTAL), False)

    def _copy(self, start: int, arrays: tuple[int, ...], gathering: bool) -> None:
        left = self.task.features - start
        count = where(left < CHUNK + self.task.lanes, left, CHUNK)
        for which in arrays:
            address = self._addresses[which]
            if address is not None:
                tile = self._tiles[which]
                copy_tile(self.task, which, address, start, count, self.rows, tile, self._width, gathering)


class Chunk:
    """Where features of a block lie, the first of which is the chunk's."""

    def __init__(self, first: Arrays, steps: list[int]) -> None:
        self._first, self._steps = first, steps

    def at(self, feature: int, offset: int = 0) -> Arrays:
        """The addresses of a feature in all arrays, so many bytes on."""
        steps = zip(self._first, self._steps, strict=True)
        return Arrays(*(further(address, feature * step + offset) for address, step in steps))


def count_blocks(task: TaskValues, address: int) -> int:
    """How many blocks there are."""
    return word(address, "rows") // axis_length(task) * _blocks_of_axis(task, address)


def _blocks_of_axis(task: TaskValues, address: int) -> int:
    """How many blocks the last free axis is cut into; of those that are not packed none is narrower than lanes."""
    least = where(word(address, "packed") != 0, 1, task.lanes)
    return 1 + larger(0, axis_length(task) - word(address, "head") - least) // word(address, "block")


def tile_of(address: int) -> int:
    """Memory for a tile, where blocks are packed: that of the kernel that calls this one, or most of a small stack."""
    packed = word(address, "packed")
    return where(packed > 1, packed, buffer(where(packed == 1, TILE_NBYTES, 0)))


def blocks_of(
    task: TaskValues, address: int, tile: int, first: int, last: int, ended: bool | None = None
) -> Iterator[Block]:
    """Blocks first to last, or up to one after which ``ended`` is set; layout.py says how neighbours are cut."""
    block, head, is_packed = word(address, "block"), word(address, "head"), word(address, "packed") != 0
    neighbours = axis_length(task)
    blocks = _blocks_of_axis(task, address)
    for unit in loop(first, last, 1, ended):
        i = unit % blocks
        start = where(i == 0, 0, head + i * block)
        end = where(i == blocks - 1, neighbours, head + (i + 1) * block)
        yield Block(task, unit, unit // blocks * neighbours + start, end - start, is_packed, tile)


def map_feature(
    task: TaskValues, block: Block, chunk: Chunk, feature: int, streaming: bool, compute: Callable[[int, Lanes], Lanes]
) -> None:
    """Write ``compute(column, x[column:])`` to y for the rows of a block, lanes at a time, as `map_chunk` does."""
    map_chunk(task, chunk.at(feature), block.columns, block.columns * task.itemsize, streaming, compute)
    if streaming:  # what is next to a feature is another block
        flush(task)


class Numbers:
    """The numbers of each row of a block, so many: see `numbers_address`."""

    def __init__(self, block: Block, count: int) -> None:
        self._first = numbers_address(block.task, block.row, count)
        self.step = neighbour_stride(block.task, TOTAL)

    def at(self, column: int) -> int:
        """Where those of a row lie."""
        return self._first + column * self.step

    def write(self, column: int, rows: int, scratch: list[int]) -> None:
        """Write those of rows from a column on, from addresses of float64 lanes in scratch."""
        for k in loop(0, rows, 1):
            at = self.at(column + k)
            for i, numbers in enumerate(scratch):
                store_real(at + 8 * i, real(numbers + 8 * k))

    def read(self, column: int, rows: int, scratch: list[int]) -> None:
        """Put those of rows from a column on there."""
        for k in loop(0, rows, FLOAT64.lanes):
            for i, numbers in enumerate(scratch):
                store_real(numbers + 8 * k, real_lanes(self.at(column + k) + 8 * i, self.step, rows - k))


def real_lanes(address: int, step: int, count: int) -> Lanes:
    """Lanes of so many float64 numbers, one or more, in equal steps; what stands beside them is of no use.

    They do not go by way of memory: lanes that are loaded right after numbers were stored there wait for all of these.
    """
    lanes = FLOAT64.lanes
    found = splat(real(address), FLOAT64, lanes)
    for k in range(1, lanes):
        found = part(splat(real(address + smaller(k, count - 1) * step), FLOAT64, lanes), k, k + 1, found)
    return found


def are_all(condition: Lanes, rows: int) -> bool:
    """Whether a condition holds for the first of lanes, so many."""
    lanes = len(condition)
    zero, one = splat(0.0, FLOAT64, lanes), splat(1.0, FLOAT64, lanes)
    return sum_lanes(part(where(condition, zero, one), 0, rows, zero)) == number(0)
