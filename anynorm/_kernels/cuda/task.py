"""What a kernel is handed, as task.cuh has it: addresses, lengths and strides of arrays that are rows for it."""

from __future__ import annotations

import ctypes
import math
from collections.abc import Sequence
from typing import NamedTuple

from anynorm._kernels.axes import Axis, merged
from anynorm._kernels.cuda.launch import SLOT_NBYTES, Settings, settings
from anynorm._kernels.cuda.launch_derivative import DerivativeSettings, derivative_settings

FREE_AXES = 6
ARRAYS = 4  # x, the residual or dy, y or dx, the sum or dtotal
CODES = {"float16": 0, "bfloat16": 1, "float32": 2, "float64": 3}
NOTHING, NUMBER = 4, 5  # in place of the code of a weight or bias
# What a kernel does: the norm; the derivative row by row, sums over blocks of rows, and sums of the blocks; the
# derivative of blocks of rows, without the sums over them and with them.
STEPS = ("normalize", "derive", "add_rows", "add_blocks", "stream", "stream_and_add", "normalize_long")
NORMALIZE, DERIVE, ADD_ROWS, ADD_BLOCKS, STREAM, STREAM_AND_ADD, NORMALIZE_LONG = STEPS
RULES = {"layer_norm": 0, "rms_norm": 1, "scale_norm": 2}


class Task(ctypes.Structure):
    """The same fields in the same order as in task.cuh."""

    _fields_ = (
        ("rows", ctypes.c_longlong),
        ("features", ctypes.c_longlong),
        ("eps", ctypes.c_double),
        ("number", ctypes.c_double),
        ("reciprocal", ctypes.c_double),
        ("arrays", ctypes.c_void_p * ARRAYS),
        ("weight", ctypes.c_void_p),
        ("bias", ctypes.c_void_p),
        ("statistics", ctypes.c_void_p),
        ("sums", ctypes.c_void_p),
        ("dweight", ctypes.c_void_p),
        ("dbias", ctypes.c_void_p),
        ("blocks", ctypes.c_longlong),
        ("lengths", ctypes.c_longlong * FREE_AXES),
        ("strides", ctypes.c_longlong * FREE_AXES * ARRAYS),
        ("steps", ctypes.c_longlong * ARRAYS),
        ("free_axes", ctypes.c_int),
        ("dweight_code", ctypes.c_int),
        ("dbias_code", ctypes.c_int),
        ("teams", ctypes.c_int),
    )


class Choice(NamedTuple):
    """What a kernel is compiled for."""

    dtype: str
    rule: int
    weight: int  # the code of its dtype, NOTHING or NUMBER
    bias: int
    offset: bool  # whether a number is added to the weight
    aligned: bool  # whether every array is whole slots, each at a multiple of its size, and so are the parameters
    added: bool  # whether there is a residual and a sum, or a dtotal
    paired: bool = False  # float32 and narrower in pairs of float32, for cards that are slow at float64
    step: str = NORMALIZE
    # As launch.py has them.
    threads: int = 1
    neighbours: int = 0
    held: int = 1
    cluster: int = 1
    in_shared: bool = False  # whether the held slots lie in shared memory, and not in registers
    abreast: int = 1
    of_parameters: int = 0  # slots of shared memory in which a thread keeps parameters
    full: bool = False  # whether rows are aligned and fill the held slots of their threads to the last

    def started(self, how: Settings, rows: Rows) -> Choice:
        """The same with how a kernel is started for these rows."""
        full = (self.aligned or how.abreast > 1) and how.is_filled(rows.normalized.length, rows.itemsize)
        return self._replace(
            threads=how.threads,
            neighbours=how.neighbours,
            held=how.held,
            cluster=how.cluster,
            in_shared=how.in_shared,
            abreast=how.abreast,
            aligned=self.aligned or how.abreast > 1,
            full=full,
        )


