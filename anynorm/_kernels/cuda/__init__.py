"""Fused kernels for CuPy arrays and CUDA tensors, compiled by NVRTC: which calls they take.

Nothing here imports a library of CUDA's.
"""

from __future__ import annotations

from typing import Any

from anynorm._check import Call, Gradient
from anynorm._kernels.cpu import is_installed, wants_gradient
from anynorm._overlap import lacks_memory
from anynorm._torch.state import is_followed

_ADVICE = (
    "cuda-bindings is not installed, which launches it; pip install cuda-bindings nvidia-cuda-nvrtc, "
    "or for CUDA 12 'cuda-bindings<13' nvidia-cuda-nvrtc-cu12"
)


_MISSING = None if is_installed("cuda.bindings") else _ADVICE


def missing() -> str | None:
    """What to install before the kernels can run."""
    return _MISSING


def refuses(call: Call) -> str | None:
    """Why the kernels do not take a call; None: they do."""
    name = call.library.name
    if name not in ("cupy", "torch"):
        return f"it takes CuPy arrays and torch tensors on NVIDIA GPUs, and x is an array of {name}"
    if name == "torch":
        reason = _refuses_torch(call)
        if reason is not None:
            return reason
    if call.moments is not None:
        return "it forms statistics of its own, and these are given"
    if 0 in call.x.shape:
        return "x is empty"
    return _refuses_layout(call) or _refuses_device(call)


def refuses_to_pull(gradient: Gradient) -> str | None:
    """Why the kernels do not take the derivative of a call; None: they do."""
    call, dy, dtotal, _ = gradient
    if call.library.name == "torch" and wants_gradient(call, dy, dtotal):
        return "a derivative of the derivative is wanted, which goes through the definition"
    # They read dy and dtotal as they would a residual and write as to `out`, of which all the same is asked.
    return refuses(call._replace(residual=dy, out=None if dtotal is None else (dtotal,)))


def _refuses_torch(call: Call) -> str | None:
    import torch

    # First, for no other question can be asked while a graph is being traced.
    if torch.compiler.is_compiling():
        return "torch.compile traces the definition"
    given: tuple[Any, ...] = (call.x, call.residual, call.weight, call.bias, *(call.out or ()))
    for tensor in given:
        if not isinstance(tensor, torch.Tensor):
            continue
        if not tensor.is_cuda or torch.version.hip:
            return f"it takes tensors on NVIDIA GPUs, and x is on {tensor.device}"
        if type(tensor) is not torch.Tensor and type(tensor) is not torch.nn.Parameter:
            return f"it takes plain tensors, got {type(tensor).__name__}"
        if tensor.is_neg():
            return "a tensor is a negated view, whose memory holds other numbers"
    if call.out is not None and wants_gradient(call, *call.out):
        return "a gradient is wanted of what is written in place, which goes through the definition"
    if is_followed(torch):
        return "torch follows each operation (torch.func, forward-mode derivatives, a dispatch mode, tracing)"
    if any(map(lacks_memory, [one for one in given if isinstance(one, torch.Tensor)])):
        return "a tensor has no memory, as torch knows that its elements are all 0"
    return None


def _refuses_layout(call: Call) -> str | None:
    from anynorm._kernels.cuda.arrays import ACCESS
    from anynorm._kernels.cuda.task import as_rows

    access = ACCESS[call.library.name]
    given = [one for one in (call.x, call.residual, *(call.out or ())) if one is not None]
    if call.library.name == "torch" and not call.x.is_contiguous():
        import torch

        given.append(torch.empty_like(call.x, device="meta"))  # a result, or dx, may be laid out otherwise
    strides = [access.strides(one) for one in given]
    found = as_rows(tuple(call.x.shape), strides, call.axes, call.x.dtype.itemsize)
    return found if isinstance(found, str) else None


def _refuses_device(call: Call) -> str | None:
    """What is missing for the device; asked last, since it takes NVRTC to be loaded."""
    from anynorm._kernels.cuda import device
    from anynorm._kernels.cuda.arrays import ACCESS

    return device.unfit(ACCESS[call.library.name].ordinal(call.x))
