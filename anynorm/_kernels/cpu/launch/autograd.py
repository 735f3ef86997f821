"""The kernels on the CPU, for torch's autograd."""

from __future__ import annotations

from functools import partial
from typing import Any

from anynorm._check import Call, Gradient
from anynorm._kernels import autograd
from anynorm._kernels.cpu.fast_path.tensors import follow_by
from anynorm._kernels.cpu.launch.norm import run as run_kernel
from anynorm._kernels.cpu.launch.vjp import pull


def _surely_pulls(gradient: Gradient) -> bool:
    """Whether gradients are where the kernels read them; torch has seen to it that dtype and shape are right."""
    return all(one is None or (one.is_cpu and autograd.is_plain(one)) for one in (gradient.dy, gradient.dtotal))


_KERNELS = autograd.Kernels("cpu", run_kernel, pull, _surely_pulls)
follow_by(partial(autograd.follow, _KERNELS))


def run(call: Call) -> Any:
    """Return y, or (y, total) where the call has a residual, with what leads back from there."""
    return autograd.run(_KERNELS, call)
