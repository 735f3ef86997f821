"""Weight and bias as numbers of the dtype that is computed in, and whether products with them keep its range."""

from __future__ import annotations

from anynorm._kernels.cpu.kernels.chunks import adds_offset, chunks_of, parts_of
from anynorm._kernels.cpu.kernels.values import TaskValues
from anynorm._kernels.cpu.language.arithmetic import magnitude, rounded, splat, sum_lanes, where
from anynorm._kernels.cpu.language.dtypes import BY_CODE, CHUNK, FLOAT32, FLOAT64, LAYER, ONCE, SCALE, Dtype, Number
from anynorm._kernels.cpu.language.flow import cases, cell, loop, when
from anynorm._kernels.cpu.language.memory import load, store

_STEP = 8  # parameters that are widened at a time
# Below so many rows it does not pay to widen parameters of 16 bits beforehand; and where they are more than a chunk. It
# never does for a row that is alone in its group, or streamed with a few.
_FEW_ROWS, _FEW_LONG_ROWS = 4, 32
_CHECKED = 32  # that are compared at a time: of fewer, each step would wait for the one before
_LARGE = 2.0**60  # up to this, and from its reciprocal on, products keep the range of float32


def pays_to_read_directly(task: TaskValues, rows: int, is_alone: bool) -> bool:
    """Whether parameters are read where they lie: that is faster, and lanes do not reach behind them.

    ``is_alone`` says that a group is one row, or a few that are streamed.
    """
    of_its_dtype = task.weight_offset == 0.0
    if adds_offset(task):
        of_its_dtype = of_its_dtype | (rounded(task.weight_offset, FLOAT32) == task.weight_offset) & (rows < _FEW_ROWS)
    for parameter, code in ((task.weight, task.weight_code), (task.bias, task.bias_code)):
        of_its_dtype = of_its_dtype & ((parameter == 0) | (code == task.dtype.code))
    few = where(task.features > CHUNK, _FEW_LONG_ROWS, _FEW_ROWS)
    pays = task.dtype is FLOAT32 or (rows < few) | is_alone
    return of_its_dtype & pays & (task.features >= task.lanes)


def widen_parameters(task: TaskValues, start: int, count: int, weight_offset: Number) -> None:
    """Put a chunk of weight + weight_offset and of bias into scratch, where there is one of them.

    -0.0 is added to what is to stay as it is: 0.0 would turn a parameter of -0.0 into 0.0.
    """
    for turn in loop(0, 2, 1):  # which is compiled once for both: the code for all dtypes is long
        is_weight = turn == 0
        address, code = where(is_weight, task.weight, task.bias), where(is_weight, task.weight_code, task.bias_code)
        offset = where(is_weight, where(weight_offset == 0.0, -0.0, weight_offset), -0.0)
        for _ in when(address != 0):
            target = where(is_weight, task.scratch.weights, task.scratch.biases)
            source = address + start * itemsize_of(code)
            widen_chunk(code, task.compute_dtype, source, count, offset, target, task.variant.rounds_weight)


def itemsize_of(code: int) -> int:
    """That of a dtype that is known by its code."""
    itemsize: int = where(code < 2, 2, 4 * (code - 1))
    return itemsize


def widen_short_parameters(task: TaskValues) -> None:
    """The same for all features at once, where they are no more than a chunk."""
    for _ in when(task.widened & (task.features < CHUNK + task.lanes)):
        widen_parameters(task, 0, task.features, task.weight_offset)


def widen_chunk(
    code: int, compute_dtype: Dtype, source: int, count: int, offset: Number, target: int, is_rounded: bool = False
) -> None:
    """Source + offset in the dtype that is computed in, for a source whose dtype is known by its code.

    It may be rounded to that first.
    """
    for dtype in BY_CODE:
        for _ in when(code == dtype.code):
            for lanes, first, last in parts_of(count, _STEP):
                for i in loop(first, last, lanes):
                    # In float64, for float32 would lose what is left where a weight and the offset cancel.
                    value = load(source + i * dtype.itemsize, dtype, lanes=lanes) + offset
                    value = rounded(value, dtype) if is_rounded else value
                    store(target + i * compute_dtype.itemsize, compute_dtype, value)


def narrow_chunk(code: int, source: int, count: int, target: int) -> None:
    """Float64 numbers rounded to a dtype that is known by its code."""
    for dtype in BY_CODE:
        for _ in when(code == dtype.code):
            for lanes, first, last in parts_of(count, _STEP):
                for i in loop(first, last, lanes):
                    store(target + i * dtype.itemsize, dtype, load(source + i * 8, FLOAT64, lanes=lanes))


def are_weights_safe(task: TaskValues) -> bool:
    """Whether products with the weights keep their range in float32; in float64 those with narrower rows do."""
    safe = cell(True)
    if task.compute_dtype is FLOAT64:
        return safe
    if task.rule == SCALE and task.variant.rounding != ONCE:
        size = magnitude(task.scale)
        safe[...] = (size < _LARGE) & ((size >= 1.0 / _LARGE) | (size == 0.0))
    # x_hat * weight is out of range no sooner than y, unless the weight itself is: factor * weight may be.
    has_offset = False if task.variant.rounds_weight else task.weight_offset != 0.0
    in_doubt = (task.rule != LAYER) | (task.weight_code == FLOAT64.code) | has_offset
    for _ in when((task.weight != 0) & in_doubt):
        for direct in cases(task.direct) if task.splits_factors else (False,):
            if direct:
                safe[...] = are_near_one(FLOAT32, task.weight, task.features, _LARGE)
                continue
            for start, count in chunks_of(task):
                widen_parameters(task, start, count, task.weight_offset)
                safe[...] = safe & are_near_one(FLOAT32, task.scratch.weights, count, _LARGE)
    return safe


def are_near_one(dtype: Dtype, address: int, count: int, most: float) -> bool:
    """Whether numbers are all 0 or within 1 / most and most, so that products with them keep the range of a dtype."""
    outside, compute_dtype = cell(0.0), FLOAT64 if dtype is FLOAT64 else FLOAT32
    for lanes, first, last in parts_of(count, _CHECKED):
        zero, one = splat(0.0, compute_dtype, lanes), splat(1.0, compute_dtype, lanes)
        found = cell(zero)
        for i in loop(first, last, lanes):
            size = magnitude(load(address + i * dtype.itemsize, dtype, compute_dtype, lanes))
            near = (size < most) & ((size >= 1.0 / most) | (size == 0.0))
            found[...] = found + where(near, zero, one)
        outside[...] = outside + sum_lanes(found)
    return outside == 0.0
