"""Dask arrays with one task for each block."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import numpy

Array = Any


def each_block(
    function: Callable[..., Any], prefix: str, *arrays: Array, chunks: tuple[tuple[int, ...], ...], meta: Array
) -> Array:
    """A Dask array whose blocks are function(*blocks), of the blocks that the arrays have in the same place.

    Dask fuses a task that depends on a single other one with that, unless something else depends on it too, and the
    fused task has the key of the plain one. A cluster that gets both under one key warns of a deadlock
    (github.com/dask/dask/issues/9888). Here each task depends on a second one, which holds the function, so that none
    is fused and a key always means the same task.
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
    """Call a function without NumPy's warnings: NaN, Inf and overflow are results here."""
    with numpy.errstate(all="ignore"):
        return function(*blocks, **options)
