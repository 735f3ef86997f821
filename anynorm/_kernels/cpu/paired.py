"""Rows of float64, for which there is no wider dtype: statistics in pairs of numbers, the result within 4 units.

A pair (high, low) stands for the exact sum of both. Sources: Knuth, TAOCP 2, 4.2.2 (two_sum); Dekker 1971 and the fused
multiplication and addition (two_product).
"""

from __future__ import annotations

import math

from anynorm._kernels.cpu.chunks import prefetch_chunk
from anynorm._kernels.cpu.jit import inlined, inner, kernel, merged
from anynorm._kernels.cpu.lanes import (
    alike,
    buffer,
    fence,
    fma,
    further,
    instead,
    load,
    magnitude,
    peek,
    root,
    size_of,
    splat,
    store,
    stream,
    total,
    total_pair,
    where_less,
)
from anynorm._kernels.cpu.rows import ROOMS_NBYTES, furnish, widen_parameters
from anynorm._kernels.cpu.scatter import ADDED, OTHER, X, Y, gather, is_scattered, place, place_results, scatter
from anynorm._kernels.cpu.tags import CACHE_LINE_NBYTES, CHUNK, LANES, LAYER, SCALE, WIDE64
from anynorm._kernels.cpu.task import Task


@inlined
def two_sum(a, b):
    """The rounded sum and what it rounds off, exactly; of lanes or of numbers."""
    high = a + b
    b_seen = high - a
    return high, (a - (high - b_seen)) + (b - b_seen)


@inlined
def two_product(a, b):
    """The rounded product and what it rounds off; exact while nothing underflows."""
    high = a * b
    return high, fma(a, b, alike(0.0, a) - high)


@inlined
def _add_lanes(sums, sums_low, squares, squares_low, value, shift, centred):
    """Add deviations from the shift and their squares to sums that are pairs."""
    if centred:
        value, low = two_sum(value, shift)
        sums, error = two_sum(sums, value)
        sums_low = sums_low + (error + low)
        square, error = two_product(value, value)
        error = fma(value + value, low, error)
    else:
        square, error = two_product(value, value)
    squares, more = two_sum(squares, square)
    return sums, sums_low, squares, squares_low + (more + error)


@inlined
def _moments_chunk(tag, x, other, count, shift, centred):
    """The sums of deviations from the shift and of their squares, as pairs."""
    size, whole = size_of(tag), count - count % LANES
    zero, minus_shift = splat(0.0, WIDE64), splat(-shift, WIDE64)
    sums, sums_low, squares, squares_low = zero, zero, zero, zero
    for i in range(0, whole * size, LANES * size):
        value = load(x + i, further(other, i), tag, WIDE64, None, 0.0)
        sums, sums_low, squares, squares_low = _add_lanes(
            sums, sums_low, squares, squares_low, value, minus_shift, centred
        )
    if whole < count:
        i = whole * size
        value = load(x + i, further(other, i), tag, WIDE64, count - whole, shift)
        sums, sums_low, squares, squares_low = _add_lanes(
            sums, sums_low, squares, squares_low, value, minus_shift, centred
        )
    return total_pair(sums, sums_low), total_pair(squares, squares_low)


@merged
def _reduce_row(task, tag, rooms, x, other):
    """The shift, and as pairs the sum of deviations from it and the sum of their squares."""
    centred = task.rule == LAYER
    # Any element will do for a shift: none is further from the mean than sqrt(features) standard deviations (Samuelson
    # 1968), and pairs have the bits to spare. A constant row has no deviations then.
    shift = peek(x, other, tag) if centred else 0.0
    sums, sums_low, squares, squares_low = 0.0, 0.0, 0.0, 0.0
    for start in range(0, task.features, CHUNK):
        count = min(CHUNK, task.features - start)
        a = gather(task, tag, x, X, start, count, rooms.x)
        b = gather(task, tag, other, OTHER, start, count, rooms.other)
        of_sums, of_squares = _moments_chunk(tag, a, b, count, shift, centred)
        sums, error = two_sum(sums, of_sums[0])
        sums_low += of_sums[1] + error
        squares, error = two_sum(squares, of_squares[0])
        squares_low += of_squares[1] + error
    return shift, sums, sums_low, squares, squares_low


