"""Rows of float64, one after the other: statistics, and what they are applied with, are pairs of numbers."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from anynorm._kernels.cpu.kernels.chunks import chunks_of, elements_of
from anynorm._kernels.cpu.kernels.pairs import (
    PairFactors,
    PairSum,
    add_elements,
    apply_in_unit,
    apply_pairs,
    find_factors_in_unit,
    sum_lane_pairs,
    two_sum,
)
from anynorm._kernels.cpu.kernels.parameters import are_near_one, widen_parameters
from anynorm._kernels.cpu.kernels.scatter import X, gather, is_gathered, numbers_address, row_address, row_of, scatter
from anynorm._kernels.cpu.kernels.streaming import map_chunk, writing
from anynorm._kernels.cpu.kernels.task import Variant
from anynorm._kernels.cpu.kernels.turns import of_turn
from anynorm._kernels.cpu.kernels.units import find_in_units, multiplier, size_of, unit_of
from anynorm._kernels.cpu.kernels.values import Arrays, TaskValues, load_task
from anynorm._kernels.cpu.language.arithmetic import (
    is_false,
    larger,
    number,
    power_of_two,
    smaller,
    splat,
    where,
)
from anynorm._kernels.cpu.language.dtypes import (
    CHUNK,
    FINISHED,
    FLOAT64,
    LAYER,
    Lanes,
    Number,
)
from anynorm._kernels.cpu.language.flow import cases, cell, loop, when
from anynorm._kernels.cpu.language.memory import load, peek, real, store_real

_LANES = FLOAT64.lanes


def reduce_row(task: TaskValues, row: Arrays, unit: Number) -> tuple[Number, PairSum, PairSum]:
    """The shift, the sum of deviations from it and the sum of their squares, of a row times its unit."""
    # Any element will do for a shift: none is further from the mean than sqrt(features) standard deviations (Samuelson
    # 1968), and pairs have the bits to spare. A constant row has no deviations then.
    centred = task.rule == LAYER
    shift = peek(row.x, FLOAT64, row.residual) if centred else 0.0
    fill, zero = splat(shift, FLOAT64, _LANES), splat(0.0, FLOAT64, _LANES)
    shift = shift * unit
    near = splat(shift, FLOAT64, _LANES)
    sums, squares = PairSum(0.0), PairSum(0.0)
    for start, count in chunks_of(task):
        chunk = gather(task, row, start, count)
        chunk_sums, chunk_squares = PairSum(zero), PairSum(zero)
        for value in elements_of(task, chunk, 0, count, FLOAT64, fill):
            add_elements(value * unit, near, centred, chunk_sums, chunk_squares)
        sums.add(*sum_lane_pairs(chunk_sums.high, chunk_sums.low))
        squares.add(*sum_lane_pairs(chunk_squares.high, chunk_squares.low))
    return shift, sums, squares


def widen_in_pairs(task: TaskValues, start: int, count: int) -> None:
    """A chunk of weight + weight_offset as pairs, and of bias."""
    widen_parameters(task, start, count, task.weight_offset if task.variant.rounds_weight else 0.0)
    for _ in when(task.has_lows):
        offset = splat(task.weight_offset, FLOAT64, _LANES)
        for i in loop(0, count * 8, _LANES * 8):
            high, low = two_sum(load(task.scratch.weights + i, FLOAT64), offset)
            store_real(task.scratch.weights + i, high)
            store_real(task.scratch.lows + i, low)


def prepare_parameters(task: TaskValues) -> bool:
    """Widen parameters that take no more than a chunk; whether products with the weights and factors are in range."""
    safe = cell(True)
    for _ in when(task.widened):
        for i in loop(0, smaller(task.features, CHUNK) + _LANES, _LANES):
            store_real(task.scratch.weights + i * 8, splat(1.0, FLOAT64, _LANES))
            # 0.0 would turn a result of -0.0 into 0.0.
            store_real(task.scratch.biases + i * 8, splat(-0.0, FLOAT64, _LANES))
        for start, count in chunks_of(task):
            widen_in_pairs(task, start, count)
            # Where rows are centred, the weights are multiplied with x_hat itself.
            if task.rule != LAYER:
                safe[...] = safe & are_near_one(FLOAT64, task.scratch.weights, count, 2.0**500)
    return safe


def _normalize_row(task: TaskValues, row: int, given: bool, safe_weights: bool) -> None:
    """Normalize a row, by given factors or by its own."""
    addresses, centred = row_of(task, row), task.rule == LAYER
    numbers, unit = [cell(0.0) for _ in range(4)], cell(0.0)
    if given:
        at = numbers_address(task, row, FINISHED)
        for i, one in enumerate(numbers[:3]):
            one[...] = real(at + 8 * i)
        unit[...] = real(at + 24)
    else:

        def find(unit: Number) -> bool:
            _set(numbers, find_factors_in_unit(task, unit, *reduce_row(task, addresses, multiplier(unit))))
            return numbers[2] == numbers[2]

        find_in_units(unit, find, lambda: unit_of(task, size_of(task, addresses)))
    for _ in when(is_false(safe_weights) & (unit == 0.0)):
        unit[...] = 1.0
    for has_unit in cases(unit != 0.0):
        power = number(1)
        if has_unit and not centred:  # the factor is near 1 then
            power = power_of_two(numbers[2])
            _set(numbers[2:], [one / power for one in numbers[2:]])
        in_lanes: list[Any] = [splat(one, FLOAT64, _LANES) for one in numbers]
        if has_unit and given and centred:
            in_lanes[3] = None  # it is 0, and an element of other rows than the moments may be Inf in the unit
        _apply_row(task, row, addresses, PairFactors(centred, *in_lanes), (unit, power) if has_unit else None)


def _set(numbers: list[Number], values: Iterable[Number]) -> None:
    for one, value in zip(numbers, values, strict=True):
        one[...] = value


def _apply_row(
    task: TaskValues, row: int, addresses: Arrays, factors: PairFactors, unit: tuple[Number, Number] | None
) -> None:
    """Step 3 of the definition, with mean and factor as pairs; times the unit of a row, and a power, if it has them."""
    scratch, ahead = task.scratch, where(is_gathered(task), 0, row_address(task, X, row + 1) - addresses.x)
    for start, count in chunks_of(task):
        for _ in when(task.widened & (count != task.features)):
            widen_in_pairs(task, start, count)
        chunk = gather(task, addresses, start, count)
        for widened in cases(task.widened):
            for has_offset in cases(task.has_lows) if widened else (False,):
                # Rows that have a unit are few, and a line that is open from the row before is closed by the next one.
                for streaming in cases(task.streaming) if unit is None else (False,):

                    def compute(i: int, value: Lanes, widened: bool = widened, has_offset: bool = has_offset) -> Lanes:
                        needed = (scratch.weights, widened), (scratch.lows, has_offset), (scratch.biases, widened)
                        weight, low, bias = (load(numbers + i * 8, FLOAT64) if one else None for numbers, one in needed)
                        if unit is None:
                            return apply_pairs(value, factors, weight, low, bias)
                        return apply_in_unit(value, factors, *unit, task.scale, weight, low, bias)

                    map_chunk(task, chunk, larger(count, _LANES), ahead, streaming, compute)
        scatter(task, addresses, start, count)


def normalize_all(task: TaskValues, first: int, last: int, given: bool = False) -> int:
    """Normalize rows, by given factors or by their own; return the last."""
    # Chunks in buffers are copied from there.
    task = task._replace(streaming=task.streaming & is_false(is_gathered(task)))
    safe_weights, taken, of_row = cell(prepare_parameters(task)), cell(-1), task
    with writing(task):
        for row in loop(first, last, 1):
            if task.takes_turns:
                turn, of_row = of_turn(task, row)
                for _ in when(is_false(turn == taken)):
                    safe_weights[...] = prepare_parameters(of_row)
                taken[...] = turn
            _normalize_row(of_row, row, given, safe_weights)
    return last


def normalize_float64(variant: Variant, address: int, first: int, last: int) -> int:
    """Normalize rows first to last, of whatever magnitude; return the last."""
    return normalize_all(load_task(address, variant), first, last)
