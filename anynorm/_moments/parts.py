"""What moments are made of: the arrays of `Statistics`, their names, and how they are computed with."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy

from anynorm._definition.counting import by_row
from anynorm._definition.norms import Statistics

Array = Any

# The arrays that statistics are made of, in this order; each but the squares may be None.
PARTS = Statistics._fields[1:-1]
LEAVES = (*PARTS, "elements")  # the last where each row has a count of its own


def leaves_of(found: Statistics) -> tuple[Any, ...]:
    """The arrays of statistics, and the count last where that is one; None for what is not there."""
    return (*found[1:-1], found.elements if by_row(found.elements) else None)


def of_leaves(count: int | None, leaves: tuple[Any, ...]) -> Statistics:
    """Statistics of such arrays, and of the count that all rows have."""
    *parts, counts = leaves
    return Statistics(count if counts is None else counts, *parts)


def one_count(found: Statistics) -> int | None:
    """The count that all rows have; None where each has its own."""
    return None if by_row(found.elements) else found.elements


def mapped(function: Callable[[Array], Array], found: Statistics) -> Statistics:
    """Statistics of which each array is what a function makes of it."""
    return of_leaves(one_count(found), tuple(None if one is None else function(one) for one in leaves_of(found)))


def quietly(xp: Any, like: Array) -> AbstractContextManager[Any]:
    """A block to compute in with arrays such as this one.

    It silences NumPy's warnings, which other libraries compute with too: NaN, Inf and overflow are results here. CuPy
    computes on the device that is current, whichever the arrays are on.
    """
    # torch.compile cannot trace numpy.errstate.
    if xp.__name__ == "array_api_compat.torch":
        return nullcontext()
    if xp.__name__ == "array_api_compat.cupy":
        on_device: AbstractContextManager[Any] = like.device
        return on_device
    return numpy.errstate(all="ignore")


def is_lazy(xp: Any) -> bool:
    """Whether arrays are Dask's, of which each block is computed with."""
    return bool(xp.__name__.endswith("dask.array"))


def name_of(xp: Any) -> str:
    """The name by which a caller has imported a namespace."""
    name: str = xp.__name__
    return name.removeprefix("array_api_compat.")
