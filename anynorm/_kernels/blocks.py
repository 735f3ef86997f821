"""Dask arrays: a task for each block, which runs the kernel for whatever the block is an array of.

Where a normalized axis is cut, one task for each block forms its moments, a tree of tasks merges the moments of the
blocks of a row, and another task for each block applies them. No block is cut or joined, and no task holds more than
one. Derivatives go the same ways: blocks_vjp.py for whole rows, pieces_vjp.py for rows that are cut.
"""

from __future__ import annotations

import functools
import math
import operator
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy

from anynorm._check import Call, check
from anynorm._definition.counting import dtype_of_counts
from anynorm._definition.norms import Rule
from anynorm._lengths import chunks_like
from anynorm._libraries import library_of, library_of_blocks
from anynorm._moments import LEAVES, PARTS, Moments, of_arrays, quietly, statistics_of
from anynorm._parameters import axes_of
from anynorm._tasks import each_block, quietly_call
from anynorm._threads import alone
from anynorm._totals import dtype_of_total, is_mixed

Array = Any
RunBlock = Callable[[Call], Any]  # what runs the call on one block


class Block(NamedTuple):
    """What a task needs beside its arrays."""

    rule: Rule
    axes: tuple[int, ...]
    eps: float
    weight_offset: float
    scale: float | None  # of scale_norm, where that is a number
    # Of given moments, whose arrays are among the names; None where it is one of these arrays; 0 where none are given.
    moments_count: int | None
    names: tuple[str, ...]  # of the task's arrays, in their order
    run: Callable[..., Any]


def refuses(call: Call) -> str | None:
    """Why these rows cannot be normalized block by block, each on its own; None: they can."""
    reason = refuses_pieces(call)
    return _refuses_cut_rows(call) if reason is None and call.moments is None else reason


def refuses_pieces(call: Call) -> str | None:
    """Why these rows cannot be normalized from pieces; None: they can."""
    if call.library.name != "dask":
        return f"it takes Dask arrays, and x is an array of {call.library.name}"
    return None


def _refuses_cut_rows(call: Call) -> str | None:
    cut = [axis for axis in call.axes if call.x.numblocks[axis] > 1]
    return f"axis {cut[0]}, which is normalized, is cut into {call.x.numblocks[cut[0]]} chunks" if cut else None


def run(call: Call, run_block: RunBlock, reduce_block: RunBlock | None = None) -> Any:
    """Return y, or (y, total) where the call has a residual; with ``reduce_block``, of rows that may be cut."""
    total, dtype = None, call.x.dtype
    if call.residual is not None:
        total = _add(call, in_chunks(call.residual, call.x.chunks))
        call = call._replace(x=total, residual=None)
    merged = None
    has_rows = 0 not in [call.x.shape[axis] for axis in call.axes]  # else there are no moments to apply
    if call.moments is None and reduce_block is not None and has_rows:
        merged = merged_moments(call, reduce_block)
    y = _apply(call, merged, run_block)
    if y.dtype != dtype:  # that of the sum
        narrow, meta = functools.partial(as_dtype, dtype=dtype), as_dtype(y._meta, dtype)
        y = each_block(narrow, f"{call.rule.name}-of-sum", y, chunks=y.chunks, meta=meta)
    return y if total is None else (y, total)


def run_moments(call: Call, reduce_block: RunBlock) -> Moments:
    """Return the moments of the call's array, as Dask arrays."""
    x, merged = call.x, merged_moments(call, reduce_block)
    blocks = library_of_blocks(x)
    precision = blocks.precision(x._meta)
    xp = blocks.namespace

    def part(name: str, dtype: Any) -> Array:
        get, meta = functools.partial(_part_of, part=name), xp.astype(x._meta, dtype)
        return each_block(get, f"moments-{name}", merged, chunks=merged.chunks, meta=meta)

    names = PARTS if precision.digits else ("mean", "mean_low", "squares")
    parts = [part(name, precision.dtype) if name in names else None for name in PARTS]
    count: Any = math.prod(x.shape[axis] for axis in call.axes)
    if call.skip_nan:
        count = part("elements", dtype_of_counts(xp))
    return of_arrays(count, parts, call.library.namespace)


def merged_moments(call: Call, reduce_block: RunBlock) -> Array:
    """The moments of whole rows: a Dask array of which each block is Moments, whatever its meta says."""
    x, name = call.x, f"{call.rule.name}-moments"
    run = functools.partial(_skipping, run=reduce_block) if call.skip_nan else reduce_block
    block = Block(call.rule, call.axes, 0.0, 0.0, None, 0, ("x",), run)
    chunks = tuple((1,) * len(along) if axis in call.axes else along for axis, along in enumerate(x.chunks))
    pieces = each_block(functools.partial(_on_block, block=block), name, x, chunks=chunks, meta=x._meta)
    return merged_over_rows(pieces, call, _merge_moments, name)


def merged_over_rows(pieces: Array, call: Call, merge: Callable[[list[Any]], Any], name: str) -> Array:
    """A tree of tasks that merges whatever the blocks of a row have made."""
    join = functools.partial(_joined, merge=merge)
    return call.library.namespace.reduction(
        pieces, _as_it_is, join, combine=join, axis=call.axes, keepdims=True, concatenate=False,
        dtype=call.x.dtype, meta=call.x._meta, name=name,
    )  # fmt: skip


