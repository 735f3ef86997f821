"""CuPy arrays and CUDA tensors: addresses, strides, fresh memory, and the stream and device that are current."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

from anynorm._kernels.cpu.launch.memory import Torch

Array = Any


class Tensors(Torch):
    """Tensors on a CUDA device."""

    @staticmethod
    def empty_like(tensor: Array, nbytes: int = 0) -> Array:
        """Fresh memory; torch's own allocator brings pages of any size."""
        import torch

        return torch.empty_like(tensor.detach())

    @staticmethod
    def ordinal(tensor: Array) -> int:
        """The number of the device."""
        return int(tensor.get_device())

    @staticmethod
    def current(tensor: Array) -> AbstractContextManager[Any]:
        """A block in which the tensor's device is the current one."""
        import torch

        context: AbstractContextManager[Any] = torch.cuda.device(tensor.device)
        return context

    @staticmethod
    def ordinals() -> Callable[[], int]:
        """The question for the number of the current device."""
        import torch

        return torch.cuda.current_device

    @staticmethod
    def stream(tensor: Array) -> int:
        """The handle of torch's current stream on the tensor's device."""
        return Tensors.streams()(Tensors.ordinal(tensor))

    @staticmethod
    def streams() -> Callable[[int], int]:
        """The question for the handle of torch's current stream on a device of some number."""
        import torch

        # What Triton and the code of torch.compile call: a twentieth of the time, but no public name.
        raw: Callable[[int], int] | None = getattr(torch._C, "_cuda_getCurrentRawStream", None)
        return raw or (lambda ordinal: int(torch.cuda.current_stream(ordinal).cuda_stream))

    @staticmethod
    def numbers(tensor: Array, count: int) -> Array:
        """Room for so many float64 numbers on the same device."""
        import torch

        return torch.empty(count, dtype=torch.float64, device=tensor.device)


class CuPy:
    """The same of CuPy arrays."""

    @staticmethod
    def address(array: Array) -> int:
        """Where the first element lies."""
        return int(array.data.ptr)

    @staticmethod
    def is_contiguous(array: Array) -> bool:
        """Whether elements lie one after the other in C order."""
        return bool(array.flags.c_contiguous)

    @staticmethod
    def contiguous(array: Array) -> Array:
        """A copy in C order."""
        return array.copy(order="C")

    @staticmethod
    def strides(array: Array) -> tuple[int, ...]:
        """In bytes."""
        return tuple(array.strides)

    @staticmethod
    def empty_like(array: Array, nbytes: int = 0) -> Array:
        """Fresh memory."""
        import cupy

        return cupy.empty_like(array)

    @staticmethod
    def written(array: Array) -> None:
        """Nobody has to know."""

    @staticmethod
    def ordinal(array: Array) -> int:
        """The number of the device."""
        return int(array.device.id)

    @staticmethod
    def current(array: Array) -> AbstractContextManager[Any]:
        """A block in which the array's device is the current one."""
        context: AbstractContextManager[Any] = array.device
        return context

    @staticmethod
    def stream(array: Array) -> int:
        """The handle of CuPy's current stream."""
        import cupy

        return int(cupy.cuda.get_current_stream().ptr)

    @staticmethod
    def numbers(array: Array, count: int) -> Array:
        """Room for so many float64 numbers on the current device."""
        import cupy

        return cupy.empty(count, dtype="float64")


ACCESS: dict[str, Any] = {"torch": Tensors, "cupy": CuPy}
