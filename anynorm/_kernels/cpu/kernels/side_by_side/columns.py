"""Many rows side by side, where neighbours in memory belong to different rows: as many as there are lanes at a time.

So it is along the first axis, or along the channels of (N, C, H, W), and with rows that are shorter than lanes.
"""

from __future__ import annotations

from ctypes import sizeof
from functools import partial

from anynorm._kernels.cpu.kernels.chunks import Factors, Sums, apply_lanes, chunks_of, factors_of
from anynorm._kernels.cpu.kernels.factors import find_factors
from anynorm._kernels.cpu.kernels.held import count_safe, is_held
from anynorm._kernels.cpu.kernels.moments import moments_of
from anynorm._kernels.cpu.kernels.parameters import are_weights_safe, widen_parameters, widen_short_parameters
from anynorm._kernels.cpu.kernels.reduce import reduce
from anynorm._kernels.cpu.kernels.side_by_side.block import (
    Block,
    Chunk,
    Numbers,
    are_all,
    blocks_of,
    map_feature,
    tile_of,
)
from anynorm._kernels.cpu.kernels.side_by_side.float64 import Float64Columns
from anynorm._kernels.cpu.kernels.side_by_side.given import Given
from anynorm._kernels.cpu.kernels.side_by_side.sums import SUMS_NBYTES, sum_chunk
from anynorm._kernels.cpu.kernels.streaming import read, writing
from anynorm._kernels.cpu.kernels.task import Task, Variant
from anynorm._kernels.cpu.kernels.values import TaskValues, load_task
from anynorm._kernels.cpu.language.arithmetic import (
    as_lanes,
    is_false,
    number,
    rounded,
    smaller,
    splat,
    sum_lanes,
    where,
)
from anynorm._kernels.cpu.language.dtypes import FLOAT32, FLOAT64, LAYER, WIDEST_BLOCK, Dtype, Lanes
from anynorm._kernels.cpu.language.flow import cases, cell, combinations, loop, when
from anynorm._kernels.cpu.language.memory import (
    buffer,
    call_kernel,
    integer,
    load,
    peek,
    store,
    store_integer,
    store_real,
)

# For each row of the widest block one of the numbers that x is multiplied and moved by.
_FACTORS_NBYTES = (WIDEST_BLOCK + 128) * 8


class _Neighbours:
    """What `reduce` asks of as many rows of a block as there are lanes, from a column on."""

    def __init__(self, task: TaskValues, block: Block, column: int, sums: int) -> None:
        self.task, self.block, self.nbytes, self.sums = task, block, column * task.itemsize, sums
        self.zero = splat(0.0, FLOAT64, task.lanes)

    def read(self, chunk: Chunk, feature: int, dtype: Dtype) -> Lanes:
        return read(self.task, chunk.at(feature, self.nbytes), 0, dtype)

    def first(self) -> Lanes:
        return self.read(self.block.chunk(0), 0, FLOAT64)

    def mean_of_first(self) -> Lanes:
        count = smaller(self.task.features, self.task.lanes)
        sums, _ = self._sum_chunk(0, count, splat(0.0, self.task.statistics_dtype, self.task.lanes))
        return rounded(sums / number(count), self.task.dtype)

    def sum_up(self, shift: Lanes | None) -> tuple[Lanes, Lanes]:
        sums, squares = cell(self.zero), cell(self.zero)
        near = None if shift is None else as_lanes(shift, self.task.statistics_dtype)
        for start, count in chunks_of(self.task):
            more, more_squares = self._sum_chunk(start, count, near)
            sums[...] = sums + more
            squares[...] = squares + more_squares
        return sums, squares

    def moved(self, shift: Lanes, to: Lanes, is_far: Lanes) -> tuple[Lanes, bool]:
        return where(is_far, rounded(to, self.task.dtype), shift), sum_lanes(where(is_far, 1.0, self.zero)) == 0.0

    def _sum_chunk(self, start: int, count: int, shift: Lanes | None) -> list[Lanes]:
        """The sums of a chunk of deviations and of their squares."""
        dtype, lanes, chunk = self.task.statistics_dtype, self.task.lanes, self.block.chunk(start)
        sums = Sums(self.task, shift)
        found = sum_chunk(sums, lambda i: self.read(chunk, i, dtype), count, lanes, dtype, self.sums)
        return [as_lanes(one, FLOAT64) for one in found]


