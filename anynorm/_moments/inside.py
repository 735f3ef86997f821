"""What the rest of the package sees of moments, and a caller does not: their arrays, and what kernels keep of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from anynorm._definition.norms import Statistics
from anynorm._libraries import Library
from anynorm._moments import joined
from anynorm._moments.value import Moments

Array = Any


def arrays_of(moments: Moments) -> tuple[Any, ...]:
    """The arrays that moments are made of, in the order of PARTS."""
    return tuple(moments._statistics[1:-1])


def of_arrays(count: Any, arrays: Sequence[Any], xp: Any) -> Moments:
    """Moments made of such arrays."""
    return Moments(Statistics(count, *arrays), xp)


def finished_of(moments: Moments | None) -> dict[Any, Any] | None:
    """What kernels keep of moments that they were given: what is applied to each row, by rule, eps and scale.

    None where others may hold the arrays, and so change them, and where there are no moments.
    """
    return None if moments is None else moments._finished


def statistics_of(moments: Moments) -> Statistics:
    """The statistics that the definition computes with."""
    return moments._statistics


def suited(moments: Moments, library: Library, x: Array, digits: int) -> Moments:
    """The same moments for an array: NumPy's go with one of any library, those of float64 data with narrower ones."""
    held = moments._xp, moments._statistics
    xp, found = joined.suited(held, library, x, digits)
    if found is moments._statistics:
        return moments
    others = Moments(found, xp)
    others._finished = moments._finished  # which are told apart by the dtype of x
    return others
