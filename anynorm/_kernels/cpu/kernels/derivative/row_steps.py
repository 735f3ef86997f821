"""The steps of the derivative of a group of rows, one after the other."""

from __future__ import annotations

from collections.abc import Callable

from anynorm._kernels.cpu.kernels.chunks import chunks_of, mean_of_first, parts_of
from anynorm._kernels.cpu.kernels.derivative.steps import (
    FOLD,
    NUMBERS32,
    RANGE64,
    Columns,
    Group,
    add_to_sums,
    dx_of,
    lanes_in,
    lies_within,
    load_weights,
    parts_of_dx,
)
from anynorm._kernels.cpu.kernels.held import is_flat
from anynorm._kernels.cpu.kernels.scatter import RESIDUAL, X, gather, numbers_address, row_address, row_of
from anynorm._kernels.cpu.kernels.turns import place_of_weight
from anynorm._kernels.cpu.kernels.values import Arrays, TaskValues
from anynorm._kernels.cpu.language.arithmetic import as_lanes, fma, number, smaller, splat, sum_lanes, where
from anynorm._kernels.cpu.language.dtypes import (
    CACHE_LINE_NBYTES,
    FINISHED,
    FLOAT32,
    FLOAT64,
    LAYER,
    NUMBERS,
    OF_ROW,
    Lanes,
    Number,
)
from anynorm._kernels.cpu.language.flow import cases, cell, loop, when
from anynorm._kernels.cpu.language.memory import integer, load, peek, prefetch, real, store, store_real, stream


def find_shift(task: TaskValues, row: int, offset: int) -> None:
    """Leave a number near the mean of a row in scratch; 0 where nothing is centred.

    ``offset`` is how far its numbers lie from those of the first row of the group.
    """
    shift = cell(0.0)
    for _ in when(task.rule == LAYER):
        shift[...] = _shift_of(task, Arrays(row_of(task, row).x))
    store_real(task.scratch.shifts + offset, shift)


def reduce_row(task: TaskValues, group: Group, row: int, offset: int) -> None:
    """Leave the sums of a row in scratch and group, about the shift that is there."""
    of_row, dtype, shift = row_of(task, row), task.compute_dtype, real(task.scratch.shifts + offset)
    scratch, is_number = task.scratch, task.variant.parameters == NUMBERS
    found = [cell(0.0) for _ in range(7 if is_number else 5)]
    if is_number:
        store_real(group.weights + offset, real(task.weight + place_of_weight(task.address, row) * 8))
    for start, count in chunks_of(task):
        chunk = gather(task, of_row, start, count)
        for lanes, first, last in parts_of(count, lanes_in(dtype)):
            near, step = splat(shift, dtype, lanes), FOLD * lanes if dtype is FLOAT32 else count + 1
            for turn in loop(first, last, step):
                sums = [cell(splat(0.0, dtype, lanes)) for _ in found]
                for i in loop(turn, smaller(last, turn + step), lanes):
                    x, dy = (
                        load(one + i * task.itemsize, task.dtype, dtype, lanes) for one in (chunk.x, chunk.residual)
                    )
                    if is_number:
                        weight = splat(real(group.weights + offset), dtype, lanes)
                        sums[5][...] = sums[5] + dy
                        sums[6][...] = fma(dy, x - near, sums[6])
                    else:
                        weight = load_weights(task, dtype, start + i, lanes)
                    if task.ahead is not None:
                        prefetch(chunk.x + task.ahead + i * task.itemsize)
                        prefetch(chunk.residual + task.ahead + i * task.itemsize)
                    add_to_sums(sums[:5], x - near, dy * weight)
                for one, in_lanes in zip(found, sums, strict=True):
                    one[...] = one + sum_lanes(in_lanes)
    # `find_factors` takes what is not centred as if it were centred already.
    found[0] = where(task.rule == LAYER, found[0], 0.0)
    addresses = [scratch.sums, scratch.squares, group.gradients, group.products, group.energies]
    addresses += [group.of_biases, group.of_weights] if is_number else []
    for numbers, value in zip(addresses, found, strict=True):
        store_real(numbers + offset, value)


