"""The kernels as a function that torch's autograd knows the derivative of, for eager mode."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any

import torch

from anynorm._check import Call, Gradient
from anynorm._forced import is_forced
from anynorm._kernels import definition_pull
from anynorm._kernels.cpu.call import run as run_kernel
from anynorm._kernels.cpu.pull import pull
from anynorm._kernels.cpu.torch_state import direct_apply, is_followed
from anynorm._overlap import lacks_memory, require_memory
from anynorm._profiled import is_profiled, name_of, named

Array = Any

# By name, since it is above the kernels: `backward` is called by torch, and so no kernel has been chosen there yet.
_choose = import_module("anynorm._choose")


def run(call: Call) -> Any:
    """Return y, or (y, total) where the call has a residual, with what leads back from there."""
    kept = call._replace(x=None, weight=None, bias=None, residual=None)
    return _Norm.apply(call.x, call.weight, call.bias, call.residual, kept, None)  # type: ignore[no-untyped-call]


def run_again(call: Call, x: Array, weight: Any, bias: Array | None, run: Callable[..., Array | None]) -> Array:
    """The same of a call that has no arrays, for the given ones; ``run`` is tried first."""
    return _apply(x, weight, bias, None, call, run)


class _Norm(torch.autograd.Function):
    """A norm, of which x and the weight are saved; statistics are formed anew, from x as it is read for dx anyway."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Array,
        weight: Any,
        bias: Array | None,
        residual: Array | None,
        call: Call,
        run: Callable[..., Array | None] | None,
    ) -> Any:
        result = None if run is None else run(x, weight, bias)
        if result is None:
            result = run_kernel(call._replace(x=x, weight=weight, bias=bias, residual=residual))
        number = type(weight) is float
        ctx.save_for_backward(x if residual is None else result[1], None if number else weight)
        # Of the bias only shape and dtype are looked at, and whether there is one.
        ctx.call, ctx.number, ctx.bias = call, weight if number else None, bias
        ctx.set_materialize_grads(False)
        return result

    @staticmethod
    def backward(ctx: Any, dy: Array | None, dtotal: Array | None = None) -> Any:
        if dy is None:  # y has not been used, so there is only the sum
            return dtotal, None, None, dtotal, None, None
        x, weight = ctx.saved_tensors
        needs = ctx.needs_input_grad
        weight = ctx.number if weight is None else weight
        call = ctx.call._replace(x=x, weight=weight, bias=ctx.bias)
        given = {"x": x, "weight": weight, "bias": ctx.bias, "the gradient of y": dy, "the gradient of total": dtotal}
        for name, one in given.items():
            if isinstance(one, torch.Tensor) and lacks_memory(one):
                require_memory(name, one)
        gradient = Gradient(call, dy, dtotal, needs[1] or needs[2])
        # This is to be differentiated itself, or is_grads_batched has made one tensor of many, which has no memory.
        if torch.is_grad_enabled() or lacks_memory(dy) or (dtotal is not None and lacks_memory(dtotal)):
            kernel, run = "definition", definition_pull.pull
        elif _is_plain(dy) and (dtotal is None or _is_plain(dtotal)) and not is_followed(torch) and not is_forced():
            kernel, run = "cpu", pull
        else:
            kernel, run = "", _choose.choose_pull(gradient).pull  # which sees to the name itself
        if kernel and is_profiled():
            name = name_of(call, kernel, "_backward")
            dx, dweight, dbias = named(name, (dy, x, weight, ctx.bias), run, gradient)
        else:
            dx, dweight, dbias = run(gradient)
        return (
            dx if needs[0] else None,
            dweight if needs[1] else None,
            dbias if needs[2] else None,
            dx if needs[3] else None,
            None,
            None,
        )


_apply = direct_apply(torch, _Norm)


def _is_plain(tensor: Array) -> bool:
    """Whether the memory of a tensor holds its numbers; torch has seen to it that dtype and shape are right."""
    plain = type(tensor) is torch.Tensor and tensor.is_cpu and tensor.layout == torch.strided
    return plain and not tensor.is_neg() and not lacks_memory(tensor)
