"""Moments of Dask arrays: a task for each block, and all arrays of moments computed at once."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from functools import partial
from operator import attrgetter
from typing import Any

from anynorm._definition.norms import Statistics
from anynorm._lengths import chunks_like
from anynorm._libraries import library_of
from anynorm._moments.parts import LEAVES, leaves_of, mapped, of_leaves, one_count
from anynorm._tasks import each_block

Array = Any


def each(function: Callable[..., Any], prefix: str, *several: Statistics, meta: Array) -> Array:
    """A Dask array whose blocks are function(namespace, *statistics), whatever its meta says."""
    arrays, present = [], []
    chunks = several[0].squares.chunks
    for found in several:
        arrays += [part.rechunk(chunks_like(part.chunks, chunks)) for part in leaves_of(found) if part is not None]
        present.append((one_count(found), tuple(part is not None for part in leaves_of(found))))
    return each_block(partial(_on_block, function, tuple(present)), prefix, *arrays, chunks=chunks, meta=meta)


def statistics(function: Callable[..., Statistics], prefix: str, *several: Statistics) -> Statistics:
    """The statistics function(namespace, *statistics) of Dask arrays, in one task for each block."""
    metas = [mapped(attrgetter("_meta"), found) for found in several]
    there = function(library_of(metas[0].squares).namespace, *metas)
    made = each(function, prefix, *several, meta=metas[0].squares)

    def part(name: str, meta: Array | None) -> Array | None:
        get, chunks = attrgetter(name), made.chunks
        return None if meta is None else each_block(get, f"{prefix}-{name}", made, chunks=chunks, meta=meta)

    return of_leaves(one_count(there), tuple(part(*pair) for pair in zip(LEAVES, leaves_of(there), strict=True)))


def _on_block(
    function: Callable[..., Any], present: tuple[tuple[int | None, tuple[bool, ...]], ...], *arrays: Array
) -> Any:
    """Call a function with the statistics of one block, whose arrays are given one by one."""
    rest = iter(arrays)
    several = [
        of_leaves(count, tuple(next(rest) if is_there else None for is_there in there)) for count, there in present
    ]
    return function(library_of(arrays[0]).namespace, *several)


def computed(found: Statistics) -> Statistics:
    """Statistics of the arrays that the blocks are; computed together, so that the data is read once."""
    dask: Any = importlib.import_module("dask")
    return of_leaves(one_count(found), dask.compute(*leaves_of(found)))
