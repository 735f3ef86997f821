"""The kernels on NVIDIA GPUs, for torch's autograd."""

from __future__ import annotations

from typing import Any

from anynorm._check import Call
from anynorm._kernels import autograd
from anynorm._kernels.cuda.run import run as run_kernel
from anynorm._kernels.cuda.vjp import vjp

Array = Any


def _surely_takes_vjp(x: Array, dy: Array, dtotal: Array | None) -> bool:
    """Whether all that the kernels read lies on the GPU, one element after the other.

    They have taken x with such strides then, and torch has seen to it that dtype, shape and device of the gradients are
    right.
    """
    gradients = (dy,) if dtotal is None else (dy, dtotal)
    are_plain = all(one.is_cuda and autograd.is_plain(one) and one.is_contiguous() for one in gradients)
    return are_plain and x.is_cuda and bool(x.is_contiguous())


def run(call: Call, choose_vjp: autograd.ChooseVjp) -> Any:
    """Return y, or (y, total) where the call has a residual, with what leads back from there."""
    kernels = autograd.Kernels("cuda", run_kernel, vjp, _surely_takes_vjp, None, choose_vjp)
    return autograd.run(kernels, call)