@inner
def _finish(task, shift, sums, sums_low, squares, squares_low):
    """The mean and the factor as pairs; NaN for a factor that is out of the range in which apply is exact."""
    count = task.features * 1.0
    # mean - shift = sums / count, and n times the variance = squares - sums * (mean - shift).
    between = sums / count
    product, error = two_product(between, count)
    between_low = (((sums - product) - error) + sums_low) / count
    mean, mean_low = two_sum(shift, between)
    mean_low += between_low
    product, error = two_product(sums, between)
    energy, low = two_sum(squares, -product)
    low += (squares_low - error) - (sums * between_low + sums_low * between)
    numerator = count
    if task.rule == SCALE:
        numerator = 1.0
        of_eps, of_eps_low = two_product(task.eps, task.eps)
        if energy < of_eps:
            energy, low = of_eps, of_eps_low
    else:
        of_eps, of_eps_low = two_product(task.eps, count)
        energy, error = two_sum(energy, of_eps)
        low += of_eps_low + error
    if not 2.0**-400 < energy < 2.0**400:
        return mean, mean_low, math.nan, 0.0
    # One step of Newton from the rounded root, with the residual formed exactly.
    factor = 1.0 / root(energy / numerator)
    square, square_error = two_product(factor, factor)
    product, product_error = two_product(square, energy)
    residual = ((numerator - product) - product_error) - square_error * energy - square * low
    factor_low = factor * residual / (2.0 * numerator)
    if task.rule == SCALE:
        product, error = two_product(factor, task.scale)
        factor, factor_low = product, error + factor_low * task.scale
        if not 2.0**-700 < abs(factor) < 2.0**700:
            return mean, mean_low, math.nan, 0.0
    return mean, mean_low, factor, factor_low


@inlined
def _apply_lanes(task, tag, rooms, x, other, y, added, i, count, mean, mean_low, factor, factor_low, streaming):
    """LANES elements of a chunk, or the first ``count`` of them."""
    j = i * 8
    value = load(x + j, further(other, j), tag, WIDE64, count, 0.0)
    if added is not None:
        store(added + j, tag, value, count)
    if task.rule == LAYER:
        value = (value - mean) - mean_low
        value = fma(value, factor, value * factor_low)
        if task.affine:
            weights = load(rooms.weights + j, None, WIDE64, WIDE64, None, 0.0)
            biases = load(rooms.biases + j, None, WIDE64, WIDE64, None, 0.0)
            if task.weight_offset != 0.0:
                biases = fma(value, load(rooms.lows + j, None, WIDE64, WIDE64, None, 0.0), biases)
            value = fma(value, weights, biases)
    elif task.affine:
        # The factor and the weight first: neither their product nor that with the element leaves its range.
        weights = load(rooms.weights + j, None, WIDE64, WIDE64, None, 0.0)
        low = weights * factor_low
        if task.weight_offset != 0.0:
            low = fma(load(rooms.lows + j, None, WIDE64, WIDE64, None, 0.0), factor, low)
        biases = load(rooms.biases + j, None, WIDE64, WIDE64, None, 0.0)
        value = fma(value, fma(weights, factor, low), biases)
    else:
        value = fma(value, factor, value * factor_low)
    if streaming:
        stream(y + j, tag, value)
    else:
        store(y + j, tag, value, count)


