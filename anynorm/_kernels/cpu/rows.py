"""Row after row: reduce, finish and apply, a group of rows at a time.

A row is read twice, from memory for its moments and from a cache for the result. While a group is applied the next one
is fetched, so that reading and writing overlap.
"""

from __future__ import annotations

from anynorm._kernels.cpu.chunks import (
    apply_chunk,
    fill_chunk,
    is_flat_chunk,
    is_near_one,
    moments_chunk,
    squares_chunk,
    sum_chunk,
    widen_chunk,
)
from anynorm._kernels.cpu.finish import finish
from anynorm._kernels.cpu.jit import inner, kernel, merged
from anynorm._kernels.cpu.lanes import buffer, fence, further, instead, load, peek, poke, size_of, store
from anynorm._kernels.cpu.scatter import ADDED, OTHER, X, Y, gather, is_scattered, place, place_results, scatter
from anynorm._kernels.cpu.tags import CHUNK, LANES, LAYER, WIDE64
from anynorm._kernels.cpu.task import Rooms, Task

# Room for a chunk; parameters are read in whole lanes from wherever a result begins a cache line.
_CHUNK_NBYTES = (CHUNK + LANES) * 8
_LANES_NBYTES = LANES * 8
ROOMS_NBYTES = 7 * _CHUNK_NBYTES + 5 * _LANES_NBYTES
# Short rows go in groups, which share the latency of their roots and divisions, and stay in the first cache between
# reduce and apply. 64 features of float32: 0.44 ns an element one by one, 0.27 in groups of 32 (EPYC 9005, one core).
_GROUP_NBYTES = 8 << 10


@merged
def furnish(address):
    """Divide up the memory that a kernel works in."""
    chunk, lanes = _CHUNK_NBYTES, _LANES_NBYTES
    numbers = address + 7 * chunk
    return Rooms(
        address, address + chunk, address + 2 * chunk, address + 3 * chunk, address + 4 * chunk, address + 5 * chunk,
        address + 6 * chunk,
        numbers, numbers + lanes, numbers + 2 * lanes, numbers + 3 * lanes, numbers + 4 * lanes,
    )  # fmt: skip


@merged
def _shift_of(task, tag, wide, rooms, x, other, room):
    """A number near the mean of a row; 0 where nothing is centred."""
    if task.rule != LAYER:
        return 0.0
    if size_of(wide) == 8:
        # Any element will do: none is further from the mean than sqrt(features) standard deviations (Samuelson 1968,
        # "How deviant can you be?"), and float64 has the bits to spare.
        return peek(x, other, tag)
    sums = 0.0
    for start in range(0, task.features, CHUNK):
        count = min(CHUNK, task.features - start)
        a, b = _gathered(task, tag, rooms, x, other, start, count)
        sums += sum_chunk(tag, wide, a, b, count)
    # Rounded to the dtype of the row, so that a constant row has no deviations.
    poke(room, tag, sums / task.features)
    return peek(room, None, tag)


@merged
def _moments_of(task, tag, wide, rooms, x, other, shift):
    """The sum of deviations from the shift and the sum of their squares; of the squares alone without centring."""
    sums = squares = 0.0
    for start in range(0, task.features, CHUNK):
        count = min(CHUNK, task.features - start)
        a, b = _gathered(task, tag, rooms, x, other, start, count)
        if task.rule == LAYER:
            more = moments_chunk(tag, wide, a, b, count, shift)
            sums += more[0]
            squares += more[1]
        else:
            squares += squares_chunk(tag, wide, a, b, count)
    return sums, squares


@merged
def _gathered(task, tag, rooms, x, other, start, count):
    """A chunk of a row and of its residual."""
    return gather(task, tag, x, X, start, count, rooms.x), gather(task, tag, other, OTHER, start, count, rooms.other)


@merged
def finish_group(task, rooms, count):
    """Turn sums and squares of each row into factors and constants."""
    if count < LANES // 2:
        for i in range(0, count * 8, 8):
            sums, squares = peek(rooms.sums + i, None, WIDE64), peek(rooms.squares + i, None, WIDE64)
            factor, constant = finish(task.rule, sums, squares, task.features, task.eps, task.scale)
            poke(rooms.factors + i, WIDE64, factor)
            poke(rooms.constants + i, WIDE64, constant)
    else:
        sums = load(rooms.sums, None, WIDE64, WIDE64, None, 0.0)
        squares = load(rooms.squares, None, WIDE64, WIDE64, None, 0.0)
        factors, constants = finish(task.rule, sums, squares, task.features, task.eps, task.scale)
        store(rooms.factors, WIDE64, factors, None)
        store(rooms.constants, WIDE64, constants, None)


@inner
def _is_flat(task, tag, wide, rooms, x, other, shift):
    """Whether a row has no deviations at all, rather than such as have squares of 0."""
    for start in range(0, task.features, CHUNK):
        count = min(CHUNK, task.features - start)
        a, b = _gathered(task, tag, rooms, x, other, start, count)
        if not is_flat_chunk(tag, wide, a, b, count, shift):
            return False
    return True


@inner
def count_safe(task, tag, wide, rooms, first, count):
    """How many rows there are before the first on which float32 would leave its range."""
    if size_of(wide) == 8:
        return count
    for k in range(count):
        squares, factor = peek(rooms.squares + 8 * k, None, WIDE64), peek(rooms.factors + 8 * k, None, WIDE64)
        if 2.0**-80 < squares < 2.0**100 and 2.0**-60 < abs(factor) < 2.0**60:
            continue
        x, other = place(task, tag, first + k)
        shift = peek(rooms.shifts + 8 * k, None, WIDE64)
        if not (squares == 0.0 and _is_flat(task, tag, wide, rooms, x, other, shift)):
            return k
        poke(rooms.factors + 8 * k, WIDE64, 0.0)
        poke(rooms.constants + 8 * k, WIDE64, 0.0)
    return count


