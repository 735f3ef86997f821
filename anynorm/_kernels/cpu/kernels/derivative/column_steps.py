"""The derivative of rows side by side, where neighbours in memory belong to different rows.

The sums of a row run in the order of `row_steps.reduce_row`, and so have the same bits: where that has lanes of
a sum, here are as many positions, one after the other, each of which is lanes of rows.
"""

from __future__ import annotations

from typing import Any

from anynorm._kernels.cpu.kernels.derivative.block import LANES_NBYTES, DerivativeBlock, fold, sum_up
from anynorm._kernels.cpu.kernels.derivative.extreme_columns import differentiate_extreme
from anynorm._kernels.cpu.kernels.derivative.steps import (
    FOLD,
    RANGE64,
    add_to_sums,
    dx_of,
    lies_within,
    parts_of_dx,
    weights_of,
)
from anynorm._kernels.cpu.kernels.factors import find_factors
from anynorm._kernels.cpu.kernels.scatter import RESIDUAL, TOTAL, X, Y
from anynorm._kernels.cpu.kernels.side_by_side.block import Numbers
from anynorm._kernels.cpu.language.arithmetic import as_lanes, fma, number, part, smaller, splat, sum_lanes, where
from anynorm._kernels.cpu.language.dtypes import FLOAT32, FLOAT64, LAYER, Lanes
from anynorm._kernels.cpu.language.flow import cases, cell, loop, when
from anynorm._kernels.cpu.language.memory import load, peek, store, store_real


def _mean_of_first(block: DerivativeBlock, column: int) -> Lanes:
    """`mean_of_first` of lanes of rows."""
    task, lanes = block.task, block.task.lanes
    zero, count = splat(0.0, FLOAT32, block.lanes), smaller(task.features, lanes)
    for i in loop(0, count, 1):
        store(block.sums + i * LANES_NBYTES, FLOAT32, block.read(X, i, column))
    for i in loop(count, lanes, 1):
        store(block.sums + i * LANES_NBYTES, FLOAT32, zero)
    store(block.sums, task.dtype, as_lanes(fold(block, block.sums, lanes), FLOAT64) / number(count))
    return load(block.sums, task.dtype, FLOAT64, block.lanes)


def _find_shifts(block: DerivativeBlock) -> None:
    """Numbers near the means of rows, as `row_steps.find_shift` has them."""
    task = block.task
    shifts, sums = task.scratch.shifts, task.scratch.sums
    for at, column in block.slots():
        if task.rule != LAYER:
            store_real(shifts + at, splat(0.0, FLOAT64, block.lanes))
        elif task.compute_dtype is FLOAT32:
            store_real(shifts + at, _mean_of_first(block, column))
        else:
            store_real(shifts + at, block.read(X, 0, column))
    if task.rule == LAYER and task.dtype is FLOAT64:

        def add(sums: list[Any], feature: int, at: int, column: int) -> None:
            sums[0][...] = sums[0] + (block.read(X, feature, column) - block.numbers(shifts + at))

        sum_up(block, [sums], add)
        for at, _ in block.slots():
            store_real(shifts + at, block.numbers(shifts + at) + block.numbers(sums + at) / number(task.features))


def _reduce(block: DerivativeBlock) -> None:
    """Leave the sums of all rows in scratch and group, about the shifts that are there."""
    task, group, dtype = block.task, block.group, block.task.compute_dtype
    weights, sums = weights_of(task, dtype), task.scratch.sums

    def add(found: list[Any], feature: int, at: int, column: int) -> None:
        weight = splat(peek(weights + feature * dtype.itemsize, dtype), dtype, block.lanes)
        shift = as_lanes(block.numbers(task.scratch.shifts + at), dtype)
        add_to_sums(found, block.read(X, feature, column) - shift, block.read(RESIDUAL, feature, column) * weight)

    sum_up(block, [sums, task.scratch.squares, group.gradients, group.products, group.energies], add)
    if task.rule != LAYER:
        for at, _ in block.slots():
            store_real(sums + at, splat(0.0, FLOAT64, block.lanes))


