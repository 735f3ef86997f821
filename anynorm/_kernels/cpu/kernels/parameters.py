"""Weight and bias as numbers of the wide dtype, and whether products with them keep its range."""

from __future__ import annotations

from anynorm._kernels.cpu.kernels.chunks import chunks_of, uses_pairs
from anynorm._kernels.cpu.kernels.values import Rooms, TaskValues
from anynorm._kernels.cpu.language.dtypes import CODES, LAYER, TAGS, WIDE32, WIDE64, Lanes, Number, Tag
from anynorm._kernels.cpu.language.lanes import (
    cases,
    cell,
    load,
    loop,
    magnitude,
    size_of,
    splat,
    store,
    total,
    when,
    where,
    where_less,
)

_STEP = 8  # parameters that are widened at a time


def widen_parameters(task: TaskValues, wide: Tag, rooms: Rooms, start: int, count: int, weight_offset: Number) -> None:
    """A chunk of weight + weight_offset and of bias in the wide dtype, where there is one of them.

    -0.0 is added to what is to stay as it is: 0.0 would turn a parameter of -0.0 into 0.0.
    """
    for address, code, offset, room in (
        (task.weight, task.weight_code, where(weight_offset == 0.0, -0.0, weight_offset), rooms.weights),
        (task.bias, task.bias_code, -0.0, rooms.biases),
    ):
        for _ in when(address != 0):
            itemsize = where(code < 2, 2, 4 * (code - 1))
            widen_chunk(code, wide, address + start * itemsize, count, offset, room)


def are_weights_safe(task: TaskValues, tag: Tag, wide: Tag, rooms: Rooms) -> bool:
    """Whether products with the weights keep their range in the wide dtype."""
    safe = cell(True)
    if wide is WIDE64:
        return safe
    # x_hat * weight is out of range no sooner than y, unless the weight itself is: factor * weight may be.
    in_doubt = (task.rule != LAYER) | (task.weight_code == 3) | (task.weight_offset != 0.0)
    for _ in when((task.weight != 0) & in_doubt):
        for direct in cases(task.direct) if uses_pairs(tag, wide) else (False,):
            if direct:
                safe[...] = _are_near_one(tag, task.weight, task.features)
                continue
            for start, count in chunks_of(task, tag):
                widen_parameters(task, wide, rooms, start, count, task.weight_offset)
                safe[...] = safe & _are_near_one(WIDE32, rooms.weights, count)
    return safe


def widen_chunk(code: int, wide: Tag, source: int, count: int, offset: Number, target: int) -> None:
    """Source + offset in the wide dtype, for a source whose dtype is known by its code.

    -0.0 leaves a number as it is; 0.0 would turn -0.0 into 0.0.
    """
    for name, tag in TAGS.items():
        for _ in when(code == CODES[name]):
            # Nothing behind a parameter may be read.
            whole = count - count % _STEP
            for i in loop(0, whole, _STEP):
                _widen(tag, wide, source, target, i, offset, _STEP)
            for i in loop(whole, count, 1):
                _widen(tag, wide, source, target, i, offset, 1)


def _widen(tag: Tag, wide: Tag, source: int, target: int, i: int, offset: Number, lanes: int) -> None:
    # In float64, for float32 would lose what is left where a weight and the offset cancel.
    value = load(source + i * size_of(tag), None, tag, WIDE64, lanes) + splat(offset, WIDE64, lanes)
    store(target + i * size_of(wide), wide, value)


def narrow_chunk(code: int, source: int, count: int, target: int) -> None:
    """Float64 numbers rounded to a dtype that is known by its code."""
    for name, tag in TAGS.items():
        for _ in when(code == CODES[name]):
            whole = count - count % _STEP
            for lanes, first, last in ((_STEP, 0, whole), (1, whole, count)):
                for i in loop(first, last, lanes):
                    store(target + i * size_of(tag), tag, load(source + i * 8, None, WIDE64, WIDE64, lanes))


def fill_chunk(wide: Tag, value: Number, count: int, target: int) -> None:
    """The same number in all of a buffer."""
    for i in loop(0, count, _STEP):
        store(target + i * size_of(wide), wide, splat(value, wide, _STEP))


def _are_near_one(tag: Tag, address: int, count: int) -> bool:
    """Whether numbers are all 0 or within 2**-60 and 2**60, so that products with them keep the range of float32."""
    whole = count - count % _STEP
    outside = cell(splat(0.0, WIDE32, _STEP))
    for i in loop(0, whole, _STEP):
        outside[...] = outside + _outside(tag, address + i * size_of(tag), _STEP)
    found = cell(total(outside))
    for i in loop(whole, count, 1):
        found[...] = found + total(_outside(tag, address + i * size_of(tag), 1))
    return found == 0.0


def _outside(tag: Tag, address: int, lanes: int) -> Lanes:
    """1 for each number that is not near 1, else 0."""
    size = magnitude(load(address, None, tag, WIDE32, lanes))
    zero, one, least, most = (splat(number, WIDE32, lanes) for number in (0.0, 1.0, 2.0**-60, 2.0**60))
    small = where_less(size, least, where_less(zero, size, one, zero), zero)
    return where_less(size, most, small, one)
