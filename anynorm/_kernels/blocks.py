"""Dask arrays: a task for each block, which runs the kernel for whatever the block is an array of.

Where the normalized axes are cut, a task for each block takes its moments, a tree of tasks merges those of the blocks
of a row, and another for each block applies them. Nothing is cut or joined anew, and no task has more than one block.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy

from anynorm._check import Call, Gradient, check
from anynorm._definition.norms import Rule
from anynorm._libraries import library_of, library_of_blocks
from anynorm._moments import PARTS, Moments, arrays_of, known, of_arrays, quietly
from anynorm._threads import alone

Array = Any
RunBlock = Callable[[Call], Any]  # what runs the call on one block


class _Block(NamedTuple):
    """What a task is told beside the arrays that it is given."""

    rule: Rule
    axes: tuple[int, ...]
    eps: float
    weight_offset: float
    scale: float | None  # of scale_norm, where that is a number
    moments_count: int  # of those that were given, whose arrays are among the names; or 0
    names: tuple[str, ...]  # of the arrays behind x
    run: RunBlock


def refuses(call: Call) -> str | None:
    """Why these rows cannot be normalized block by block, each on its own; None: they can."""
    reason = refuses_pieces(call)
    if reason is not None or call.moments is not None:
        return reason
    cut = [axis for axis in call.axes if call.x.numblocks[axis] > 1]
    return f"axis {cut[0]}, which is normalized, is cut into {call.x.numblocks[cut[0]]} chunks" if cut else None


def refuses_pieces(call: Call) -> str | None:
    """Why these rows cannot be normalized from pieces; None: they can."""
    if call.library.name != "dask":
        return f"it takes Dask arrays, and x is an array of {call.library.name}"
    return None


def refuses_to_pull(gradient: Gradient) -> str | None:
    """Derivatives are refused."""
    return refuses_pieces(gradient.call) or "the derivative of a Dask array goes through the definition"


def run(call: Call, run_block: RunBlock, reduce_block: RunBlock | None = None) -> Any:
    """Return y, or (y, total) where the call has a residual; with ``reduce_block``, of rows that may be cut."""
    total = None
    if call.residual is not None:
        total = call.x + _in_chunks(call.residual, call.x.chunks)
        call = call._replace(x=total, residual=None)
    merged = None
    if call.moments is None and reduce_block is not None:
        merged = _merged(call, reduce_block)
    y = _apply(call, merged, run_block)
    return y if total is None else (y, total)


def run_moments(call: Call, reduce_block: RunBlock) -> Moments:
    """Return the moments of the call's array, as Dask arrays."""
    xp, x, merged = call.library.namespace, call.x, _merged(call, reduce_block)
    blocks = library_of_blocks(x)
    precision = blocks.precision(x._meta)
    meta = blocks.namespace.astype(x._meta, precision.dtype)
    index = tuple(range(x.ndim))
    parts = [
        xp.blockwise(_part_of, index, merged, index, part=part, token=f"moments-{part}", meta=meta, align_arrays=False)
        if precision.digits or part in ("mean", "mean_low", "squares")
        else None
        for part in PARTS
    ]
    return of_arrays(math.prod(x.shape[axis] for axis in call.axes), parts, xp)


def _merged(call: Call, reduce_block: RunBlock) -> Array:
    """The moments of whole rows: a Dask array of which each block is Moments, whatever its meta says."""
    xp, x, index = call.library.namespace, call.x, tuple(range(call.x.ndim))
    block = _Block(call.rule, call.axes, 0.0, 0.0, None, 0, (), reduce_block)
    pieces = xp.blockwise(
        _on_block, index, x, index, block=block, adjust_chunks=dict.fromkeys(call.axes, 1),
        token=f"{call.rule.name}-moments", meta=x._meta, align_arrays=False,
    )  # fmt: skip
    return xp.reduction(
        pieces, _as_it_is, _merge, combine=_merge, axis=call.axes, keepdims=True, concatenate=False,
        dtype=x.dtype, meta=x._meta, name=f"{call.rule.name}-moments",
    )  # fmt: skip


def _apply(call: Call, merged: Array | None, run_block: RunBlock) -> Array:
    """A task for each block, with the parameters that belong to it."""
    xp, x, index = call.library.namespace, call.x, tuple(range(call.x.ndim))
    given: dict[str, tuple[Array, tuple[int, ...]]] = {}
    weight: Any = call.weight
    scale = weight if isinstance(weight, float) else None
    for name, parameter in (("weight", None if scale is not None else weight), ("bias", call.bias)):
        if parameter is not None:
            axes = call.axes if parameter.ndim else ()
            given[name] = _in_chunks(parameter, tuple(x.chunks[axis] for axis in axes)), axes
    count = 0
    if merged is not None:
        given["moments"] = merged, index
    elif call.moments is not None:
        count = call.moments.count
        chunks = tuple((1,) if axis in call.axes else x.chunks[axis] for axis in index)
        for name, part in zip(PARTS, arrays_of(call.moments), strict=True):
            if part is not None:
                given[name] = _in_chunks(part, chunks), index
    block = _Block(call.rule, call.axes, call.eps, call.weight_offset, scale, count, tuple(given), run_block)
    arguments = (one for pair in given.values() for one in pair)
    return xp.blockwise(
        _on_block, index, x, index, *arguments, block=block, token=call.rule.name, meta=x._meta, align_arrays=False
    )


def _in_chunks(array: Array, chunks: tuple[Any, ...]) -> Array:
    """An array cut like x; where the lengths of chunks are not known they are taken to be the same."""
    lengths = [length for along in (*array.chunks, *chunks) for length in along]
    return array.rechunk(chunks) if all(map(known, lengths)) else array


def _on_block(x: Array, *arrays: Any, block: _Block) -> Any:
    """What a task does: the call on one block, in no more than the thread that Dask runs it in."""
    given = dict(zip(block.names, arrays, strict=True))
    weight, moments = given.get("weight", block.scale), given.get("moments")
    if isinstance(weight, numpy.generic):  # as NumPy makes one of an array without axes
        weight = numpy.asarray(weight)
    if block.moments_count:
        moments = of_arrays(block.moments_count, [given.get(name) for name in PARTS], library_of(x).namespace)
    with alone():
        return block.run(
            check(
                block.rule, x, weight, given.get("bias"), block.axes, block.eps,
                weight_offset=block.weight_offset, moments=moments,
            )
        )  # fmt: skip


def _as_it_is(moments: Moments, axis: tuple[int, ...], keepdims: bool) -> Moments:
    return moments


def _merge(pieces: Any, axis: tuple[int, ...], keepdims: bool) -> Moments:
    """The moments of all pieces, which Dask hands on in lists, one within the other for each axis."""
    for _ in axis[1:]:
        pieces = [piece for inner in pieces for piece in inner]
    merged: Moments = functools.reduce(Moments.merge, pieces)
    return merged


def _part_of(moments: Moments, part: str) -> Array:
    """One of the arrays that moments are made of; zeros where it is not there."""
    array = dict(zip(PARTS, arrays_of(moments), strict=True))
    with quietly(moments.namespace):
        return array["squares"] * 0.0 if array[part] is None else array[part]
