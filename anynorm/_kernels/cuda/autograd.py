"""The kernels on NVIDIA GPUs, for torch's autograd."""

from __future__ import annotations

from typing import Any

from anynorm._check import Call, Gradient
from anynorm._kernels import autograd
from anynorm._kernels.cuda.pull import pull
from anynorm._kernels.cuda.run import run as run_kernel


def _surely_pulls(gradient: Gradient) -> bool:
    """Whether all that the kernels read lies on the GPU, one element after the other.

    They have taken x with such strides then, and torch has seen to it that dtype, shape and device of the gradients are
    right.
    """
    x, given = gradient.call.x, (gradient.dy, gradient.dtotal)
    are_plain = all(one is None or (one.is_cuda and autograd.is_plain(one) and one.is_contiguous()) for one in given)
    return are_plain and x.is_cuda and bool(x.is_contiguous())


_KERNELS = autograd.Kernels("cuda", run_kernel, pull, _surely_pulls)


def run(call: Call) -> Any:
    """Return y, or (y, total) where the call has a residual, with what leads back from there."""
    return autograd.run(_KERNELS, call)
