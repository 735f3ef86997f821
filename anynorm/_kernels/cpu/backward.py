"""The derivative, row after row.

With x_hat = (x - shift) * factor + constant and g = dy * weight it is::

    dx = factor * (g - mean(g) - x_hat * mean(g * x_hat))

and the sums over rows of dy * x_hat and of dy. A row is read from memory for its moments and the two means at once, and
from a cache for dx. The sums are those of a block of rows; what makes a block depends on the shape alone.

All is computed in float64, since in float32 hardly a digit would be left of a gradient that lies along x_hat: that of
sum(y**2), say, is smaller than its terms by eps / var.
"""

from __future__ import annotations

from typing import NamedTuple

from anynorm._kernels.cpu.chunks import chunks_of, is_flat_chunk
from anynorm._kernels.cpu.finish import finish_group
from anynorm._kernels.cpu.jit import kernel
from anynorm._kernels.cpu.lanes import (
    buffer,
    cases,
    cell,
    fma,
    integer,
    larger,
    load,
    loop,
    magnitude,
    number,
    peek,
    poke,
    size_of,
    smaller,
    splat,
    store,
    store_integer,
    total,
    traced,
    when,
    where,
)
from anynorm._kernels.cpu.parameters import narrow_chunk, widen_chunk
from anynorm._kernels.cpu.rows import ROOMS_NBYTES, furnish
from anynorm._kernels.cpu.scatter import ADDED, OTHER, X, Y, gather, is_gathered, place, scatter, target
from anynorm._kernels.cpu.tags import CHUNK, GROUP, LAYER, SCALE, WIDE64, Address, Lanes, Number, Tag
from anynorm._kernels.cpu.task import Rooms, Task

# Elements at a time. More sums than this would not stay in 16 registers.
_LANES = 8
# Bytes of x and dy in a group, which are read for dx right after they were for the means: the sums of a column are kept in
# registers from row to row. ns an element of layer_norm, 768 and 1000 features: 16 KB 0.89, 64 KB 0.79 (EPYC 7003).
_MOST_NBYTES = 64 << 10
# Where squares and gradients of float64 neither overflow nor lose bits; the definition takes other rows.
_LEAST, _MOST = 2.0**-500, 2.0**500


class _More(NamedTuple):
    """Further rooms: for each row of a group a float64 number, or an address."""

    gradients: int  # the sum of g
    products: int  # the sum of g * (x - shift)
    middles: int  # -factor * mean(g)
    alongs: int  # -factor * mean(g * x_hat)
    x: int
    dy: int
    dx: int
    dtotal: int

    @classmethod
    def at(cls, address: int) -> _More:
        return cls(*(address + i * GROUP * 8 for i in range(len(cls._fields))))


_MORE_NBYTES = len(_More._fields) * GROUP * 8


class _Sums:
    """Of a row: deviations from a shift and their squares, g, and g times deviations; in lanes."""

    def __init__(self, lanes: int) -> None:
        self.of = [cell(splat(0.0, WIDE64, lanes)) for _ in range(4)]

    def add(self, d: Lanes, g: Lanes) -> None:
        sums, squares, gradients, products = self.of
        sums[...] = sums + d
        squares[...] = fma(d, d, squares)
        gradients[...] = gradients + g
        products[...] = fma(g, d, products)


def _reduce_row(task: Task, tag: Tag, rooms: Rooms, more: _More, row: int, k: int) -> None:
    """Leave the sums of a row in the rooms."""
    x, dy = place(task, tag, X, row), place(task, tag, OTHER, row)
    shift = _shift_of(task, tag, rooms, x, dy)
    found = [cell(0.0) for _ in range(4)]
    for start, count in chunks_of(task, tag):
        a, b = _gathered(task, tag, rooms, x, dy, start, count)
        whole = count - count % _LANES
        for lanes, first, last in ((_LANES, 0, whole), (1, whole, count)):
            near, chunk = splat(shift, WIDE64, lanes), _Sums(lanes)
            for i in loop(first, last, lanes):
                weight = load(task.weight + (start + i) * 8, None, WIDE64, WIDE64, lanes)
                value, gradient = (load(at + i * size_of(tag), None, tag, WIDE64, lanes) for at in (a, b))
                chunk.add(value - near, gradient * weight)
            for one, lanes_of_it in zip(found, chunk.of, strict=True):
                one[...] = one + total(lanes_of_it)
    sums, squares, gradients, products = found
    for room, value in (
        (rooms.shifts, shift), (rooms.sums, where(task.rule == LAYER, sums, 0.0)), (rooms.squares, squares),
        (more.gradients, gradients), (more.products, products),
    ):  # fmt: skip
        poke(room + k, WIDE64, value)


