"""Weight and bias as numbers of the wide dtype, and whether products with them keep its range."""

from __future__ import annotations

from anynorm._kernels.cpu.kernels.chunks import chunks_of, uses_pairs
from anynorm._kernels.cpu.kernels.values import TaskValues
from anynorm._kernels.cpu.language.dtypes import CODES, DTYPES, FLOAT32, FLOAT64, LAYER, Dtype, Lanes, Number
from anynorm._kernels.cpu.language.lanes import (
    cases,
    cell,
    load,
    loop,
    magnitude,
    size_of,
    splat,
    store,
    sum_lanes,
    when,
    where,
    where_less,
)

_STEP = 8  # parameters that are widened at a time


def widen_parameters(task: TaskValues, start: int, count: int, weight_offset: Number) -> None:
    """A chunk of weight + weight_offset and of bias in the wide dtype, where there is one of them.

    -0.0 is added to what is to stay as it is: 0.0 would turn a parameter of -0.0 into 0.0.
    """
    for turn in loop(0, 2, 1):  # which is compiled once for both: the code for all dtypes is long
        is_weight = turn == 0
        address, code = where(is_weight, task.weight, task.bias), where(is_weight, task.weight_code, task.bias_code)
        offset = where(is_weight, where(weight_offset == 0.0, -0.0, weight_offset), -0.0)
        for _ in when(address != 0):
            itemsize = where(code < 2, 2, 4 * (code - 1))
            target = where(is_weight, task.scratch.weights, task.scratch.biases)
            widen_chunk(code, task.compute_dtype, address + start * itemsize, count, offset, target)


def are_weights_safe(task: TaskValues) -> bool:
    """Whether products with the weights keep their range in the wide dtype."""
    safe = cell(True)
    if task.compute_dtype is FLOAT64:
        return safe
    # x_hat * weight is out of range no sooner than y, unless the weight itself is: factor * weight may be.
    in_doubt = (task.rule != LAYER) | (task.weight_code == 3) | (task.weight_offset != 0.0)
    for _ in when((task.weight != 0) & in_doubt):
        for direct in cases(task.direct) if uses_pairs(task.dtype, task.compute_dtype) else (False,):
            if direct:
                safe[...] = _are_near_one(task.dtype, task.weight, task.features)
                continue
            for start, count in chunks_of(task):
                widen_parameters(task, start, count, task.weight_offset)
                safe[...] = safe & _are_near_one(FLOAT32, task.scratch.weights, count)
    return safe


def widen_chunk(code: int, compute_dtype: Dtype, source: int, count: int, offset: Number, target: int) -> None:
    """Source + offset in the wide dtype, for a source whose dtype is known by its code.

    -0.0 leaves a number as it is; 0.0 would turn -0.0 into 0.0.
    """
    for name, dtype in DTYPES.items():
        for _ in when(code == CODES[name]):
            # Nothing behind a parameter may be read.
            whole = count - count % _STEP
            for i in loop(0, whole, _STEP):
                _widen(dtype, compute_dtype, source, target, i, offset, _STEP)
            for i in loop(whole, count, 1):
                _widen(dtype, compute_dtype, source, target, i, offset, 1)


def _widen(dtype: Dtype, compute_dtype: Dtype, source: int, target: int, i: int, offset: Number, lanes: int) -> None:
    # In float64, for float32 would lose what is left where a weight and the offset cancel.
    value = load(source + i * size_of(dtype), None, dtype, FLOAT64, lanes) + splat(offset, FLOAT64, lanes)
    store(target + i * size_of(compute_dtype), compute_dtype, value)


def narrow_chunk(code: int, source: int, count: int, target: int) -> None:
    """Float64 numbers rounded to a dtype that is known by its code."""
    for name, dtype in DTYPES.items():
        for _ in when(code == CODES[name]):
            whole = count - count % _STEP
            for lanes, first, last in ((_STEP, 0, whole), (1, whole, count)):
                for i in loop(first, last, lanes):
                    store(target + i * size_of(dtype), dtype, load(source + i * 8, None, FLOAT64, FLOAT64, lanes))


def fill_chunk(compute_dtype: Dtype, value: Number, count: int, target: int) -> None:
    """The same number in all of a buffer."""
    for i in loop(0, count, _STEP):
        store(target + i * size_of(compute_dtype), compute_dtype, splat(value, compute_dtype, _STEP))


def _are_near_one(dtype: Dtype, address: int, count: int) -> bool:
    """Whether numbers are all 0 or within 2**-60 and 2**60, so that products with them keep the range of float32."""
    whole = count - count % _STEP
    outside = cell(splat(0.0, FLOAT32, _STEP))
    for i in loop(0, whole, _STEP):
        outside[...] = outside + _outside(dtype, address + i * size_of(dtype), _STEP)
    found = cell(sum_lanes(outside))
    for i in loop(whole, count, 1):
        found[...] = found + sum_lanes(_outside(dtype, address + i * size_of(dtype), 1))
    return found == 0.0


def _outside(dtype: Dtype, address: int, lanes: int) -> Lanes:
    """1 for each number that is not near 1, else 0."""
    size = magnitude(load(address, None, dtype, FLOAT32, lanes))
    zero, one, least, most = (splat(number, FLOAT32, lanes) for number in (0.0, 1.0, 2.0**-60, 2.0**60))
    small = where_less(size, least, where_less(zero, size, one, zero), zero)
    return where_less(size, most, small, one)
