"""The kernels as a function that torch's autograd knows the derivative of, for eager mode."""

from __future__ import annotations

from typing import Any

import torch

from anynorm._check import Call, Gradient
from anynorm._choose import choose_pull
from anynorm._kernels import definition
from anynorm._kernels.cpu.call import run as run_kernel

Array = Any


def run(call: Call) -> Any:
    """Return y, or (y, total) where the call has a residual, with what leads back from there."""
    kept = call._replace(x=None, weight=None if call.rule.averaged else call.weight, bias=None, residual=None)
    return _Norm.apply(call.x, call.weight, call.bias, call.residual, kept)  # type: ignore[no-untyped-call]


class _Norm(torch.autograd.Function):
    """A norm, of which x and the weight are saved; statistics are formed anew, from x as it is read for dx anyway."""

    @staticmethod
    def forward(ctx: Any, x: Array, weight: Any, bias: Array | None, residual: Array | None, call: Call) -> Any:
        result = run_kernel(call._replace(x=x, weight=weight, bias=bias, residual=residual))
        ctx.save_for_backward(x if residual is None else result[1], weight if type(weight) is not float else None)
        # Of the bias only shape and dtype are looked at, and whether there is one.
        ctx.call, ctx.bias = call if type(weight) is not float else call._replace(weight=weight), bias
        ctx.set_materialize_grads(False)
        return result

    @staticmethod
    def backward(ctx: Any, dy: Array | None, dtotal: Array | None = None) -> Any:
        if dy is None:  # y has not been used, so there is only the sum
            return dtotal, None, None, dtotal, None
        x, weight = ctx.saved_tensors
        call = ctx.call
        call = call._replace(x=x, weight=weight if weight is not None else call.weight, bias=ctx.bias)
        gradient = Gradient(call, dy, dtotal, any(ctx.needs_input_grad[1:3]))
        if torch.is_grad_enabled():  # this is to be differentiated itself
            dx, dweight, dbias = definition.pull(gradient)
        else:
            dx, dweight, dbias = choose_pull(gradient).pull(gradient)
        found = (dx, dweight, dbias, dx)
        return *(one if wanted else None for one, wanted in zip(found, ctx.needs_input_grad, strict=False)), None