def _apply(call: Call, merged: Array | None, run_block: RunBlock) -> Array:
    """A task for each block, with the parameters that belong to it."""
    index = tuple(range(call.x.ndim))
    block, arguments = described(call, run_block, {} if merged is None else {"moments": merged})
    return call.library.namespace.blockwise(
        _on_block, index, *arguments, block=block, token=call.rule.name, meta=call.x._meta, align_arrays=False
    )


def described(call: Call, run_block: Callable[..., Any], more: dict[str, Array]) -> tuple[Block, list[Any]]:
    """The Block of a call's tasks, and their arrays as `blockwise` takes them, ``more`` of them by name."""
    x, index = call.x, tuple(range(call.x.ndim))
    given = {"x": (x, index)} | {name: (array, index) for name, array in more.items()}
    scale = call.weight if isinstance(call.weight, float) else None
    for name, parameter in (("weight", call.weight), ("bias", call.bias)):
        if parameter is not None and not isinstance(parameter, float):
            axes = axes_of(parameter, x.ndim, call.axes)
            # One block of length 1 goes with each block of x.
            lengths = ((1,) if own == 1 else x.chunks[axis] for own, axis in zip(parameter.shape, axes, strict=True))
            given[name] = in_chunks(parameter, tuple(lengths)), axes
    count: int | None = 0
    if call.moments is not None:
        chunks = tuple((1,) if axis in call.axes else x.chunks[axis] for axis in index)
        parts, (count, _) = call.moments.flatten()
        for name, part in zip(LEAVES, parts, strict=True):
            if part is not None:
                given[name] = in_chunks(part, chunks), index
    block = Block(call.rule, call.axes, call.eps, call.weight_offset, scale, count, tuple(given), run_block)
    return block, [one for pair in given.values() for one in pair]


def _add(call: Call, residual: Array) -> Array:
    x, index = call.x, tuple(range(call.x.ndim))
    dtype = dtype_of_total(x, residual, call.library)
    both = x, index, residual, index
    add = functools.partial(_sum, dtype=dtype) if is_mixed(x, residual) else operator.add
    return call.library.namespace.blockwise(
        quietly_call, index, add, None, *both, token="add", meta=as_dtype(x._meta, dtype), align_arrays=False
    )


def _sum(x: Any, residual: Any, dtype: Any) -> Any:
    return as_dtype(x, dtype) + as_dtype(residual, dtype)


def as_dtype(values: Any, dtype: Any) -> Any:
    """A block in another dtype; of NumPy scalars, which Dask makes of 0-d blocks, an array."""
    values = numpy.asarray(values) if isinstance(values, numpy.generic) else values
    with numpy.errstate(all="ignore"):
        return library_of(values).namespace.astype(values, dtype, copy=False)


def in_chunks(array: Array, chunks: tuple[Any, ...]) -> Array:
    """An array in the chunks of x, as far as lengths are known."""
    if array.ndim and not any(array.shape):  # Dask does not rechunk what has no elements
        from dask.array import zeros_like

        return zeros_like(array, chunks=chunks)
    return array.rechunk(chunks_like(array.chunks, chunks))


def _on_block(*arrays: Any, block: Block) -> Any:
    """What a task does: run the call on its block, in the one thread that Dask gives it."""
    with alone(), numpy.errstate(all="ignore"):
        return block.run(call_on_block(block, dict(zip(block.names, arrays, strict=True))))


def call_on_block(block: Block, given: dict[str, Any]) -> Call:
    """The call on one block, with the arrays by name."""
    x, weight, moments = given["x"], given.get("weight", block.scale), given.get("moments")
    if isinstance(weight, numpy.generic):  # Dask makes NumPy scalars of 0-d blocks
        weight = numpy.asarray(weight)
    if block.moments_count != 0:
        arrays = tuple(given.get(name) for name in LEAVES)
        moments = Moments.unflatten((block.moments_count, library_of(given["squares"]).namespace), arrays)
    return check(
        block.rule, x, weight, given.get("bias"), block.axes, block.eps,
        weight_offset=block.weight_offset, moments=moments,
    )  # fmt: skip


def _as_it_is(piece: Any, axis: tuple[int, ...], keepdims: bool) -> Any:
    return piece


def _joined(pieces: Any, axis: tuple[int, ...], keepdims: bool, merge: Callable[[list[Any]], Any]) -> Any:
    """Merge pieces, which Dask hands over as nested lists, one level for each axis."""
    for _ in axis[1:]:
        pieces = [piece for inner in pieces for piece in inner]
    with numpy.errstate(all="ignore"):
        return merge(pieces)


def _skipping(call: Call, run: RunBlock) -> Moments:
    """Moments of a block, in which NaN stands for a missing element."""
    moments: Moments = run(call._replace(skip_nan=True))
    return moments


def _merge_moments(pieces: list[Moments]) -> Moments:
    return functools.reduce(Moments.merge, pieces)


def _part_of(moments: Moments, part: str) -> Array:
    """One of the arrays of moments; zeros where it is None."""
    found = statistics_of(moments)
    array = getattr(found, part)
    with quietly(moments.namespace, found.squares):
        return found.squares * 0.0 if array is None else array
