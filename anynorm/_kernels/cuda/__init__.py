"""Fused kernels for CuPy arrays and CUDA tensors, compiled by NVRTC: which calls they take.

Nothing here imports a library of CUDA's.
"""

from __future__ import annotations

from anynorm._check import Call, Gradient
from anynorm._kernels.cpu import (
    is_installed,
    refuses_arrays,
    refuses_parameters,
    refuses_residual,
    wants_gradient,
)

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
    if not call.library.memory.on_cuda:
        return f"it takes CuPy arrays and torch tensors on NVIDIA GPUs, and x is an array of {call.library.name}"
    if not call.rule.is_plain:
        return "it rounds once, with eps where the norm has it, and the convention of this call is another"
    reason = refuses_arrays(call, on_cuda=True)
    if reason is not None:
        return reason
    if call.moments is not None:
        return "it forms statistics of its own, and these are given"
    if 0 in call.x.shape:
        return "x is empty"
    reason = refuses_parameters(call) or refuses_residual(call)
    return reason or _refuses_layout(call) or missing() or _refuses_device(call)


def refuses_vjp(gradient: Gradient) -> str | None:
    """Why the kernels do not take the derivative of a call; None: they do."""
    call, dy, dtotal, _ = gradient
    if wants_gradient(call, dy, dtotal):
        return "a derivative of the derivative is wanted, which goes through the definition"
    # They read dy and dtotal as they would a residual and write as to `out`, of which all the same is asked.
    return refuses(call._replace(residual=dy, out=None if dtotal is None else (dtotal,)))


def _refuses_layout(call: Call) -> str | None:
    from anynorm._kernels.cuda.task import as_rows

    memory, given = call.library.memory, (call.x, call.residual, *(call.out or ()))
    strides = [memory.strides(one) for one in given if one is not None]
    strides.append(memory.strides_of_new(call.x))  # of a result, or dx
    found = as_rows(tuple(call.x.shape), strides, call.axes, call.x.dtype.itemsize)
    return found if isinstance(found, str) else None


def _refuses_device(call: Call) -> str | None:
    """What is missing for the device; asked last, since it takes NVRTC to be loaded."""
    from anynorm._kernels.cuda import device

    return device.unfit(call.library.memory.ordinal(call.x))
