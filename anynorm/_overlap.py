"""Whether arrays have memory, whether a call may write to it, and whether an input lives there."""

from __future__ import annotations

from typing import Any

import numpy

from anynorm._libraries import Memory
from anynorm._libraries.numpy_arrays import NumPy
from anynorm._libraries.torch_tensors import is_freed
from anynorm._wording import sentence

Array = Any

# Deciding exactly whether two strided arrays share an element is NP-hard; past this effort overlapping bounds count as
# overlap. Views that real code makes are decided within a few steps.
_MAX_WORK = 10_000


def require_memory(argument: str, tensor: Array) -> None:
    """Raise ValueError where the storage of a torch tensor was freed: torch itself may end the process then."""
    if is_freed(tensor):
        raise ValueError(
            f"{argument} has no memory any more: its storage was freed (resized to 0, as FSDP does between uses); "
            f"fill the storage again before the call, or pass another tensor"
        )


def require_writable(argument: str, out: Array, memory: type[Memory]) -> None:
    """Raise ValueError where an out array is read-only, repeats its memory, or must not be written for autograd."""
    unwritable = memory.unwritable(argument, out)
    if unwritable is not None:
        raise ValueError(sentence(argument, "be writable", *unwritable))
    if memory.is_contiguous(out):
        return
    extent = memory.extent(out)
    if extent is not None and not extent.flags.forc and _overlaps_itself(extent):
        got = "elements that share memory (a broadcast view, windows)"
        raise ValueError(sentence(argument, "have memory for each element", got, "pass a whole array"))


def require_separate(
    argument: str, out: Array, inputs: dict[str, Array], others: dict[str, Array], memory: type[Memory]
) -> None:
    """Raise ValueError where ``out`` shares memory with an input, unless it is that input's memory, or with another."""
    for name, other in (inputs | others).items():
        if other is None or (other is out and name in inputs) or memory.are_apart(out, other):
            continue
        mine, theirs = memory.extent(out), memory.extent(other)
        if mine is None or theirs is None or (name in inputs and _same(mine, theirs)) or not _overlap(mine, theirs):
            continue
        must, do = f"share no memory with {name}", "pass an array of its own"
        if name in inputs:
            must, do = f"be {name} itself or {must}", f"pass {argument}={name} to work in place, or an array of its own"
        raise ValueError(sentence(argument, must, "one that overlaps it", do))


def _same(a: Any, b: Any) -> bool:
    """Whether two arrays have the same elements in the same places, whatever objects they are."""
    begin_alike = NumPy.address(a) == NumPy.address(b)
    steps = [[s for s, length in zip(array.strides, array.shape, strict=True) if length > 1] for array in (a, b)]
    return bool(begin_alike and a.shape == b.shape and steps[0] == steps[1])


def _overlaps_itself(array: Any) -> bool:
    """Whether two elements share memory: moved along, two such are the first along some axis and one behind it."""
    for axis in range(array.ndim):
        before = (slice(None),) * axis
        if _overlap(array[(*before, slice(0, 1))], array[(*before, slice(1, None))]):
            return True
    return False


def _overlap(a: Any, b: Any) -> bool:
    try:
        return bool(numpy.shares_memory(a, b, max_work=_MAX_WORK))  # type: ignore[arg-type]  # the stub knows two of all ints
    except numpy.exceptions.TooHardError:
        return True
