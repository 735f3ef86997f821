"""One call, as the CPU kernels pass it on among themselves."""

from __future__ import annotations

from typing import NamedTuple


class Task(NamedTuple):
    """Addresses and numbers; an address is None or 0 where there is nothing."""

    rule: int
    eps: float
    scale: float  # of scale_norm
    features: int
    x: int
    other: int | None  # the residual
    y: int
    added: int | None  # where x + residual goes
    layout: int | None  # of the arrays, see layout.py
    weight: int
    weight_code: int
    bias: int
    bias_code: int
    weight_offset: float
    widened: bool  # parameters are widened into rooms beforehand
    direct: bool  # they are of x's dtype, and widened where they are used
    streaming: bool  # past the caches
    fetching: bool = True  # what will be read next, while something is written


class Rooms(NamedTuple):
    """Addresses of the memory that a kernel works in."""

    x: int  # a chunk of a row whose elements are scattered; likewise:
    other: int
    y: int
    added: int
    weights: int  # a chunk of weight + weight_offset in the wide dtype
    biases: int
    lows: int  # what rounding weight + weight_offset to float64 left behind
    # Float64 numbers for each row of a group:
    shifts: int
    sums: int  # of deviations from the shift
    squares: int  # of deviations from the shift
    factors: int
    constants: int
    mean: int  # one number
    carry: int  # see sweep.py
