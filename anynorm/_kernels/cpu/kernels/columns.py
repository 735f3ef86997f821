"""Many rows side by side, where neighbours in memory belong to different rows: as many as there are lanes at a time.

So it is along the first axis, or along the channels of (N, C, H, W). The sums of a row run in the same order as where
its features lie one after the other: all of a lane's elements, then those of the next lane, then the lanes in halves.
"""

from __future__ import annotations

from anynorm._kernels.cpu.kernels.chunks import Factors, apply_lanes, chunks_of, factors_of
from anynorm._kernels.cpu.kernels.factors import find_factors
from anynorm._kernels.cpu.kernels.parameters import are_weights_safe, widen_parameters, widen_short_parameters
from anynorm._kernels.cpu.kernels.reduce import reduce
from anynorm._kernels.cpu.kernels.rows import count_safe
from anynorm._kernels.cpu.kernels.scatter import axis_length, axis_stride, row_of
from anynorm._kernels.cpu.kernels.streaming import flush, further, map_chunk, read, writing
from anynorm._kernels.cpu.kernels.task import Variant
from anynorm._kernels.cpu.kernels.values import Arrays, TaskValues, load_task, word
from anynorm._kernels.cpu.language.arithmetic import as_lanes, fma, larger, number, smaller, splat, sum_lanes, where
from anynorm._kernels.cpu.language.dtypes import FLOAT64, LAYER, WIDEST_BLOCK, Dtype, Lanes
from anynorm._kernels.cpu.language.flow import cases, cell, combinations, loop, when
from anynorm._kernels.cpu.language.memory import buffer, load, peek, store

# For each lane of a sum, lanes of rows; two sums.
_SUMS_NBYTES = 32 * 32 * 8
# For each row of the widest block one of the numbers that x is multiplied and moved by.
_FACTORS_NBYTES = (WIDEST_BLOCK + 128) * 8
_WORK_NBYTES = 2 * _SUMS_NBYTES + len(Factors._fields) * _FACTORS_NBYTES


class _Block:
    """Where the features of neighbouring rows lie, the first of which is given."""

    def __init__(self, task: TaskValues, row: int) -> None:
        self.first = row_of(task, row)
        self.steps = [axis_stride(task, which) for which in range(len(self.first))]

    def at(self, feature: int, offset: int = 0) -> Arrays:
        steps = zip(self.first, self.steps, strict=True)
        return Arrays(*(further(address, feature * step + offset) for address, step in steps))


class _Neighbours:
    """What `reduce` asks of as many rows of a block as there are lanes, from a column on.

    ``sums`` is memory for sums of each lane of a chunk.
    """

    def __init__(self, task: TaskValues, block: _Block, column: int, sums: int) -> None:
        self.task, self.block, self.nbytes, self.sums = task, block, column * task.itemsize, sums
        self.zero = splat(0.0, FLOAT64, task.lanes)

    def read(self, feature: int, dtype: Dtype) -> Lanes:
        return read(self.task, self.block.at(feature, self.nbytes), 0, dtype)

    def first(self) -> Lanes:
        return self.read(0, FLOAT64)

    def mean_of_first(self) -> Lanes:
        count = smaller(self.task.features, self.task.lanes)
        sums, _ = self._sum_chunk(0, count, splat(0.0, self.task.statistics_dtype, self.task.lanes))
        return self._rounded(sums / number(count))

    def sum_up(self, shift: Lanes | None) -> tuple[Lanes, Lanes]:
        sums, squares = cell(self.zero), cell(self.zero)
        near = as_lanes(self.zero if shift is None else shift, self.task.statistics_dtype)
        for start, count in chunks_of(self.task):
            more, more_squares = self._sum_chunk(start, count, near)
            sums[...] = sums + more
            squares[...] = squares + more_squares
        return self.zero if shift is None else sums, squares

    def moved(self, shift: Lanes, to: Lanes, is_far: Lanes) -> tuple[Lanes, bool]:
        return where(is_far, self._rounded(to), shift), sum_lanes(where(is_far, 1.0, self.zero)) == 0.0

    def _rounded(self, value: Lanes) -> Lanes:
        """As the dtype of the rows has it, by way of some memory."""
        store(self.task.scratch.one, self.task.dtype, value)
        return load(self.task.scratch.one, self.task.dtype)

    def _sum_chunk(self, start: int, count: int, shift: Lanes) -> tuple[Lanes, Lanes]:
        """The sums of a chunk of deviations and of their squares."""
        dtype, lanes = self.task.statistics_dtype, self.task.lanes
        whole, rest = count - count % lanes, larger(count - lanes, 0)
        for lane in loop(0, smaller(lanes, count), 1):
            sums, squares = cell(splat(0.0, dtype, lanes)), cell(splat(0.0, dtype, lanes))

            def add(i: int, sums: Lanes = sums, squares: Lanes = squares) -> None:
                value = self.read(start + i, dtype) - shift
                sums[...] = sums + value
                squares[...] = fma(value, value, squares)

            for i in loop(lane, whole, lanes):
                add(i)
            for _ in when(rest + lane >= whole):
                add(rest + lane)
            at = self.sums + lane * lanes * dtype.itemsize
            store(at, dtype, sums)
            store(at + _SUMS_NBYTES, dtype, squares)
        count = smaller(lanes, count)
        return self._fold(self.sums, count), self._fold(self.sums + _SUMS_NBYTES, count)

    def _fold(self, sums: int, count: int) -> Lanes:
        """Add up the lanes of sums, of which so many are not empty, in halves, as `sum_lanes` does."""
        dtype, lanes = self.task.statistics_dtype, self.task.lanes
        half, nbytes = lanes, lanes * dtype.itemsize
        while half > 1:
            half //= 2
            for lane in loop(0, smaller(half, count - half), 1):
                at = sums + lane * nbytes
                store(at, dtype, load(at, dtype, dtype, lanes) + load(at + half * nbytes, dtype, dtype, lanes))
            count = smaller(count, half)
        return load(sums, dtype, FLOAT64, lanes)


