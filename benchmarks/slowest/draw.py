"""A random case: what is called, and what the array is like. It can be had again: random numbers are its own."""

import math
from typing import NamedTuple

import numpy as np

from anynorm._bench.cases import EPS, NBYTES

MOST_ELEMENTS = 1 << 22
DTYPES = ("float16", "float32", "float64")
WHAT = ("y", "y", "out", "in place", "add", "vjp", "vjp", "moments", "given")
WHAT_OF_TENSORS = ("y", "dx")
ORDERS = ("C", "C", "C", "Fortran", "swapped", "every second", "reversed", "offset", "padded", "power of two")
# The size of numbers, by dtype; besides them there are numbers whose mean is large, and a few large rows among others.
SIZES = {
    "float16": (1e-6, 3e2),
    "bfloat16": (1e-40, 1e-30, 1e30),
    "float32": (1e-40, 1e-30, 1e30),
    "float64": (1e-310, 1e-200, 1e-30, 1e30, 1e60, 1e200),
}
ORDINARY = 0.6  # of the cases


class Case(NamedTuple):
    """One call, and the array that it is of.

    ``what`` is "y"; "out" or "in place", which write to a given array; "add", which adds a residual; "vjp", the result
    and its pullback; "moments", with their mean and variance; "given", with such moments; "dx", of tensors, forward and
    backward.
    """

    what: str
    norm: str
    dtype: str
    shape: tuple[int, ...]
    axes: tuple[int, ...]
    order: str  # how the array lies in memory
    size: float | str  # of the numbers; "mean" where that is large, "mixed" where some rows are large
    weight: bool
    bias: bool
    eps: float

    @property
    def features(self) -> int:
        return math.prod(self.shape[axis] for axis in self.axes)

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * NBYTES[self.dtype]

    def __str__(self) -> str:
        axes = self.axes[0] if len(self.axes) == 1 else self.axes
        parts = [self.what, self.norm, self.dtype, "x".join(map(str, self.shape)), f"axis {axes}", self.order]
        parts += [] if self.size == 1.0 else [str(self.size)]
        parts += ["weight"] * self.weight + ["bias"] * self.bias + ["eps 0"] * (self.eps == 0)
        return ", ".join(parts)


def draw(seed: int, number: int, tensors: bool = False, most_elements: int = MOST_ELEMENTS) -> Case:
    """The case of a number; each is the same whatever else is drawn."""
    random = np.random.default_rng((seed, number, tensors))
    dtypes = ("bfloat16", *DTYPES) if tensors else DTYPES
    what, norm, dtype = (str(random.choice(of)) for of in (WHAT_OF_TENSORS if tensors else WHAT, list(EPS), dtypes))
    if what == "add" and norm == "scale_norm":
        norm = "rms_norm"
    shape, axes = shape_and_axes(random, most_elements)
    orders = [order for order in ORDERS if not (tensors and order == "reversed")]  # torch has no such strides
    sizes: list[float | str] = ["mean", "mixed", *SIZES[dtype]]
    is_ordinary = random.random() < ORDINARY or what == "in place"  # what was normalized once is ordinary ever after
    size = 1.0 if is_ordinary else sizes[random.integers(len(sizes))]
    if what == "moments":
        norm = "layer_norm"
    has_parameters = norm != "scale_norm" and what != "moments" and random.random() < 0.6
    has_bias = has_parameters and norm == "layer_norm" and random.random() < 0.8
    eps = 0.0 if random.random() < 0.1 else EPS[norm]
    return Case(what, norm, dtype, shape, axes, str(random.choice(orders)), size, has_parameters, has_bias, eps)


def shape_and_axes(random: np.random.Generator, most_elements: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Features and rows are log-uniform each, and each is cut into a few axes."""
    elements = math.exp(random.uniform(0, math.log(most_elements)))
    features = max(1, round(math.exp(random.uniform(0, math.log(elements)))))
    rows = max(1, int(elements / features))
    if random.random() < 0.3:  # whose strides are powers of two
        features, rows = (1 << (number.bit_length() - 1) for number in (features, rows))
    if random.random() < 0.05:
        rows = 1
    normalized = cut(random, features, 1 + int(random.random() < 0.3))
    free = cut(random, rows, int(random.integers(0 if rows == 1 else 1, 3)))
    which = [True] * len(normalized) + [False] * len(free)
    if random.random() < 0.5:
        random.shuffle(which)
    else:
        which.reverse()  # the last axes are normalized
    shape = tuple((normalized if one else free).pop() for one in which)
    return shape, tuple(axis for axis, one in enumerate(which) if one)


def cut(random: np.random.Generator, length: int, parts: int) -> list[int]:
    """Lengths whose product is about as large."""
    found = []
    for _ in range(parts - 1):
        found.append(max(1, round(math.exp(random.uniform(0, math.log(length))))))
        length = max(1, length // found[-1])
    return [*found, length] if parts else []