def _shift_of(task: Task, tag: Tag, rooms: Rooms, x: int, dy: int) -> Number:
    """A number near the mean of a row; 0 where it is not centred."""
    # Any element will do where float64 has bits to spare (Samuelson 1968), as in rows.py.
    shift = cell(where(task.rule == LAYER, peek(x, None, tag), 0.0))
    if size_of(tag) < 8:
        return shift + 0.0
    for _ in when(task.rule == LAYER):
        sums = cell(0.0)
        for start, count in chunks_of(task, tag):
            a, _ = _gathered(task, tag, rooms, x, dy, start, count)
            whole = count - count % _LANES
            for lanes, first, last in ((_LANES, 0, whole), (1, whole, count)):
                chunk, near = cell(splat(0.0, WIDE64, lanes)), splat(shift, WIDE64, lanes)
                for i in loop(first, last, lanes):
                    chunk[...] = chunk + (load(a + i * size_of(tag), None, tag, WIDE64, lanes) - near)
                sums[...] = sums + total(chunk)
        shift[...] = shift + sums / number(task.features)
    return shift + 0.0


def _gathered(task: Task, tag: Tag, rooms: Rooms, x: int, dy: int, start: int, count: int) -> tuple[int, int]:
    return (
        gather(task, tag, X, x, start, count, rooms.x),
        gather(task, tag, OTHER, dy, start, count, rooms.other),
    )


def _finish_row(task: Task, tag: Tag, rooms: Rooms, more: _More, unsafe: int, row: int, k: int) -> None:
    """What the elements of a row are multiplied and moved by; none of it, where float64 does not hold the row."""
    shift, squares, factor, constant, gradients, products = (
        peek(room + k, None, WIDE64)
        for room in (rooms.shifts, rooms.squares, rooms.factors, rooms.constants, more.gradients, more.products)
    )
    along = fma(products, factor, gradients * constant)
    count = number(task.features)
    middle = where(task.rule == LAYER, gradients / count, 0.0)
    for is_scale in cases(task.rule == SCALE):
        short = squares < task.eps * task.eps if is_scale else False
        across = where(short, 0.0, along) if is_scale else along / count
        poke(more.middles + k, WIDE64, 0.0 - middle * factor)
        poke(more.alongs + k, WIDE64, 0.0 - across * factor)
    if size_of(tag) < 8:
        return
    safe = cell(_is_near_one(squares) & _is_near_one(factor))
    for _ in when(squares == 0.0):
        flat = cell(True)
        for start, length in chunks_of(task, tag):
            a = gather(task, tag, X, place(task, tag, X, row), start, length, rooms.x)
            flat[...] = flat & is_flat_chunk(tag, a, None, length, shift)
        safe[...] = flat
    for _ in when(where(safe, False, True)):
        for room in (rooms.factors, rooms.constants, more.middles, more.alongs):
            poke(room + k, WIDE64, 0.0)
        count = integer(unsafe) + 1
        store_integer(unsafe, count)
        store_integer(unsafe + 8 * count, row)


def _is_near_one(value: Number) -> bool:
    size = magnitude(value)
    return (size > _LEAST) & (size < _MOST)


