"""Whether moments have the same values."""

from __future__ import annotations

import numpy

from anynorm._definition.counting import by_row
from anynorm._definition.norms import Statistics
from anynorm._libraries import library_of
from anynorm._moments.moved import digits_of, on_host
from anynorm._moments.parts import Held, is_lazy, leaves_of
from anynorm._wording import sentence


def equal(a: Held, b: Held) -> bool:
    """Whether two are of one library, width and shape, and have the same values; what one lacks is 0."""
    (xp, mine), (other, theirs) = a, b
    if xp is not other or library_of(mine.squares) is not library_of(theirs.squares):
        return False
    if tuple(mine.squares.shape) != tuple(theirs.squares.shape) or digits_of(xp, mine) != digits_of(xp, theirs):
        return False
    if is_lazy(xp):
        return _have_same_tasks(mine, theirs)
    mine, theirs = on_host(xp, mine), on_host(xp, theirs)
    if by_row(mine.elements) != by_row(theirs.elements) or not numpy.all(mine.elements == theirs.elements):
        return False
    zeros = numpy.zeros_like(mine.squares)
    parts = ([zeros if one is None else one for one in found[1:-1]] for found in (mine, theirs))
    return all(numpy.array_equal(one, other, equal_nan=True) for one, other in zip(*parts, strict=True))


def _have_same_tasks(mine: Statistics, theirs: Statistics) -> bool:
    """Whether Dask's keys are the same; others may have the same values, which are not known."""
    names = [[None if one is None else one.name for one in leaves_of(found)] for found in (mine, theirs)]
    if names[0] == names[1] and (by_row(mine.elements) or mine.elements == theirs.elements):
        return True
    do = "compare a.compute() == b.compute()"
    raise TypeError(sentence("moments", "have values to be compared", "lazy ones that come from other tasks", do))