class _Columns:
    """The steps for blocks of dtypes that there is a wider one for; ``memory`` is for NBYTES."""

    NBYTES = SUMS_NBYTES + (len(Factors._fields) + 1) * _FACTORS_NBYTES

    def __init__(self, task: TaskValues, memory: int) -> None:
        self.task, self.memory, self._sums, self._factors = task, memory, memory, memory + SUMS_NBYTES
        # 1.0 for a row that float32 holds, or 0.0.
        self._safe = self._factors + len(Factors._fields) * _FACTORS_NBYTES

    def prepare(self) -> bool:
        """Widen parameters that take no more than a chunk; whether products with the weights keep their range."""
        safe = are_weights_safe(self.task)
        for _ in when(safe):
            widen_short_parameters(self.task)
        return safe

    def reduce(self, block: Block, column: int, rows: int) -> list[int]:
        """Find the moments of lanes of rows, of which so many are rows; return where they lie."""
        numbers = self._sum_up(block, column)
        found = moments_of(self.task, *(load(one, FLOAT64, lanes=self.task.lanes) for one in numbers))
        for place, value in zip(numbers, found, strict=True):
            store_real(place, value)
        return numbers

    def _sum_up(self, block: Block, column: int) -> list[int]:
        reduce(self.task, _Neighbours(self.task, block, column, self._sums), 0)
        return [self.task.scratch.shifts, self.task.scratch.sums, self.task.scratch.squares]

    def find_factors(self, block: Block, given: Given | None) -> bool:
        """Find what each row of a block is multiplied and moved by; whether all are safe in float32."""
        task, scratch, all_safe = self.task, self.task.scratch, cell(True)
        for column, rows in block.starts():
            if given is not None:
                given.read(block, column, rows, [scratch.shifts, scratch.factors, scratch.constants])
            else:
                self._sum_up(block, column)
                find_factors(task, task.lanes)
                if task.compute_dtype is FLOAT32:
                    all_safe[...] = all_safe & self._find_safe(block, column, rows)
            for centred in cases(task.rule == LAYER):
                self._keep_factors(centred, column)
        return all_safe if task.compute_dtype is FLOAT32 else True

    def _find_safe(self, block: Block, column: int, rows: int) -> bool:
        """Note which of lanes of rows float32 holds, of which so many are rows; whether it holds all of these."""
        task, scratch, at = self.task, self.task.scratch, self._safe + column * 8
        zero, one = splat(0.0, FLOAT64, task.lanes), splat(1.0, FLOAT64, task.lanes)
        squares, factor, constant = (
            load(numbers, FLOAT64, lanes=task.lanes)
            for numbers in (scratch.squares, scratch.factors, scratch.constants)
        )
        held = is_held(task, squares, factor, constant)
        store_real(at, where(held, one, zero))
        all_held = cell(are_all(held, rows))
        if not task.splits_factors:  # rows without deviations become such as have a factor of 0
            for _ in when(is_false(are_all(squares != 0.0, rows))):
                for k in loop(0, rows, 1):
                    store_real(at + k * 8, where(count_safe(task, block.row + column, k + 1, k) > k, 1.0, 0.0))
                all_held[...] = are_all(load(at, FLOAT64, lanes=task.lanes) != 0.0, rows)
        return all_held

    def _keep_factors(self, centred: bool, column: int) -> None:
        """Put what rows are multiplied and moved by where `_factors_at` finds it."""
        dtype, scratch = self.task.compute_dtype, self.task.scratch
        numbers = (
            load(one, FLOAT64, lanes=self.task.lanes) for one in (scratch.shifts, scratch.factors, scratch.constants)
        )
        for i, value in enumerate(factors_of(self.task, centred, *numbers)):
            if value is not None:
                store(self._factors + i * _FACTORS_NBYTES + column * dtype.itemsize, dtype, value)

    def _factors_at(self, centred: bool, column: int) -> Factors:
        """What the rows from a column on are multiplied and moved by."""
        dtype, splits = self.task.compute_dtype, self.task.splits_factors
        needed = Factors(True, splits, centred, splits and centred, centred and not splits)
        at = [self._factors + i * _FACTORS_NBYTES + column * dtype.itemsize for i in range(len(needed))]
        return Factors(
            *(
                load(one, dtype, dtype, self.task.lanes) if is_needed else None
                for one, is_needed in zip(at, needed, strict=True)
            )
        )

    def apply(self, block: Block, given: bool) -> None:
        """Apply a block of rows, feature after feature."""
        task, scratch, dtype = self.task, self.task.scratch, self.task.compute_dtype
        is_shared = task.narrow != 0 if dtype is FLOAT64 and not given else False
        for start, length in chunks_of(task):
            for _ in when(task.widened & (length != task.features)):
                widen_parameters(task, start, length, task.weight_offset)
            chunk = block.chunk(start)
            for shared, has_weight, has_bias in combinations(is_shared, task.weight != 0, task.bias != 0):
                for streaming in cases(False if shared else task.streaming):
                    for k in loop(0, length, 1):
                        parameters = [
                            splat(peek(numbers + k * dtype.itemsize, dtype), dtype, task.lanes) if one else None
                            for numbers, one in ((scratch.weights, has_weight), (scratch.biases, has_bias))
                        ]
                        compute = partial(self._apply, parameters, shared)
                        map_feature(task, block, chunk, k, streaming, compute)
            block.unpack(start)

    def _apply(self, parameters: list[Lanes | None], shared: bool, column: int, value: Lanes) -> Lanes:
        """The result for a feature of lanes of rows; for those that float32 holds, what it is there."""
        task, centred = self.task, self.task.rule == LAYER
        found = apply_lanes(task, value, self._factors_at(centred, column), *parameters)
        if not shared:
            return found
        narrow = _Columns(task._replace(compute_dtype=FLOAT32), task.narrow)
        value, *parameters = (None if one is None else as_lanes(one, FLOAT32) for one in (value, *parameters))
        in_float32 = apply_lanes(narrow.task, value, narrow._factors_at(centred, column), *parameters)
        is_safe = load(narrow._safe + column * 8, FLOAT64, lanes=task.lanes) != 0.0
        return where(is_safe, as_lanes(in_float32, FLOAT64), found)