def _shift_of(task: TaskValues, row: Arrays) -> Number:
    """A number near the mean of a row."""
    if task.compute_dtype is FLOAT32:
        # Rounded to the dtype of the row, so that a constant row has no deviations.
        return mean_of_first(task, row, FLOAT32)
    # Any element will do where float64 has bits to spare, as in reduce.py.
    first = peek(row.x, task.dtype)
    if task.dtype is not FLOAT64:
        return first
    sums = cell(0.0)
    for start, count in chunks_of(task):
        chunk = gather(task, row, start, count)
        for lanes, begin, end in parts_of(count, lanes_in(FLOAT64)):
            found = cell(splat(0.0, FLOAT64, lanes))
            for i in loop(begin, end, lanes):
                found[...] = found + (load(chunk.x + i * 8, FLOAT64, lanes=lanes) - first)
            sums[...] = sums + sum_lanes(found)
    return first + sums / number(task.features)


def prepare_row(task: TaskValues, group: Group, row: int, offset: int, to: int, given: bool) -> bool:
    """Leave what a row is multiplied and moved by in the group, at offset ``to``; whether its range holds the row.

    Where moments are given, the sums of g and of g * x_hat take the place of the first two of the row's numbers.
    """
    scratch = task.scratch
    found = (
        scratch.shifts, scratch.sums, scratch.squares, scratch.factors, scratch.constants,
        group.gradients, group.products, group.energies,
    )  # fmt: skip
    shift, sums, squares, factor, constant, gradients, products, energy = (real(numbers + offset) for numbers in found)
    of_row, along, *held = parts_of_dx(task, shift, sums, squares, factor, constant, gradients, products, energy)
    for numbers, value in zip(group.of_dx, of_row, strict=True):
        store(numbers + to, task.compute_dtype, value)
    if task.variant.parameters == NUMBERS:
        held[1] = held[1] & _write_sums(task, group, row, offset, to, factor, constant)
    if task.compute_dtype is FLOAT32:
        return held[0] & held[1]
    at, safe = numbers_address(task, row, FINISHED), cell(True)
    if task.dtype is FLOAT64:
        safe[...] = _is_held(task, row, shift, squares, factor, energy, *held)
        if given:
            safe[...] = safe & lies_within(factor, RANGE64) & (real(at + 24) == 0.0)
    if given:
        for _ in when(safe):
            store_real(at, gradients)
            store_real(at + 8, along)
    return safe


def _write_sums(
    task: TaskValues, group: Group, row: int, offset: int, to: int, factor: Number, constant: Number
) -> bool:  # fmt: skip
    """Write what a row has of the gradients of weight and bias, where these are a number; whether float32 holds it."""
    weight, of_weight, of_bias = (
        real(numbers + offset) for numbers in (group.weights, group.of_weights, group.of_biases)
    )
    store(group.weights + to, task.compute_dtype, weight)
    of_shift = of_bias * constant if task.rule == LAYER else 0.0
    store_real(task.numbers + row * 16, fma(of_weight, factor, of_shift))
    store_real(task.numbers + row * 16 + 8, of_bias)
    return lies_within(weight, NUMBERS32)


def _is_held(
    task: TaskValues, row: int, shift: Number, squares: Number, factor: Number, energy: Number,
    holds_x: bool, holds_g: bool,
) -> bool:  # fmt: skip
    """Whether float64 holds the squares of a row, and of g, with all their bits."""
    safe, known = cell(holds_x), cell(holds_g)
    for _ in when((squares == 0.0) & ((task.eps == 0.0) | lies_within(factor, RANGE64))):
        safe[...] = is_flat(task, Arrays(row_address(task, X, row)), shift)
    for _ in when(energy == 0.0):
        known[...] = _has_no_gradient(task, row)
    return safe & known