@inlined
def _apply_chunk(task, tag, rooms, x, other, y, added, count, mean, mean_low, factor, factor_low, ahead):
    """Step 3 of the definition, with mean and factor as pairs."""
    mean, mean_low = splat(mean, WIDE64), splat(mean_low, WIDE64)
    factor, factor_low = splat(factor, WIDE64), splat(factor_low, WIDE64)
    i, left = 0, 0
    if task.streaming:  # which fills whole cache lines
        left = min(count, (-y % CACHE_LINE_NBYTES) // 8)
    while True:
        if left:
            _apply_lanes(task, tag, rooms, x, other, y, added, i, left, mean, mean_low, factor, factor_low, False)
            i += left
        if i == count:
            break
        left = (count - i) % LANES
        for k in range(i, count - left, LANES):
            prefetch_chunk(x + ahead + k * 8, LANES * 8)
            _apply_lanes(
                task, tag, rooms, x, other, y, added, k, None, mean, mean_low, factor, factor_low, task.streaming
            )
        i = count - left
        if not left:
            break


@inner
def _widen_parameters(task, rooms, start, count):
    """A chunk of weight + weight_offset as pairs, and of bias."""
    widen_parameters(task, WIDE64, rooms, start, count, 0.0)
    if task.weight_offset != 0.0:
        offset = splat(task.weight_offset, WIDE64)
        for i in range(0, count * 8, LANES * 8):
            high, low = two_sum(load(rooms.weights + i, None, WIDE64, WIDE64, None, 0.0), offset)
            store(rooms.weights + i, WIDE64, high, None)
            store(rooms.lows + i, WIDE64, low, None)


@inner
def _are_weights_safe(task, rooms):
    """Whether all weights lie within 2**-500 and 2**500 or are 0; the last chunk of parameters is left in the rooms."""
    zero, one = splat(0.0, WIDE64), splat(1.0, WIDE64)
    least, most = splat(2.0**-500, WIDE64), splat(2.0**500, WIDE64)
    outside = zero
    for start in range(0, task.features, CHUNK):
        count = min(CHUNK, task.features - start)
        _widen_parameters(task, rooms, start, count)
        for i in range(0, count, LANES):
            size = magnitude(load(rooms.weights + i * 8, None, WIDE64, WIDE64, min(count - i, LANES), 1.0))
            small = where_less(size, least, where_less(zero, size, one, zero), zero)
            outside = outside + where_less(size, most, small, one)
    return total(outside) == 0.0


@merged
def _normalize_row(task, tag, rooms, row):
    """Normalize a row; return whether that was safe."""
    x, other = place(task, tag, row)
    y, added = place_results(task, tag, row)
    shift, sums, sums_low, squares, squares_low = _reduce_row(task, tag, rooms, x, other)
    mean, mean_low, factor, factor_low = _finish(task, shift, sums, sums_low, squares, squares_low)
    if factor != factor:
        return False
    scattered = is_scattered(task)
    ahead = 0 if scattered else place(task, tag, row + 1)[0] - x
    for start in range(0, task.features, CHUNK):
        count, i = min(CHUNK, task.features - start), start * 8
        if task.affine and task.features > CHUNK:
            _widen_parameters(task, rooms, start, count)
        _apply_chunk(
            task, tag, rooms,
            gather(task, tag, x, X, start, count, rooms.x), gather(task, tag, other, OTHER, start, count, rooms.other),
            rooms.y if scattered else y + i, instead(added, rooms.added) if scattered else further(added, i),
            count, mean, mean_low, factor, factor_low, ahead,
        )  # fmt: skip
        scatter(task, tag, y, Y, start, count, rooms.y)
        scatter(task, tag, added, ADDED, start, count, rooms.added)
    return True


@kernel
def normalize_paired(
    tag, wide, first, last, rule, eps, scale, features, x, other, y, added, layout,
    weight, weight_code, bias, bias_code, weight_offset, direct, streaming, block, head,
):  # fmt: skip
    """Normalize rows first to last, or up to one of extreme magnitude; return which is the next.

    That is -1 where weights are extreme. The arguments are those of `normalize_rows`; tag and wide are float64.
    """
    task = Task(
        rule, eps, scale, features, x, other, y, added, layout, weight, weight_code, bias, bias_code, weight_offset,
        weight != 0 or bias != 0, False, streaming, block, head,
    )  # fmt: skip
    rooms = furnish(buffer(ROOMS_NBYTES))
    if task.affine and not _are_weights_safe(task, rooms):
        return -1
    for row in range(first, last):
        if not _normalize_row(task, tag, rooms, row):
            return row
    if streaming:
        fence()
    return last