def _steps(task: TaskValues) -> _Columns | Float64Columns:
    kind = Float64Columns if task.dtype is FLOAT64 else _Columns
    return kind(task, buffer(kind.NBYTES))


def _normalize(task: TaskValues, address: int, first: int, last: int, given: bool) -> int:
    """Normalize blocks of rows, by given factors or by their own; return which is the next, or -1."""
    steps, following, ended = _steps(task), cell(-1), cell(False)
    numbers = Given(task) if given else None
    for _ in when(steps.prepare()):
        following[...] = last
        with writing(task):
            for block in blocks_of(task, address, tile_of(address), first, last, ended):
                for is_safe in cases(steps.find_factors(block, numbers)):
                    if is_safe:
                        steps.apply(block, given)
                    else:
                        ended[...] = is_false(_hand_on(task, block, steps.memory))
                for _ in when(ended):
                    following[...] = block.unit
    return following


def _hand_on(task: TaskValues, block: Block, narrow: int) -> bool:
    """Have float64 take a block in which are rows that float32 does not hold; whether there is a kernel for it."""
    is_taken = task.float64_kernel != 0
    for _ in when(is_taken):
        own, nbytes = buffer(sizeof(Task)), sizeof(Task)
        for i in loop(0, nbytes, 8):
            store_integer(own + i, integer(task.address + i))
        store_integer(own + Task.narrow.offset, narrow)
        store_integer(own + Task.packed.offset, where(block.is_packed, block.tile, 0))
        call_kernel(task.float64_kernel, own, block.unit, block.unit + 1)
    return is_taken


def normalize_columns(variant: Variant, address: int, first: int, last: int) -> int:
    """Normalize blocks of rows first to last, or up to one that the kernel cannot hold; return which is the next.

    That is -1 where it cannot hold the weights.
    """
    return _normalize(load_task(address, variant), address, first, last, given=False)


def apply_columns(variant: Variant, address: int, first: int, last: int) -> int:
    """The same by given ``numbers``, as in given.py, or by given moments; return the last."""
    return _normalize(load_task(address, variant), address, first, last, given=True)


def reduce_columns(variant: Variant, address: int, first: int, last: int) -> int:
    """Reduce blocks of rows first to last to ``numbers``, as in moments.py; return the last."""
    task = load_task(address, variant)
    steps = _steps(task)
    for block in blocks_of(task, address, tile_of(address), first, last):
        numbers = Numbers(block, task.dtype.reduced)
        for column, rows in block.starts():
            numbers.write(column, rows, steps.reduce(block, column, rows))
    return last
