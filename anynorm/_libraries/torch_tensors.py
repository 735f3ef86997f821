"""The memory of torch tensors, on the CPU and on CUDA devices."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any

import numpy

from anynorm._libraries.memory import Memory, array_at
from anynorm._torch.state import is_followed

Array = Any

# Addresses below may be none at all, and are looked at twice. Memory mostly lies above, on 64-bit systems.
LOW_ADDRESS = 1 << 40


def lacks_memory(tensor: Array) -> bool:
    """Whether a tensor has elements that lie nowhere: its storage was freed, or torch knows them to be zeros."""
    try:
        if tensor.data_ptr() >= LOW_ADDRESS:
            return False
    except RuntimeError:  # of a wrapper, as those of torch.func are
        return bool(tensor.numel())
    return not _address(tensor) and bool(tensor.numel())


def _address(tensor: Array) -> int | None:
    """Where a tensor begins; 0 where its storage has no memory, None where it has no storage."""
    try:
        address = int(tensor.data_ptr())
    except RuntimeError:  # of a wrapper, as those of torch.func are
        return None
    # Without memory the address that torch gives is how far into its storage the tensor begins.
    is_offset = address < LOW_ADDRESS and address == tensor.storage_offset() * tensor.element_size()
    return 0 if is_offset else address


def is_freed(tensor: Array) -> bool:
    """Whether the storage of a tensor was freed, although the tensor has elements."""
    import torch

    # While a graph is being traced, no address can be asked for; nor of tensors that only stand for others.
    if torch.compiler.is_compiling() or type(tensor) not in (torch.Tensor, torch.nn.Parameter):
        return False
    is_nowhere = (tensor.is_cpu or tensor.is_cuda) and tensor.numel() and _address(tensor) == 0
    return bool(is_nowhere) and not tensor.untyped_storage().nbytes()


def _is_compiling() -> bool:
    import torch

    return torch.compiler.is_compiling()


class Torch(Memory):
    """Dense torch tensors."""

    on_cpu = True
    on_cuda = True

    @staticmethod
    def address(tensor: Array) -> int:
        return int(tensor.data_ptr())

    @staticmethod
    def strides(tensor: Array) -> tuple[int, ...]:
        itemsize = tensor.element_size()
        return tuple(stride * itemsize for stride in tensor.stride())

    @staticmethod
    def is_contiguous(tensor: Array) -> bool:
        return bool(tensor.is_contiguous())

    @staticmethod
    def contiguous(tensor: Array) -> Array:
        return tensor.contiguous()

    @staticmethod
    def empty_like(tensor: Array) -> Array:
        import torch

        return torch.empty_like(tensor.detach())

    @staticmethod
    def strides_of_new(tensor: Array) -> tuple[int, ...]:
        import torch

        return Torch.strides(tensor if tensor.is_contiguous() else torch.empty_like(tensor, device="meta"))

    @staticmethod
    def written(tensor: Array) -> None:
        """Tell autograd."""
        import torch

        torch.autograd.graph.increment_version(tensor)

    @staticmethod
    def refuses(tensors: Sequence[Array], on_cuda: bool) -> str | None:
        import torch

        # First, for no other question can be asked while a graph is being traced.
        if torch.compiler.is_compiling():
            return "torch.compile traces the definition"
        for tensor in tensors:
            if on_cuda and (not tensor.is_cuda or torch.version.hip):
                return f"it takes tensors on NVIDIA GPUs, and x is on {tensor.device}"
            if not on_cuda and not tensor.is_cpu:
                return f"it takes tensors on the CPU, and x is on {tensor.device}"
            if type(tensor) is not torch.Tensor and type(tensor) is not torch.nn.Parameter:
                return f"it takes plain tensors, got {type(tensor).__name__}"
            if tensor.is_neg():
                return "a tensor is a negated view, whose memory holds other numbers"
        if is_followed(torch):
            return "torch follows each operation (torch.func, forward-mode derivatives, a dispatch mode, tracing)"
        if any(map(lacks_memory, tensors)):
            return "a tensor has no memory, as torch knows that its elements are all 0"
        return None

    @staticmethod
    def unwritable(argument: str, out: Array) -> tuple[str, str] | None:
        if out.requires_grad and out.is_leaf:
            got = "a leaf that requires a gradient, which autograd does not let be written"
            return got, f"pass {argument}.detach(), or torch.empty_like(x)"
        return None

    @staticmethod
    def are_apart(a: Array, b: Array) -> bool:
        if _is_compiling():  # no address can be asked for, but a graph computes all before it writes
            return True
        if a.is_cpu and a.is_contiguous() and b.is_contiguous() and type(a) is type(b):
            first, second = _address(a), _address(b)
            if first and second:
                return bool(first + a.nbytes <= second or second + b.nbytes <= first)
        return False

    @staticmethod
    def extent(tensor: Array) -> numpy.ndarray | None:
        stands_for_another = type(tensor).__name__ in ("FakeTensor", "FunctionalTensor")
        if _is_compiling() or tensor.device.type == "meta" or stands_for_another:
            return None
        address = _address(tensor)
        if not address:
            return None
        return array_at(address, tuple(tensor.shape), Torch.strides(tensor), f"|V{tensor.element_size()}")

    @staticmethod
    def ordinal(tensor: Array) -> int:
        return int(tensor.get_device())

    @staticmethod
    def current(tensor: Array) -> AbstractContextManager[Any]:
        import torch

        context: AbstractContextManager[Any] = torch.cuda.device(tensor.device)
        return context

    @staticmethod
    def current_ordinal() -> Callable[[], int]:
        import torch

        return torch.cuda.current_device

    @staticmethod
    def stream(tensor: Array) -> int:
        return Torch.current_stream()(Torch.ordinal(tensor))

    @staticmethod
    def current_stream() -> Callable[[int], int]:
        import torch

        # What Triton and the code of torch.compile call: a twentieth of the time, but no public name.
        raw: Callable[[int], int] | None = getattr(torch._C, "_cuda_getCurrentRawStream", None)
        return raw or (lambda ordinal: int(torch.cuda.current_stream(ordinal).cuda_stream))

    @staticmethod
    def float64s(tensor: Array, count: int) -> Array:
        import torch

        return torch.empty(count, dtype=torch.float64, device=tensor.device)
