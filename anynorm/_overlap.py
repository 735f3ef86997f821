"""Whether arrays have memory, whether a call may write to it, and whether an input lives there."""

from __future__ import annotations

from typing import Any

import numpy

from anynorm._wording import sentence

Array = Any

# Deciding exactly whether two strided arrays share an element is NP-hard; past this effort overlapping bounds count as
# overlap. Views that real code makes are decided within a few steps.
_MAX_WORK = 10_000
# Addresses below may be none at all, and are looked at twice. Memory mostly lies above, on 64-bit systems.
LOW_ADDRESS = 1 << 40


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


def lacks_memory(tensor: Array) -> bool:
    """Whether a torch tensor has elements that lie nowhere: its storage was freed, or torch knows them to be zeros."""
    try:
        if tensor.data_ptr() >= LOW_ADDRESS:
            return False
    except RuntimeError:  # of a wrapper, as those of torch.func are
        return bool(tensor.numel())
    return not _address(tensor) and bool(tensor.numel())


def _address(tensor: Array) -> int | None:
    """Where a torch tensor begins; 0 where its storage has no memory, None where it has no storage."""
    try:
        address = int(tensor.data_ptr())
    except RuntimeError:  # of a wrapper, as those of torch.func are
        return None
    # Without memory the address that torch gives is how far into its storage the tensor begins.
    is_offset = address < LOW_ADDRESS and address == tensor.storage_offset() * tensor.element_size()
    return 0 if is_offset else address


def require_memory(argument: str, tensor: Array) -> None:
    """Raise ValueError where the storage of a torch tensor was freed: torch itself may end the process then."""
    import torch

    # While a graph is being traced, no address can be asked for; nor of tensors that only stand for others.
    if _is_compiling() or type(tensor) not in (torch.Tensor, torch.nn.Parameter):
        return
    is_nowhere = (tensor.is_cpu or tensor.is_cuda) and tensor.numel() and _address(tensor) == 0
    if is_nowhere and not tensor.untyped_storage().nbytes():
        raise ValueError(
            f"{argument} has no memory any more: its storage was freed (resized to 0, as FSDP does between uses); "
            f"fill the storage again before the call, or pass another tensor"
        )


def _is_compiling() -> bool:
    import torch

    return torch.compiler.is_compiling()


def require_writable(argument: str, out: Array, library: str) -> None:
    """Raise ValueError where an out array is read-only, repeats its memory, or must not be written for autograd."""
    if library == "numpy" and not out.flags.writeable:
        raise ValueError(sentence(argument, "be writable", "a read-only array", "pass a copy, or numpy.empty_like(x)"))
    if library == "torch" and out.requires_grad and out.is_leaf:
        got = "a leaf that requires a gradient, which autograd does not let be written"
        raise ValueError(sentence(argument, "be writable", got, f"pass {argument}.detach(), or torch.empty_like(x)"))
    if library == "torch" and out.is_contiguous():
        return
    extent = _extent(out, library)
    if extent is not None and not extent.flags.forc and _overlaps_itself(extent):
        got = "elements that share memory (a broadcast view, windows)"
        raise ValueError(sentence(argument, "have memory for each element", got, "pass a whole array"))


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
        must, do = f"share no memory with {name}", "pass an array of its own"
        if name in inputs:
            must, do = f"be {name} itself or {must}", f"pass {argument}={name} to work in place, or an array of its own"
        raise ValueError(sentence(argument, must, "one that overlaps it", do))


def _are_apart(a: Array, b: Array, library: str) -> bool:
    """Whether a quick look shows that two arrays share nothing, as it mostly does."""
    if library == "numpy":
        return not numpy.may_share_memory(a, b)
    if library == "torch" and _is_compiling():  # no address can be asked for, but a graph computes all before it writes
        return True
    if library == "torch" and a.is_cpu and a.is_contiguous() and b.is_contiguous() and type(a) is type(b):
        first, second = _address(a), _address(b)
        if first and second:
            return bool(first + a.nbytes <= second or second + b.nbytes <= first)
    return False


def _extent(array: Array, library: str) -> Any:
    """A stand-in with the array's memory layout; None where there is none, or a library does not show it."""
    if library == "numpy":
        return array
    if library == "torch":
        if _is_compiling() or array.device.type == "meta" or type(array).__name__ in ("FakeTensor", "FunctionalTensor"):
            return None
        pointer, itemsize = _address(array), array.element_size()
        if not pointer:
            return None
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
