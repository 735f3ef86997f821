"""What is done to a chunk: up to CHUNK features of one row, in memory one after the other.

``other`` is the address of the residual's elements, or None; a chunk is then the sum of both, rounded to their dtype.
Lane j of a sum adds up elements j, j + LANES, ... of the chunk, and the lanes are added in halves. Every kernel keeps
to that order, whatever the layout, so that the bits of a row do not depend on it.
"""

from __future__ import annotations

from anynorm._kernels.cpu.jit import inlined, inner
from anynorm._kernels.cpu.lanes import (
    fma,
    further,
    load,
    magnitude,
    prefetch,
    size_of,
    splat,
    store,
    stream,
    total,
    weighted,
    where_less,
)
from anynorm._kernels.cpu.tags import CACHE_LINE_NBYTES, LANES, LAYER, TAGS, WIDE32, WIDE64

_HALF, _BFLOAT, _SINGLE = TAGS["float16"], TAGS["bfloat16"], TAGS["float32"]


@inlined
def sum_chunk(tag, wide, x, other, count):
    """The sum of a chunk."""
    size, whole = size_of(tag), count - count % LANES
    sums = splat(0.0, wide)
    for i in range(0, whole * size, LANES * size):
        sums = sums + load(x + i, further(other, i), tag, wide, None, 0.0)
    if whole < count:
        i = whole * size
        sums = sums + load(x + i, further(other, i), tag, wide, count - whole, 0.0)
    return total(sums)


@inlined
def squares_chunk(tag, wide, x, other, count):
    """The sum of squares of a chunk."""
    size, whole = size_of(tag), count - count % LANES
    squares = splat(0.0, wide)
    for i in range(0, whole * size, LANES * size):
        value = load(x + i, further(other, i), tag, wide, None, 0.0)
        squares = fma(value, value, squares)
    if whole < count:
        i = whole * size
        value = load(x + i, further(other, i), tag, wide, count - whole, 0.0)
        squares = fma(value, value, squares)
    return total(squares)


@inlined
def moments_chunk(tag, wide, x, other, count, shift):
    """The sums of deviations from a shift and of their squares."""
    size, whole = size_of(tag), count - count % LANES
    sums = squares = splat(0.0, wide)
    near = splat(shift, wide)
    for i in range(0, whole * size, LANES * size):
        value = load(x + i, further(other, i), tag, wide, None, 0.0) - near
        sums = sums + value
        squares = fma(value, value, squares)
    if whole < count:
        i = whole * size
        value = load(x + i, further(other, i), tag, wide, count - whole, shift) - near
        sums = sums + value
        squares = fma(value, value, squares)
    return total(sums), total(squares)


@inlined
def prefetch_chunk(address, nbytes):
    """Have so many bytes brought near."""
    for line in range(0, nbytes, CACHE_LINE_NBYTES):
        prefetch(address + line)


@inlined
def _parameter(tag, wide, address, count, missing, direct):
    """LANES elements of weight or bias, as they are or widened beforehand."""
    if direct is None:
        return load(address, None, wide, wide, None, 0.0)
    if address == 0:
        return splat(missing, wide)
    return load(address, None, tag, wide, count, 0.0)


@inlined
def _apply_lanes(task, tag, wide, x, other, y, added, weight, bias, count, shift, factor, constant, direct, streaming):
    """LANES elements of `apply_chunk`, or the first ``count`` of them."""
    value = load(x, other, tag, wide, count, 0.0)
    if added is not None:
        store(added, tag, value, count)
    # Branches that never change their mind cost little, and each variant of the loop a tenth of a second to compile.
    if task.rule == LAYER:
        value = fma(value - shift, factor, constant)
    if task.affine:
        # A bias of 0.0 would turn a result of -0.0 into 0.0.
        weights = _parameter(tag, wide, weight, count, 1.0, direct)
        biases = _parameter(tag, wide, bias, count, -0.0, direct)
        value = fma(value, weights, biases) if task.rule == LAYER else weighted(value, factor, weights, biases)
    elif task.rule != LAYER:
        value = value * factor
    if streaming:
        stream(y, tag, value)
    else:
        store(y, tag, value, count)