@inner
def widen_parameters(task, wide, rooms, start, count, weight_offset):
    """A chunk of weight + weight_offset and of bias in the wide dtype, where there is one of them.

    -0.0 is added to what is to stay as it is: 0.0 would turn a parameter of -0.0 into 0.0.
    """
    if task.weight:
        source = task.weight + start * (2 if task.weight_code < 2 else 4 * (task.weight_code - 1))
        widen_chunk(task.weight_code, wide, source, count, weight_offset or -0.0, rooms.weights)
    else:
        fill_chunk(wide, 1.0, count, rooms.weights)
    if task.bias:
        source = task.bias + start * (2 if task.bias_code < 2 else 4 * (task.bias_code - 1))
        widen_chunk(task.bias_code, wide, source, count, -0.0, rooms.biases)
    else:
        fill_chunk(wide, -0.0, count, rooms.biases)  # 0.0 would turn a result of -0.0 into 0.0


@inner
def are_weights_safe(task, wide, rooms):
    """Whether products with the weights keep their range in the wide dtype."""
    if size_of(wide) == 8 or not task.affine:
        return True
    for start in range(0, task.features, CHUNK):
        count = min(CHUNK, task.features - start)
        widen_parameters(task, wide, rooms, start, count, task.weight_offset)
        if not is_near_one(rooms.weights, count):
            return False
    return True


@merged
def _normalize_group(task, tag, wide, rooms, first, count):
    """Normalize up to LANES rows; return how many, which is less where one is not safe for float32."""
    # Two loops, so that the processor need not wait for the shift of a row: it can go on with the next.
    for k in range(count):
        x, other = place(task, tag, first + k)
        poke(rooms.shifts + 8 * k, WIDE64, _shift_of(task, tag, wide, rooms, x, other, rooms.shifts + 8 * k))
    for k in range(count):
        x, other = place(task, tag, first + k)
        shift = peek(rooms.shifts + 8 * k, None, WIDE64)
        sums, squares = _moments_of(task, tag, wide, rooms, x, other, shift)
        poke(rooms.sums + 8 * k, WIDE64, sums)
        poke(rooms.squares + 8 * k, WIDE64, squares)
    finish_group(task, rooms, count)
    count = count_safe(task, tag, wide, rooms, first, count)
    # At once where nothing has to be widened or gathered: each chunk begins and ends within a cache line.
    in_chunks = is_scattered(task) or (task.affine and not task.direct)
    step = CHUNK if in_chunks else task.features
    for start in range(0, task.features, step):
        length, i = min(step, task.features - start), start * size_of(tag)
        weight, bias = rooms.weights, rooms.biases
        if task.direct:
            weight, bias = task.weight + i if task.weight else 0, task.bias + i if task.bias else 0
        elif task.features > CHUNK and task.affine:
            widen_parameters(task, wide, rooms, start, length, task.weight_offset)
        for k in range(count):
            _apply_row(task, tag, wide, rooms, first + k, count, start, length, weight, bias, 8 * k)
    return count


@merged
def _apply_row(task, tag, wide, rooms, row, behind, start, count, weight, bias, i):
    """Apply a chunk of a row, and fetch that of the row so many behind it."""
    size = size_of(tag)
    x, other = place(task, tag, row)
    y, added = place_results(task, tag, row)
    a, b = _gathered(task, tag, rooms, x, other, start, count)
    scattered = is_scattered(task)
    ahead = 0 if scattered else place(task, tag, row + behind)[0] - x
    to = rooms.y if scattered else y + start * size
    sum_to = instead(added, rooms.added) if scattered else further(added, start * size)
    shift, constant = peek(rooms.shifts + i, None, WIDE64), peek(rooms.constants + i, None, WIDE64)
    factor = peek(rooms.factors + i, None, WIDE64)
    if task.direct:
        apply_chunk(task, tag, wide, a, b, to, sum_to, weight, bias, count, shift, factor, constant, ahead, True)
    else:
        apply_chunk(task, tag, wide, a, b, to, sum_to, weight, bias, count, shift, factor, constant, ahead, None)
    scatter(task, tag, y, Y, start, count, rooms.y)
    scatter(task, tag, added, ADDED, start, count, rooms.added)


@kernel
def normalize_rows(
    tag, wide, first, last, rule, eps, scale, features, x, other, y, added, layout,
    weight, weight_code, bias, bias_code, weight_offset, direct, streaming, block, head,
):  # fmt: skip
    """Normalize rows first to last, or up to one that float32 cannot hold; return which is the next.

    That is -1 where it cannot hold the weights. The arguments are those of Task, and the dtypes of x and of what is
    computed in.
    """
    task = Task(
        rule, eps, scale, features, x, other, y, added, layout, weight, weight_code, bias, bias_code, weight_offset,
        weight != 0 or bias != 0, direct, streaming, block, head,
    )  # fmt: skip
    rooms = furnish(buffer(ROOMS_NBYTES))
    if not are_weights_safe(task, wide, rooms):
        return -1
    if task.affine and not direct and features <= CHUNK:
        widen_parameters(task, wide, rooms, min(first, 0), features, weight_offset)
    step = max(1, min(LANES, _GROUP_NBYTES // max(1, features * size_of(tag))))
    start, done = first, 1
    while start < last and done:
        done = _normalize_group(task, tag, wide, rooms, start, min(step, last - start))
        start += done
    if streaming:
        fence()
    return start
