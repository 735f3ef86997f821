"""Moments of rows: what step 1 of the definition makes, step 2 uses, and a caller may merge, keep and carry."""

from anynorm._moments.inside import arrays_of, finished_of, of_arrays, statistics_of, suited
from anynorm._moments.moved import digits_of
from anynorm._moments.parts import LEAVES, PARTS, mapped, quietly
from anynorm._moments.value import Moments, may_keep

__all__ = [
    "LEAVES",
    "PARTS",
    "Moments",
    "arrays_of",
    "digits_of",
    "finished_of",
    "mapped",
    "may_keep",
    "of_arrays",
    "quietly",
    "statistics_of",
    "suited",
]