@inlined
def apply_chunk(task, tag, wide, x, other, y, added, weight, bias, count, shift, factor, constant, ahead, direct):
    """Step 3 of the definition: ((x - shift) * factor + constant) * weight + bias.

    ``weight`` and ``bias`` are buffers of the wide dtype, which may be read LANES elements past the count, or, unless
    ``direct`` is None, where the parameters themselves lie; 0 where there is none. ``added`` is where the sum with the
    residual goes, and ``ahead`` how far behind x lies what will be read next.
    """
    size = size_of(tag)
    parameter_size = size_of(wide) if direct is None else size
    shifts, factors, constants = splat(shift, wide), splat(factor, wide), splat(constant, wide)
    i, left = 0, 0
    if task.streaming:  # which fills whole cache lines
        left = min(count, (-y % CACHE_LINE_NBYTES) // size)
    while True:
        if left:
            j, k = i * size, i * parameter_size
            _apply_lanes(
                task, tag, wide, x + j, further(other, j), y + j, further(added, j),
                weight + k if weight else 0, bias + k if bias else 0, left, shifts, factors, constants, direct, False,
            )  # fmt: skip
            i += left
        if i == count:
            break
        left = (count - i) % LANES
        whole = count - left
        while i < whole:
            j, k = i * size, i * parameter_size
            prefetch_chunk(x + ahead + j, LANES * size)
            _apply_lanes(
                task, tag, wide, x + j, further(other, j), y + j, further(added, j),
                weight + k if weight else 0, bias + k if bias else 0, None, shifts, factors, constants, direct,
                task.streaming,
            )  # fmt: skip
            i += LANES
        if not left:
            break


@inner
def widen_chunk(code, wide, source, count, offset, target):
    """Source + offset in the wide dtype, for a source whose dtype is known by its code."""
    offsets = splat(offset, WIDE64)  # float32 would lose what is left where a weight and the offset cancel
    for i in range(0, count, LANES):
        left = min(count - i, LANES)
        if code == 0:
            value = load(source + i * 2, None, _HALF, WIDE64, left, 0.0)
        elif code == 1:
            value = load(source + i * 2, None, _BFLOAT, WIDE64, left, 0.0)
        elif code == 2:
            value = load(source + i * 4, None, _SINGLE, WIDE64, left, 0.0)
        else:
            value = load(source + i * 8, None, WIDE64, WIDE64, left, 0.0)
        store(target + i * size_of(wide), wide, value + offsets, None)


@inner
def fill_chunk(wide, value, count, target):
    """The same number in all of a buffer."""
    values = splat(value, wide)
    for i in range(0, count, LANES):
        store(target + i * size_of(wide), wide, values, None)


@inner
def is_near_one(target, count):
    """Whether all of a float32 buffer is 0 or within 2**-60 and 2**60, so that products with it keep their range."""
    zero, one = splat(0.0, WIDE32), splat(1.0, WIDE32)
    least, most = splat(2.0**-60, WIDE32), splat(2.0**60, WIDE32)
    outside = zero
    for i in range(0, count, LANES):
        size = magnitude(load(target + i * 4, None, WIDE32, WIDE32, min(count - i, LANES), 1.0))
        outside = outside + where_less(
            size, most, where_less(size, least, where_less(zero, size, one, zero), zero), one
        )
    return total(outside) == 0.0


@inner
def is_flat_chunk(tag, wide, x, other, count, shift):
    """Whether all of a chunk is the same number as the shift."""
    zero, one, near = splat(0.0, wide), splat(1.0, wide), splat(shift, wide)
    different = zero
    for i in range(0, count, LANES):
        j = i * size_of(tag)
        value = load(x + j, further(other, j), tag, wide, min(count - i, LANES), shift) - near
        # NaN is not less either, and so not the same.
        different = different + where_less(magnitude(value), splat(2.0**-149, wide), zero, one)
    return total(different) == 0.0