def _prepare(block: DerivativeBlock) -> bool:
    """Leave what rows are multiplied and moved by in the group; whether all of them are taken, and each once."""
    task, group, whole, zero = block.task, block.group, cell(True), splat(0.0, FLOAT64, block.lanes)
    found = (*(getattr(task.scratch, name) for name in ("shifts", "sums", "squares", "factors", "constants")),
             group.gradients, group.products, group.energies)  # fmt: skip
    for at, column in block.slots():
        of_rows, along, *held = parts_of_dx(task, *(block.numbers(numbers + at) for numbers in found))
        for numbers, value in zip(group.of_dx, of_rows, strict=True):
            store(numbers + at, task.compute_dtype, as_lanes(value, task.compute_dtype))
        left, taken = block.numbers(block.left + 8 * column), cell(splat(1.0, FLOAT64, block.lanes))
        for condition in held:
            taken[...] = where(condition, taken, zero)
        if task.dtype is FLOAT64:
            _take_zeros(block, at, column, taken, *held)
            if block.given is not None:
                taken[...] = taken * _held_factors(block, block.given, column, of_rows[1])
        taken[...] = taken * left
        store_real(block.taken + at, taken)
        store_real(block.left + 8 * column, left - taken)
        if block.given is not None:
            store_real(block.sums, along)
            for k in loop(0, smaller(block.lanes, block.rows - column), 1):
                for _ in when(peek(block.taken + at + 8 * k, FLOAT64) != 0.0):
                    to = block.given.at(column + k)
                    store_real(to, peek(group.gradients + at + 8 * k, FLOAT64))
                    store_real(to + 8, peek(block.sums + 8 * k, FLOAT64))
        whole[...] = whole & (sum_lanes(taken) == number(block.lanes))
    return whole


def _held_factors(block: DerivativeBlock, numbers: Numbers, column: int, factor: Lanes) -> Lanes:
    """1.0 for rows whose given factors are in range and have no unit, and 0.0."""
    zero, one = splat(0.0, FLOAT64, block.lanes), splat(1.0, FLOAT64, block.lanes)
    store_real(block.sums, zero)
    for k in loop(0, smaller(block.lanes, block.rows - column), 1):
        store_real(block.sums + 8 * k, peek(numbers.at(column + k) + 24, FLOAT64))
    has_no_unit = where(block.numbers(block.sums) == 0.0, one, zero)
    return where(lies_within(factor, RANGE64), has_no_unit, zero)


def _take_zeros(block: DerivativeBlock, at: int, column: int, taken: Any, holds_x: Lanes, holds_g: Lanes) -> None:
    """Take rows too whose squares are 0 as there are no deviations, or no gradient, rather than too small ones."""
    task, lanes = block.task, block.lanes
    zero, one = splat(0.0, FLOAT64, lanes), splat(1.0, FLOAT64, lanes)
    shift, squares, factor, energy = (
        block.numbers(of + at)
        for of in (task.scratch.shifts, task.scratch.squares, task.scratch.factors, block.group.energies)
    )
    is_divided = where(lies_within(factor, RANGE64), one, where(task.eps == 0.0, one, zero))
    in_doubt = where(squares == 0.0, one, where(energy == 0.0, one, zero))
    for _ in when(sum_lanes(in_doubt) != 0.0):
        is_flat, has_no_gradient = cell(one), cell(one)
        for feature in loop(0, task.features, 1):
            weight = splat(peek(task.weight + feature * 8, FLOAT64), FLOAT64, lanes)
            dy = where(weight == 0.0, zero, block.read(RESIDUAL, feature, column))
            is_flat[...] = where(block.read(X, feature, column) == shift, is_flat, zero)
            has_no_gradient[...] = where(dy == 0.0, has_no_gradient, zero)
        safe = where(squares == 0.0, is_flat * is_divided, where(holds_x, one, zero))
        taken[...] = safe * where(energy == 0.0, has_no_gradient, where(holds_g, one, zero))