def _has_no_gradient(task: TaskValues, row: int) -> bool:
    """Whether g is 0 throughout, rather than too small to be squared."""
    addresses, nothing = row_of(task, row), cell(True)
    for start, count in chunks_of(task):
        chunk = gather(task, addresses, start, count, (RESIDUAL,))
        for i in loop(0, count, 1):
            dy, weight = real(chunk.residual + i * 8), real(task.weight + (start + i) * 8)
            nothing[...] = nothing & ((dy == 0.0) | (weight == 0.0))
    return nothing


def differentiate_chunk(
    task: TaskValues, group: Group, columns: Columns, rows: int, start: int, count: int, given: bool
) -> None:
    """Write a chunk of dx, of each row in the group, and what it adds to the gradients.

    Where dx is streamed, all rows begin at the same place in a cache line, and all lines but those at their ends are.
    """
    dtype, own = task.compute_dtype, task.variant.parameters == OF_ROW
    within = integer(group.dx) % CACHE_LINE_NBYTES
    head = where(task.streaming & (within != 0), (CACHE_LINE_NBYTES - within) // task.itemsize, 0)
    # Twice the lanes halve what is read of the group: float32 64 x 768 9.5 and 8.7 us (EPYC 9005, one core).
    widths = (2 * lanes_in(dtype), lanes_in(dtype))
    for centred in cases(task.rule == LAYER):
        for has_weight in cases(columns.of_weight != 0):
            # Where the bias's gradient alone is wanted, that of the weight is formed with it.
            wants_bias = has_weight if centred and not own else task.bias != 0 if has_weight else False
            for has_bias in cases(wants_bias):

                def differentiate(
                    first: int, last: int, lanes: int, put: Callable[..., None] = store,
                    centred: bool = centred, has_weight: bool = has_weight, has_bias: bool = has_bias,
                ) -> None:  # fmt: skip
                    for i in loop(first, last, lanes):
                        at = [one + (start + i) * (task.itemsize if own else 8) for one in columns]
                        wanted = at[:1] * has_weight + at[1:] * has_bias
                        weight = None
                        if task.variant.parameters != NUMBERS:
                            weight = load_weights(task, dtype, start + i, lanes)
                        _differentiate_elements(task, group, wanted, rows, i, lanes, weight, centred, given, put)

                reached = head
                for lanes in widths:
                    end = reached + (count - reached) // lanes * lanes
                    for streaming in cases(task.streaming) if lanes % task.lanes == 0 else (False,):
                        differentiate(reached, end, lanes, stream if streaming else store)
                    reached = end
                for turn in loop(0, 2, 1):  # what is left at both ends, one by one
                    differentiate(where(turn == 0, 0, reached), where(turn == 0, head, count), 1)


def _differentiate_elements(
    task: TaskValues, group: Group, sums: list[int], rows: int, i: int, lanes: int, weight: Lanes | None,
    centred: bool, given: bool, put: Callable[..., None],
) -> None:  # fmt: skip
    """The i-th elements of a chunk, row after row, with the sums of their columns in registers.

    The weight is None where each row has a number of its own.
    """
    dtype, offset = task.compute_dtype, i * task.itemsize
    columns = [cell(splat(0.0, dtype, lanes)) for _ in sums]
    for k in loop(0, rows * 8, 8):

        def of_row(numbers: int, k: int = k) -> Lanes:
            return splat(peek(numbers + k, dtype), dtype, lanes)

        def elements(addresses: int, k: int = k) -> Lanes:
            return load(integer(addresses + k) + offset, task.dtype, dtype, lanes)

        x, dy = elements(group.x), elements(group.dy)
        of_weight = of_row(group.weights) if weight is None else weight
        x_hat, dx = dx_of(x, dy, of_weight, [of_row(numbers) for numbers in group.of_dx], centred, given)
        for column, share in zip(columns, (x_hat, None), strict=False):
            column[...] = column + dy if share is None else fma(dy, share, column)
        if task.arrays.total is not None:
            dx = dx + elements(group.dtotal)
        put(integer(group.dx + k) + offset, task.dtype, dx)
    for address, column in zip(sums, columns, strict=True):
        if task.variant.parameters == OF_ROW:
            store(address, task.dtype, column)
            continue
        store_real(address, load(address, FLOAT64, lanes=lanes) + as_lanes(column, FLOAT64))