def _apply_elements(
    task: Task, tag: Tag, rooms: Rooms, more: _More, sums: int, rows: int, column: int, i: int, lanes: int,
    centred: bool, has_weight: bool, has_bias: bool,
) -> None:  # fmt: skip
    """Write dx of the i-th elements of a chunk, in each row of a group, and add to the sums of their column."""
    offset = i * size_of(tag)
    weight = load(task.weight + column * 8, None, WIDE64, WIDE64, lanes)
    dweight, dbias = sums + column * 8, sums + (task.features + column) * 8
    shares = cell(load(dweight, None, WIDE64, WIDE64, lanes)) if has_weight else None
    gradients = cell(load(dbias, None, WIDE64, WIDE64, lanes)) if has_bias else None
    for row in loop(0, rows * 8, 8):

        def of_row(room: int, row: int = row) -> Lanes:
            return splat(peek(room + row, None, WIDE64), WIDE64, lanes)

        def elements(at: int, row: int = row) -> Lanes:
            return load(integer(at + row) + offset, None, tag, WIDE64, lanes)

        x, dy, factor = elements(more.x), elements(more.dy), of_row(rooms.factors)
        x_hat = fma(x - of_row(rooms.shifts), factor, of_row(rooms.constants)) if centred else x * factor
        if has_weight:
            shares[...] = fma(dy, x_hat, shares)
        if has_bias:
            gradients[...] = gradients + dy
        along = of_row(more.alongs)
        rest = fma(x_hat, along, of_row(more.middles)) if centred else x_hat * along
        dx = fma(dy * weight, factor, rest)
        if task.added is not None:
            dx = dx + elements(more.dtotal)
        store(integer(more.dx + row) + offset, tag, dx)
    for address, value in ((dweight, shares), (dbias, gradients)):
        if value is not None:
            store(address, WIDE64, value)


def _apply_chunk(
    task: Task, tag: Tag, rooms: Rooms, more: _More, sums: int, rows: int, start: int, count: int
) -> None:
    """Step 3: a chunk of each row of a group."""
    whole = count - count % _LANES
    for centred in cases(task.rule == LAYER):
        for has_weight in cases(sums != 0):
            # Who wants the bias's gradient alone gets that of the weight with it.
            for biased in (has_weight,) if centred else cases(task.bias != 0) if has_weight else (False,):
                for lanes, first, last in ((_LANES, 0, whole), (1, whole, count)):
                    for i in loop(first, last, lanes):
                        _apply_elements(
                            task, tag, rooms, more, sums, rows, start + i, i, lanes, centred, has_weight, biased
                        )


def _pull_group(
    task: Task, tag: Tag, rooms: Rooms, more: _More, sums: int, unsafe: int, first: int, rows: int
) -> None:
    """The derivative at up to GROUP rows; at one, where its elements are gathered."""
    for k in loop(0, rows, 1):
        _reduce_row(task, tag, rooms, more, first + k, 8 * k)
    finish_group(task, tag, WIDE64, rooms, rows)
    for k in loop(0, rows, 1):
        _finish_row(task, tag, rooms, more, unsafe, first + k, 8 * k)
    step = where(is_gathered(task, tag), CHUNK, task.features)
    for start, count in chunks_of(task, tag, step):
        for k in loop(0, rows, 1):
            x, dy, dx, dtotal = (place(task, tag, which, first + k) for which in (X, OTHER, Y, ADDED))
            a, b = _gathered(task, tag, rooms, x, dy, start, count)
            c = gather(task, tag, ADDED, dtotal, start, count, rooms.added)
            for room, address in (
                (more.x, a), (more.dy, b), (more.dx, target(task, tag, dx, start, rooms.y)), (more.dtotal, c)
            ):  # fmt: skip
                if address is not None:
                    store_integer(room + 8 * k, address)
        _apply_chunk(task, tag, rooms, more, sums, rows, start, count)
        scatter(task, tag, Y, place(task, tag, Y, first), start, count, rooms.y)


def _prepare(task: Task, weights: int) -> None:
    """weight + weight_offset for each feature, 1 where there is none, and the scale of scale_norm."""
    for given in cases(task.weight != 0):
        if given:
            # -0.0 leaves a weight of -0.0 as it is.
            offset = where(task.weight_offset == 0.0, -0.0, task.weight_offset)
            widen_chunk(task.weight_code, WIDE64, task.weight, task.features, offset, weights)
        else:
            for i in loop(0, task.features, 1):
                poke(weights + i * 8, WIDE64, task.scale)