class Rows(NamedTuple):
    """Arrays of one shape as rows."""

    free: tuple[Axis, ...]  # strides in elements; the last one has the smallest
    normalized: Axis
    itemsize: int

    @property
    def total(self) -> int:
        """How many rows there are."""
        return math.prod(axis.length for axis in self.free)

    @property
    def side_by_side(self) -> bool:
        """Whether neighbours in memory belong to different rows."""
        contiguous = self.normalized.length == 1 or set(self.normalized.strides) == {1}
        return not contiguous and bool(self.free) and set(self.free[-1].strides) == {1}

    def settings(self, clusters: bool = False) -> Settings:
        """How a kernel for these is started."""
        return settings(self.normalized.length, self.itemsize, self.side_by_side, clusters)

    def derivative_settings(self, most_cluster: int) -> DerivativeSettings:
        """How the kernels of the derivative are started."""
        return derivative_settings(self.normalized.length, self.itemsize, self.side_by_side, most_cluster)


def as_rows(shape: Sequence[int], strides: Sequence[Sequence[int]], axes: Sequence[int], itemsize: int) -> Rows | str:
    """Lay out arrays of one shape, from the strides of each in bytes; where that cannot be, say why."""
    of_axis = list(zip(*strides, strict=True)) if shape else []
    if any(stride % itemsize for one in of_axis for stride in one):
        return "strides are no multiples of an element's size"
    steps = [tuple(stride // itemsize for stride in one) for one in of_axis]
    free = [Axis(shape[i], steps[i]) for i in range(len(shape)) if i not in axes and shape[i] > 1]
    normalized = merged([Axis(shape[i], steps[i]) for i in axes if shape[i] > 1])
    if len(normalized) > 1:
        return "no single stride leads through the normalized axes"
    # Rows may be taken in any order: that of memory, the axis with the smallest strides last.
    free = merged(sorted(free, key=lambda axis: max(map(abs, axis.strides)), reverse=True))
    if len(free) > FREE_AXES:
        return f"there are more than {FREE_AXES} axes beside the normalized ones"
    none = (1,) * len(strides)
    return Rows(tuple(free), normalized[0] if normalized else Axis(1, none), itemsize)


def fill(rows: Rows, addresses: Sequence[int]) -> Task:
    """Describe rows in arrays at these addresses; parameters, eps and statistics are left to be filled in."""
    task = Task(rows=rows.total, features=rows.normalized.length, free_axes=len(rows.free))
    task.reciprocal = 1 / task.features
    for axis, (length, _) in enumerate(rows.free):
        task.lengths[axis] = length
    for array, address in enumerate(addresses):
        task.arrays[array] = address
        task.steps[array] = rows.normalized.strides[array]
        for axis, (_, strides) in enumerate(rows.free):
            task.strides[array][axis] = strides[array]
    return task


def is_aligned(rows: Rows, addresses: Sequence[int | None]) -> bool:
    """Whether rows are whole slots, each at a multiple of its size; addresses of parameters may go with the others."""
    strides = [stride for axis in rows.free for stride in axis.strides]
    return (
        set(rows.normalized.strides) == {1}
        and all((address or 0) % SLOT_NBYTES == 0 for address in addresses)
        and all(length * rows.itemsize % SLOT_NBYTES == 0 for length in (rows.normalized.length, *strides))
    )


def is_aligned_across(rows: Rows, addresses: Sequence[int | None]) -> bool:
    """Whether neighbouring rows are whole slots, each at a multiple of its size, and so are the parameters."""
    if not rows.side_by_side:
        return False
    strides = [stride for axis in (*rows.free[:-1], rows.normalized) for stride in axis.strides]
    return all((address or 0) % SLOT_NBYTES == 0 for address in addresses) and all(
        length * rows.itemsize % SLOT_NBYTES == 0 for length in (rows.normalized.length, rows.free[-1].length, *strides)
    )
