"""What stays the same when a call is made again, as numbers in memory that `again` is given the address of.

They are written once, before any thread reads them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy

# What `again` returns, unless it is which row the kernel stopped at, or -1 for all of them. Nothing is written then:
OVERLAP = -2  # y shares memory with another array and is not x
MISFIT = -3  # an array is not of the kind that the recipe is for
DONE = -4

# Where in a recipe there is what, in bytes.
KERNEL = 0  # its address
TAG = 8
RULE = 16
EPS = 24
SCALE = 32
FEATURES = 40
WEIGHT_CODE = 48
BIAS_CODE = 56
WEIGHT_OFFSET = 64
DIRECT = 72
ITEMSIZE = 80  # of x
# In bytes:
WEIGHT_SIZE = 88
BIAS_SIZE = 96
# The addresses of NumPy's dtypes, 0 where there is no such array:
X = 104
WEIGHT = 112
BIAS = 120


class RecipeNumbers(NamedTuple):
    """The numbers of a recipe, in the order above."""

    kernel: int
    tag: int
    rule: int
    eps: float
    scale: float
    features: int
    weight_code: int
    bias_code: int
    weight_offset: float
    direct: bool


class Recipe(NamedTuple):
    """How to make a call again."""

    again: Callable[..., int]
    address: int  # of the numbers
    most_elements: int  # that one thread is to deal with
    resume: Callable[..., None]  # what to do where the kernel stops before the last row
    call: Any  # the Call it came from, without arrays
    held: tuple[Any, ...]  # what there are addresses of


def write(numbers: RecipeNumbers, dtypes: list[Any]) -> numpy.ndarray:
    """Lay out a recipe; the dtypes are those of x, weight and bias, None where there is no such NumPy array."""
    itemsizes = [0 if dtype is None else dtype.itemsize for dtype in dtypes]
    sizes = (itemsizes[0], itemsizes[1] * numbers.features, itemsizes[2] * numbers.features)
    places = [0 if dtype is None else id(dtype) for dtype in dtypes]
    everything = (*numbers, *sizes, *places)
    integers = numpy.zeros(len(everything), numpy.int64)
    floats = integers.view(numpy.float64)
    for i, number in enumerate(everything):
        (floats if 8 * i in (EPS, SCALE, WEIGHT_OFFSET) else integers)[i] = number
    return integers