def _add_up(task: Task, sums: int, blocks: int, dweight: int, dweight_code: int, dbias: int, dbias_code: int) -> None:
    """The sums of all blocks, one after the other, as gradients of the parameters."""
    nbytes = task.features * 16
    for block in loop(1, blocks, 1):
        for i in loop(0, nbytes, 8):
            poke(sums + i, WIDE64, peek(sums + i, None, WIDE64) + peek(sums + block * nbytes + i, None, WIDE64))
    for is_scale in cases(task.rule == SCALE):
        count = task.features
        if is_scale:
            whole = cell(0.0)
            for i in loop(0, count * 8, 8):
                whole[...] = whole + peek(sums + i, None, WIDE64)
            poke(sums, WIDE64, whole)
            count = 1
        for _ in when(dweight != 0):
            narrow_chunk(dweight_code, sums, count, dweight)
    for _ in when(dbias != 0):
        narrow_chunk(dbias_code, sums + task.features * 8, task.features, dbias)


@traced
def _pull(
    tag: Tag, first: int, last: int, rule: int, eps: Number, scale: Number, features: int,
    x: int, dy: int, dx: int, dtotal: Address, layout: Address, rows: int, block: int,
    weight: int, weight_code: int, weight_offset: Number, dweight: int, dweight_code: int, dbias: int, dbias_code: int,
    work: int, room: int, more: int,
) -> int:  # fmt: skip
    task = Task(
        rule, eps, scale, features, x, dy, dx, dtotal, layout, weight, weight_code, dbias, 0, weight_offset,
        True, False, False,
    )  # fmt: skip
    blocks = (rows + block - 1) // block
    has_sums = (dweight != 0) | (dbias != 0)
    sums = work + features * 8
    refusals = sums + where(has_sums, blocks * features * 16, 0)
    for _ in when(first < 0):
        _prepare(task, work)
    # What `finish` divides by is the norm alone; the scale is a weight.
    task = task._replace(weight=work, scale=number(features) / number(features))
    for unit in loop(larger(first, 0), smaller(last, blocks), 1):
        of_unit = where(has_sums, sums + unit * features * 16, 0)
        _pull_block(task, tag, furnish(room), _More.at(more), of_unit, refusals, unit, rows, block)
    for _ in when((last > blocks) & has_sums):
        _add_up(task, sums, blocks, dweight, dweight_code, dbias, dbias_code)
    return last


def _pull_block(
    task: Task, tag: Tag, rooms: Rooms, more: _More, sums: int, refusals: int, unit: int, rows: int, block: int
) -> None:
    """The derivative at the rows of a block, and its sums."""
    for i in loop(0, where(sums == 0, 0, task.features * 16), 8):
        poke(sums + i, WIDE64, 0.0)
    refused = refusals + unit * (block + 1) * 8
    if size_of(tag) == 8:
        store_integer(refused, 0)
    at_once = larger(1, smaller(GROUP, _MOST_NBYTES // (2 * task.features * size_of(tag))))
    at_once = where(is_gathered(task, tag), 1, at_once)
    end = smaller(rows, (unit + 1) * block)
    for start in loop(unit * block, end, at_once):
        _pull_group(task, tag, rooms, more, sums, refused, start, smaller(at_once, end - start))


@kernel
def pull_rows(
    tag, wide, first, last, rule, eps, scale, features, x, dy, dx, dtotal, layout, rows, block,
    weight, weight_code, weight_offset, dweight, dweight_code, dbias, dbias_code, work,
):  # fmt: skip
    """Find the derivative at blocks of rows, first to last; return the last.

    Block -1 is the widening of the weight, which comes before all others, and the one behind all rows the adding up of
    the gradients by the parameters, which comes last. Gradients that are not wanted are at 0. In ``work`` there is room
    for float64 numbers: the weights; for each block, where a parameter's gradient is wanted, the sums of dy * x_hat and
    of dy for each feature; and where x is float64, for each block how many rows are left to the definition, and which.
    """
    return _pull(
        tag, first, last, rule, eps, scale, features, x, dy, dx, dtotal, layout, rows, block, weight, weight_code,
        weight_offset, dweight, dweight_code, dbias, dbias_code, work, buffer(ROOMS_NBYTES), buffer(_MORE_NBYTES),
    )  # fmt: skip