def _differentiate(block: DerivativeBlock, sums: int, whole: bool) -> None:
    """Write dx of the rows that are taken, maybe of all, and add to the sums of features; 0 where there are none."""
    task, dtype, lanes = block.task, block.task.compute_dtype, block.lanes
    weights, at_once = weights_of(task, dtype), FOLD * lanes
    for has_sums in cases(sums != 0):
        for feature in loop(0, task.features, 1):
            weight = splat(peek(weights + feature * dtype.itemsize, dtype), dtype, lanes)
            shares = [cell(splat(0.0, FLOAT64, lanes)) for _ in range(2 * has_sums)]
            for turn in loop(0, block.columns, at_once):
                partial = [cell(splat(0.0, dtype, lanes)) for _ in shares]
                for at, column in block.slots(turn, smaller(turn + at_once, block.columns)):
                    x, dy = block.read(X, feature, column), block.read(RESIDUAL, feature, column)
                    of_rows = [load(numbers + at, dtype, dtype, lanes) for numbers in block.group.of_dx]
                    x_hat, dx = dx_of(x, dy, weight, of_rows, task.rule == LAYER, block.given is not None)
                    if task.arrays.total is not None:
                        dx = dx + block.read(TOTAL, feature, column)
                    added = [fma(dy, x_hat, partial[0]), partial[1] + dy] if has_sums else []
                    if not whole:
                        taken = block.numbers(block.taken + at) != 0.0
                        dx = where(taken, dx, block.read(Y, feature, column))
                        added = [where(taken, new, old) for new, old in zip(added, partial, strict=True)]
                    store(block.place(Y, feature, column), task.dtype, dx)
                    for one, new in zip(partial, added, strict=True):
                        one[...] = new
                for share, one in zip(shares, partial, strict=True):
                    share[...] = share + as_lanes(one, FLOAT64)
            for of, share in zip((sums, sums + task.features * 8), shares, strict=False):
                store_real(of + feature * 8, peek(of + feature * 8, FLOAT64) + sum_lanes(share))


def _take(block: DerivativeBlock, sums: int) -> None:
    """The derivative at those rows of a block that are left, as far as the dtype that is computed in holds them."""
    scratch = block.task.scratch
    for column in loop(0, block.columns, block.lanes):
        start = smaller(column, block.columns - block.lanes)
        store_real(block.taken + column * 8, block.numbers(block.left + start * 8))
    if block.given is not None:
        for at, column in block.slots():
            places = [numbers + at for numbers in (scratch.shifts, scratch.factors, scratch.constants)]
            block.given.read(column, smaller(block.lanes, block.rows - column), places)
    else:
        _find_shifts(block)
    _reduce(block)
    if block.given is None:
        slots = (block.columns + block.lanes - 1) // block.lanes
        find_factors(block.task._replace(compute_dtype=FLOAT64), slots * block.lanes)
    is_whole = _prepare(block)
    for whole in cases(False if block.is_sparse else is_whole):
        _differentiate(block, sums, whole)


def _are_left(block: DerivativeBlock) -> bool:
    """Whether there are rows of a block that have not been computed."""
    left = cell(splat(0.0, FLOAT64, FLOAT64.lanes))
    for column in loop(0, block.columns * 8, 64):
        left[...] = left + load(block.left + column, FLOAT64)
    return sum_lanes(left) != 0.0


def differentiate_block(block: DerivativeBlock, sums: int) -> None:
    """Write dx of the rows of a block, and add to the sums of features; 0 where there are none."""
    dtype = block.task.dtype
    block.pack()
    # Behind the last one too, up to what is read at a time.
    zero, one = splat(0.0, FLOAT64, FLOAT64.lanes), splat(1.0, FLOAT64, FLOAT64.lanes)
    for column in loop(0, block.columns, FLOAT64.lanes):
        store_real(block.left + column * 8, part(one, 0, block.rows - column, zero))
    if block.given is not None or dtype is FLOAT64:
        _take(block, sums)
    else:
        _take(block._replace(task=block.task._replace(compute_dtype=FLOAT32)), sums)
        for _ in when(_are_left(block)):
            _take(block._replace(is_sparse=True), sums)
    if dtype is FLOAT64:
        for _ in when(_are_left(block)):
            differentiate_extreme(block, sums)
    block.unpack()
