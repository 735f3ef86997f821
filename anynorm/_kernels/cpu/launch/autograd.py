"""The kernels on the CPU, for torch's autograd."""

from __future__ import annotations

from functools import cache, partial
from typing import Any

import torch

from anynorm._check import Call, Gradient
from anynorm._kernels import autograd
from anynorm._kernels.cpu import has_groups
from anynorm._kernels.cpu.fast_path.derivative import quick_vjp_by
from anynorm._kernels.cpu.fast_path.tensors import follow_by
from anynorm._kernels.cpu.launch import groups, groups_vjp, norm
from anynorm._kernels.cpu.launch.vjp import vjp as vjp_of_rows
from anynorm._libraries.torch_tensors import Torch

Array = Any

quick_vjp = quick_vjp_by("torch", Torch, torch.empty_like)


def run(call: Call, choose_vjp: autograd.ChooseVjp) -> Any:
    """Return y, or (y, total) where the call has a residual, with what leads back from there."""
    return autograd.run(_kernels(choose_vjp), call)


@cache
def _kernels(choose_vjp: autograd.ChooseVjp) -> autograd.Kernels:
    """The kernels; the fast path, which lies below, is told of them."""
    kernels = autograd.Kernels("cpu", _run, _vjp, _surely_takes_vjp, quick_vjp, choose_vjp)
    follow_by(partial(autograd.follow, kernels))
    return kernels


def _run(call: Call) -> Any:
    return groups.run(call) if has_groups(call) else norm.run(call)


def _vjp(gradient: Gradient) -> tuple[Any, ...]:
    return groups_vjp.vjp(gradient) if has_groups(gradient.call) else vjp_of_rows(gradient)


def _surely_takes_vjp(x: Array, dy: Array, dtotal: Array | None) -> bool:
    """Whether gradients are where the kernels read them; torch has seen to it that dtype and shape are right."""
    if not dy.is_cpu or not autograd.is_plain(dy):
        return False
    return dtotal is None or (dtotal.is_cpu and autograd.is_plain(dtotal))
