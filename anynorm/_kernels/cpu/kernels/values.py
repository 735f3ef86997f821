"""A task as the parts of a kernel pass it on, and the memory that a kernel works in."""

from __future__ import annotations

from typing import NamedTuple

from anynorm._kernels.cpu.kernels.task import Task, Variant
from anynorm._kernels.cpu.language.dtypes import (
    CACHE_LINE_NBYTES,
    CHUNK,
    FLOAT32,
    FLOAT64,
    FOR_ALL,
    GROUP,
    Address,
    Dtype,
)
from anynorm._kernels.cpu.language.memory import buffer, integer, real

# A chunk may have some lanes more than CHUNK elements, and some are read behind it.
_CHUNK_ELEMENTS = CHUNK + 64
# For the cache line in which a row ends and the next one begins, see streaming.py.
_LINE_NBYTES = 7 * CACHE_LINE_NBYTES


class Arrays(NamedTuple):
    """An address in each of the four arrays of a task; None where there is never such an array."""

    x: Address
    residual: Address = None  # or dy
    y: Address = None  # or dx
    total: Address = None  # or dtotal


class Scratch(NamedTuple):
    """Addresses of the memory that a kernel works in."""

    x: int  # a chunk of a row whose elements are scattered; likewise:
    residual: int
    y: int
    total: int
    weights: int  # a chunk of weight + weight_offset in the dtype that is computed in
    biases: int
    lows: int  # what rounding weight + weight_offset to float64 left behind
    # Float64 numbers for each row of a group:
    shifts: int
    sums: int  # of deviations from the shift
    squares: int  # of deviations from the shift
    factors: int
    constants: int
    following: int  # the shifts of the next group
    open_line: int  # see streaming.py

    @classmethod
    def new(cls, dtype: Dtype, compute_dtype: Dtype) -> Scratch:
        """Memory on the stack; what a kernel does not use of it is not there once that is compiled."""
        chunks = (*[dtype] * 4, *[compute_dtype] * 2, FLOAT64)
        sizes = (*(_CHUNK_ELEMENTS * one.itemsize for one in chunks), *[GROUP * 8] * 6, _LINE_NBYTES)
        return cls(*map(buffer, sizes))


class TaskValues(NamedTuple):
    """The fields of a Task, what is fixed when a kernel is compiled, and scratch."""

    dtype: Dtype
    compute_dtype: Dtype
    rule: int
    eps: float
    scale: float
    weight_offset: float
    features: int
    arrays: Arrays
    layout: Address
    weight: int
    weight_code: int
    bias: int
    bias_code: int
    widened: bool  # parameters are widened into scratch
    direct: bool  # parameters are of x's dtype, and widened where they are used
    streaming: bool  # past the caches
    fetching: bool  # the next rows, while some are written
    numbers: int
    scratch: Scratch
    address: int  # of the Task
    float64_kernel: int  # for what float32 cannot hold; 0: there is none
    narrow: int  # where that lies which float32 has found of a block; 0: nothing
    variant: Variant  # for what a convention says, and which parameters a row has
    narrow_weight: int = 0  # the weights in float32, of a derivative; in `weight` they are in float64
    ahead: int | None = None  # how far behind x and dy what is read next lies, of a derivative; None: it is not fetched

    @property
    def has_lows(self) -> bool:
        """Whether weight + weight_offset is a pair of float64."""
        return False if self.variant.rounds_weight else self.weight_offset != 0.0

    @property
    def takes_turns(self) -> bool:
        """Whether rows take turns with some weights and biases, see turns.py."""
        return self.variant.parameters != FOR_ALL

    @property
    def lanes(self) -> int:
        """How many elements are taken at a time."""
        return self.dtype.lanes

    @property
    def itemsize(self) -> int:
        """The bytes of an element."""
        return self.dtype.itemsize

    @property
    def splits_factors(self) -> bool:
        """Whether factor and constant are split in two numbers of float32 each: rows of float32 are applied in it."""
        return self.dtype is self.compute_dtype is FLOAT32

    @property
    def statistics_dtype(self) -> Dtype:
        """What the sums of a row are formed in."""
        return FLOAT64 if self.splits_factors else self.compute_dtype


def word(address: int, field: str) -> int:
    """An integer or an address in a Task at an address."""
    return integer(address + getattr(Task, field).offset)


def load_task(address: int, variant: Variant, has_dy: bool = False) -> TaskValues:
    """Read a Task, for a kernel of this variant."""
    eps, scale, offset = (real(address + getattr(Task, field).offset) for field in ("eps", "scale", "weight_offset"))
    arrays = Arrays(
        word(address, "x"),
        word(address, "residual") if has_dy or variant.has_residual else None,
        word(address, "y"),
        word(address, "total") if variant.has_residual else None,
    )
    weight, bias = word(address, "weight"), word(address, "bias")
    return TaskValues(
        *variant.dtypes, variant.rule, eps, scale, offset, word(address, "features"),
        arrays, word(address, "layout") if variant.has_layout else None,
        weight, word(address, "weight_code"), bias, word(address, "bias_code"), (weight != 0) | (bias != 0),
        False, word(address, "streaming") != 0, True, word(address, "numbers"), Scratch.new(*variant.dtypes),
        address, word(address, "float64_kernel"), word(address, "narrow"),
        variant,
    )  # fmt: skip