def _keep_factors(task: TaskValues, centred: bool, work: int, column: int) -> None:
    """Put what rows are multiplied and moved by where `_factors_at` finds it."""
    dtype, scratch = task.compute_dtype, task.scratch
    numbers = (load(one, FLOAT64, lanes=task.lanes) for one in (scratch.shifts, scratch.factors, scratch.constants))
    for i, value in enumerate(factors_of(task, centred, *numbers)):
        if value is not None:
            store(work + i * _FACTORS_NBYTES + column * dtype.itemsize, dtype, value)


def _factors_at(task: TaskValues, centred: bool, work: int, column: int) -> Factors:
    """What the rows from a column on are multiplied and moved by."""
    dtype, splits = task.compute_dtype, task.splits_factors
    needed = Factors(True, splits, centred, splits and centred, centred and not splits)
    at = [work + i * _FACTORS_NBYTES + column * dtype.itemsize for i in range(len(needed))]
    return Factors(
        *(load(one, dtype, dtype, task.lanes) if is_needed else None for one, is_needed in zip(at, needed, strict=True))
    )


def _reduce_block(task: TaskValues, first: int, columns: int, work: int) -> bool:
    """Find what each row of a block is multiplied and moved by; whether all are safe for float32."""
    safe, block = cell(True), _Block(task, first)
    for at in loop(0, columns, task.lanes):
        column = smaller(at, columns - task.lanes)
        reduce(task, _Neighbours(task, block, column, work), 0)
        find_factors(task, task.lanes)
        safe[...] = safe & (count_safe(task, first + column, task.lanes) == task.lanes)
        for centred in cases(task.rule == LAYER):
            _keep_factors(task, centred, work + 2 * _SUMS_NBYTES, column)
    return safe


def _apply_block(task: TaskValues, first: int, columns: int, work: int) -> None:
    """Apply a block of rows, feature after feature."""
    dtype, scratch, block = task.compute_dtype, task.scratch, _Block(task, first)
    for start, length in chunks_of(task):
        for _ in when(task.widened & (length != task.features)):
            widen_parameters(task, start, length, task.weight_offset)
        conditions = (task.rule == LAYER, task.weight != 0, task.bias != 0, task.streaming)
        for centred, has_weight, has_bias, streaming in combinations(*conditions):
            for k in loop(0, length, 1):
                parameters = [
                    splat(peek(numbers + k * dtype.itemsize, dtype), dtype, task.lanes) if given else None
                    for numbers, given in ((scratch.weights, has_weight), (scratch.biases, has_bias))
                ]

                def compute(
                    column: int, value: Lanes, parameters: list[Lanes | None] = parameters, centred: bool = centred
                ) -> Lanes:
                    factors = _factors_at(task, centred, work + 2 * _SUMS_NBYTES, column)
                    return apply_lanes(dtype, value, factors, *parameters)

                map_chunk(task, block.at(start + k), columns, columns * task.itemsize, streaming, compute)
                if streaming:  # what is next to a feature is another block
                    flush(task)


def normalize_columns(variant: Variant, address: int, first: int, last: int) -> int:
    """Normalize blocks of rows first to last, or up to one that float32 cannot hold; return which is the next.

    That is -1 where it cannot hold the weights. The last free axis of the layout is that of the neighbours; it is cut
    into blocks as layout.py says.
    """
    task = load_task(address, variant)
    block, head = word(address, "block"), word(address, "head")
    work, following, ended = buffer(_WORK_NBYTES), cell(-1), cell(False)
    for _ in when(are_weights_safe(task)):
        widen_short_parameters(task)
        neighbours = axis_length(task)
        blocks = 1 + larger(0, neighbours - head - task.lanes) // block
        following[...] = last
        with writing(task):
            for unit in loop(first, last, 1, ended):
                i = unit % blocks
                start = where(i == 0, 0, head + i * block)
                end = where(i == blocks - 1, neighbours, head + (i + 1) * block)
                row, columns = unit // blocks * neighbours + start, end - start
                for is_safe in cases(_reduce_block(task, row, columns, work)):
                    if is_safe:
                        _apply_block(task, row, columns, work)
                    else:
                        following[...], ended[...] = unit, True
    return following
