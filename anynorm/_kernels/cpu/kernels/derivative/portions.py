"""Portions of all rows: the gradients of the parameters are the sums of each portion, which are added up in the end.

What makes a portion depends on the shape and the layout, and so do the bits of those sums: row after row, the rows of a
portion are added one to the other, side by side those in a lane, and then the lanes.
"""

from __future__ import annotations

from collections.abc import Iterator

from anynorm._kernels.cpu.kernels.chunks import parts_of
from anynorm._kernels.cpu.kernels.parameters import itemsize_of, narrow_chunk, widen_chunk
from anynorm._kernels.cpu.kernels.task import Variant
from anynorm._kernels.cpu.kernels.turns import turns_of_weights
from anynorm._kernels.cpu.kernels.values import TaskValues, load_task, word
from anynorm._kernels.cpu.language.arithmetic import larger, smaller, splat, where
from anynorm._kernels.cpu.language.dtypes import FLOAT32, FLOAT64, NUMBERS, OF_ROW, SCALE
from anynorm._kernels.cpu.language.flow import cases, cell, loop, when
from anynorm._kernels.cpu.language.memory import load, real, store_real


def _prepare_weights(task: TaskValues, weights: int, count: int) -> None:
    """Set so many of weight + weight_offset, 1 where there is none, and the scale of scale_norm."""
    for given in cases(task.weight != 0):
        if given:
            # -0.0 leaves a weight of -0.0 as it is.
            offset = where(task.weight_offset == 0.0, -0.0, task.weight_offset)
            widen_chunk(task.weight_code, FLOAT64, task.weight, count, offset, weights)
        else:
            for i in loop(0, count, 1):
                store_real(weights + i * 8, task.scale)
    if task.dtype is not FLOAT64:
        narrow_chunk(FLOAT32.code, weights, count, weights + count * 8)


def add_up(sums: int, portions: int, numbers: int) -> None:
    """Add so many sums of each portion to those of the first."""
    for portion in loop(1, portions, 1):
        for lanes, begin, end in parts_of(numbers, FLOAT64.lanes):
            for i in loop(begin, end, lanes):
                found, share = (load(one + i * 8, FLOAT64, lanes=lanes) for one in (sums, sums + portion * numbers * 8))
                store_real(sums + i * 8, found + share)


def write_gradients(task: TaskValues, address: int, sums: int, place: int = 0) -> None:
    """Write sums as gradients of the parameters, from an element of them on."""
    dweight, dweight_code, dbias, dbias_code = (
        word(address, name) for name in ("dweight", "dweight_code", "dbias", "dbias_code")
    )
    for is_scale in cases(task.rule == SCALE):
        count = task.features
        if is_scale:
            whole = cell(0.0)
            for i in loop(0, count * 8, 8):
                whole[...] = whole + real(sums + i)
            store_real(sums, whole)
            count = 1
        for _ in when(dweight != 0):
            narrow_chunk(dweight_code, sums, count, dweight + place * itemsize_of(dweight_code))
    for _ in when(dbias != 0):
        target = dbias + place * itemsize_of(dbias_code)
        narrow_chunk(dbias_code, sums + task.features * 8, task.features, target)


def clear(sums: int, numbers: int) -> None:
    """Set so many sums to 0."""
    for lanes, begin, end in parts_of(numbers, FLOAT64.lanes):
        for i in loop(begin, end, lanes):
            store_real(sums + i * 8, splat(0.0, FLOAT64, lanes))


def load_derivative(variant: Variant, address: int, first: int) -> TaskValues:
    """Read the Task of a derivative, whose weights are prepared if the first portion is -1."""
    task, work = load_task(address, variant, has_dy=True), word(address, "work")
    if variant.parameters == OF_ROW:  # which are read as they are
        return task
    count = turns_of_weights(address) if variant.parameters == NUMBERS else task.features
    for _ in when(first < 0):
        _prepare_weights(task, work, count)
    # What `find_factors` divides by is the norm alone; the scale is a weight.
    return task._replace(weight=work, narrow_weight=work + count * 8, bias=word(address, "dbias"), scale=1.0)


def portions_of(task: TaskValues, address: int, first: int, last: int, units: int) -> Iterator[tuple[int, int, int]]:
    """Of portions first to last where their sums lie, 0 where none are wanted, and the rows or blocks, of all units.

    Sums are 0 at first. They are added up at the end, if the last portion lies behind all of them.
    """
    portion, sums, nbytes = word(address, "portion"), task.weight + task.features * 16, task.features * 16
    portions = (units + portion - 1) // portion
    has_sums = (word(address, "dweight") != 0) | (word(address, "dbias") != 0)
    if task.variant.parameters == OF_ROW:
        has_sums = has_sums & False
    for i in loop(larger(first, 0), smaller(last, portions), 1):
        of_portion = where(has_sums, sums + i * nbytes, 0)
        clear(of_portion, where(has_sums, 2 * task.features, 0))
        yield of_portion, i * portion, smaller(units, (i + 1) * portion)
    for _ in when((last > portions) & has_sums):
        add_up(sums, portions, 2 * task.features)
        write_gradients(task, address, sums)
