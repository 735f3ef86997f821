"""Whether the memory that a call would write may be written, and whether an input lives there."""

from __future__ import annotations

from typing import Any

import numpy

Array = Any

# Deciding exactly whether two strided arrays share an element is NP-hard; past this effort overlapping bounds count as
# overlap. Views that real code makes are decided within a few steps.
_MAX_WORK = 10_000


class _Extent:
    """Offers the memory of any strided array to NumPy's overlap test, which never reads it."""

    def __init__(self, pointer: int, shape: tuple[int, ...], strides: tuple[int, ...], itemsize: int) -> None:
        self.__array_interface__ = {
            "version": 3,
            "data": (pointer, False),
            "shape": shape,
            "strides": strides,
            "typestr": f"|V{itemsize}",
        }


def require_writable(argument: str, out: Array, library: str) -> None:
    """Raise ValueError where an out array is read-only, repeats its memory, or must not be written for autograd."""
    if library == "numpy" and not out.flags.writeable:
        raise ValueError(f"{argument} is read-only; pass an array that may be written")
    if library == "torch" and out.requires_grad and out.is_leaf:
        raise ValueError(f"{argument} is a leaf that requires a gradient, which autograd does not let be written")
    if library == "torch" and out.is_contiguous():
        return
    extent = _extent(out, library)
    if extent is not None and not extent.flags.forc and _overlaps_itself(extent):
        raise ValueError(f"{argument} has elements that share memory (a broadcast view, windows); pass a whole array")


def require_separate(
    argument: str, out: Array, inputs: dict[str, Array], others: dict[str, Array], library: str
) -> None:
    """Raise ValueError where ``out`` shares memory with an input, unless it is that input's memory, or with another."""
    for name, other in (inputs | others).items():
        if other is None or (other is out and name in inputs) or _are_apart(out, other, library):
            continue
        mine, theirs = _extent(out, library), _extent(other, library)
        if mine is None or (name in inputs and _same(mine, theirs)) or not _overlap(mine, theirs):
            continue
        allowed = f"; pass {argument}={name} itself to work in place" if name in inputs else ""
        raise ValueError(f"{argument} and {name} overlap in memory{allowed}, or pass an array of its own")


def _are_apart(a: Array, b: Array, library: str) -> bool:
    """Whether a glance tells that two arrays share nothing, as it mostly does."""
    if library == "numpy":
        return not numpy.may_share_memory(a, b)
    if library == "torch" and a.is_cpu and a.is_contiguous() and b.is_contiguous() and type(a) is type(b):
        first, second = a.data_ptr(), b.data_ptr()
        return bool(first + a.nbytes <= second or second + b.nbytes <= first)
    return False


def _extent(array: Array, library: str) -> Any:
    """A stand-in with the array's memory layout; None where a library does not show it."""
    if library == "numpy":
        return array
    if library == "torch":
        if array.device.type == "meta" or type(array).__name__ in ("FakeTensor", "FunctionalTensor"):
            return None
        pointer, itemsize = array.data_ptr(), array.element_size()
        strides = tuple(stride * itemsize for stride in array.stride())
    elif library == "cupy":
        pointer, itemsize, strides = array.data.ptr, array.dtype.itemsize, array.strides
    else:
        return None
    return numpy.asarray(_Extent(pointer, tuple(array.shape), strides, itemsize))


def _same(a: Any, b: Any) -> bool:
    """Whether two arrays have the same elements in the same places, whatever objects they are."""
    pointers = [array.__array_interface__["data"][0] for array in (a, b)]
    steps = [[s for s, length in zip(array.strides, array.shape, strict=True) if length > 1] for array in (a, b)]
    return bool(pointers[0] == pointers[1] and a.shape == b.shape and steps[0] == steps[1])


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
