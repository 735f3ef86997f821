"""Dask arrays of which each block is a task of its own."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import numpy

Array = Any


def each_block(
    function: Callable[..., Any], prefix: str, *arrays: Array, chunks: tuple[tuple[int, ...], ...], meta: Array
) -> Array:
    """A Dask array whose blocks are what a function makes of those that other arrays have in the same place.

    Where a task needs one other alone, Dask makes one of both, unless something else needs that too, and gives either
    the same key; a cluster that has both then warns of a deadlock (github.com/dask/dask/issues/9888). So that a key
    always means the same task, each of these needs another one as well, which holds the function.
    """
    from dask.array import Array
    from dask.base import tokenize
    from dask.highlevelgraph import HighLevelGraph

    token = tokenize(function, [array.name for array in arrays], chunks, meta)
    name, told = f"{prefix}-{token}", f"{prefix}-function-{token}"
    tasks: dict[Any, Any] = {told: function}
    for block in itertools.product(*map(range, arrays[0].numblocks)):
        tasks[name, *block] = (quietly_call, told, *[(array.name, *block) for array in arrays])
    graph = HighLevelGraph.from_collections(name, tasks, dependencies=arrays)
    return Array(graph, name, chunks, meta=meta)


def quietly_call(function: Callable[..., Any], *blocks: Array, **options: Any) -> Any:
    """Call a function; NumPy says nothing of NaN, Inf and overflow, which are results here."""
    with numpy.errstate(all="ignore"):
        return function(*blocks, **options)
