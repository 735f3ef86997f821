"""A task as the parts of a kernel pass it on, and the memory that a kernel works in."""

from __future__ import annotations

from typing import NamedTuple

from anynorm._kernels.cpu.kernels.task import Task, Variant
from anynorm._kernels.cpu.language.lanes import integer, real


class TaskValues(NamedTuple):
    """The fields of a Task as the parts of a kernel pass them on; an address is None where there is never anything."""

    rule: int
    eps: float
    scale: float
    features: int
    x: int
    other: int | None  # the residual, or dy
    y: int
    added: int | None  # the total, or dtotal
    layout: int | None
    weight: int
    weight_code: int
    bias: int
    bias_code: int
    weight_offset: float
    widened: bool  # parameters are widened into rooms beforehand
    direct: bool
    streaming: bool
    fetching: bool


def word(task: int, name: str) -> int:
    """An integer or an address among the fields of a task."""
    found: int = integer(task + getattr(Task, name).offset)
    return found


def values_of(task: int, variant: Variant, has_other: bool, has_added: bool) -> TaskValues:
    """Read a task from memory."""
    eps, scale, weight_offset = (real(task + getattr(Task, name).offset) for name in ("eps", "scale", "weight_offset"))
    weight, bias = word(task, "weight"), word(task, "bias")
    return TaskValues(
        variant.rule, eps, scale, word(task, "features"),
        word(task, "x"), word(task, "residual") if has_other else None,
        word(task, "y"), word(task, "total") if has_added else None,
        word(task, "layout") if variant.has_layout else None,
        weight, word(task, "weight_code"), bias, word(task, "bias_code"), weight_offset,
        (weight != 0) | (bias != 0), word(task, "direct") != 0, word(task, "streaming") != 0,
        word(task, "fetching") != 0,
    )  # fmt: skip


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
