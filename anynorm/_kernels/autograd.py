"""The kernels of a device as a function that torch's autograd knows the derivative of, for eager mode."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any, NamedTuple

import torch

from anynorm._check import Call, Gradient
from anynorm._forced import force, forced_here, is_forced
from anynorm._kernels import definition_pull
from anynorm._libraries.torch_tensors import lacks_memory
from anynorm._overlap import require_memory
from anynorm._profiled import is_profiled, name_of, named
from anynorm._torch.state import direct_apply, is_followed

Array = Any

# By name, since it is above the kernels: `backward` is called by torch, and so no kernel has been chosen there yet.
_choose = import_module("anynorm._choose")


class Kernels(NamedTuple):
    """What runs a norm and its derivative on the tensors of a device."""

    name: str  # in the table of kernels
    run: Callable[[Call], Any]
    pull: Callable[[Gradient], tuple[Any, ...]]
    surely_pulls: Callable[[Gradient], bool]  # a derivative that is not followed; of others the table is asked


def run(kernels: Kernels, call: Call) -> Any:
    """Return y, or (y, total) where the call has a residual, with what leads back from there."""
    kept = call._replace(x=None, weight=None, bias=None, residual=None)
    return _Norm.apply(call.x, call.weight, call.bias, call.residual, kept, kernels, None)  # type: ignore[no-untyped-call]


def run_again(
    kernels: Kernels, call: Call, x: Array, weight: Any, bias: Array | None, run: Callable[..., Array | None]
) -> Array:
    """The same of a call that has no arrays, for the given ones; ``run`` is tried first."""
    return _apply(x, weight, bias, None, call, kernels, run)


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
        kernels: Kernels,
        run: Callable[..., Array | None] | None,
    ) -> Any:
        result = None if run is None else run(x, weight, bias)
        if result is None:
            result = kernels.run(call._replace(x=x, weight=weight, bias=bias, residual=residual))
        number = type(weight) is float
        ctx.save_for_backward(x if residual is None else result[1], None if number else weight)
        # Of the bias only shape and dtype are looked at, and whether there is one.
        ctx.call, ctx.number, ctx.bias = call, weight if number else None, bias
        ctx.kernels = kernels
        # Torch goes back on a GPU in a thread of its own, where nothing is forced.
        ctx.forced = None if x.is_cpu or not is_forced() else forced_here()
        ctx.set_materialize_grads(False)
        return result

    @staticmethod
    def backward(ctx: Any, dy: Array | None, dtotal: Array | None = None) -> Any:
        if dy is None:  # y has not been used, so there is only the sum
            return dtotal, None, None, dtotal, None, None, None
        x, weight = ctx.saved_tensors
        needs, kernels = ctx.needs_input_grad, ctx.kernels
        weight = ctx.number if weight is None else weight
        call = ctx.call._replace(x=x, weight=weight, bias=ctx.bias)
        given = {"x": x, "weight": weight, "bias": ctx.bias, "the gradient of y": dy, "the gradient of total": dtotal}
        for name, one in given.items():
            if isinstance(one, torch.Tensor) and lacks_memory(one):
                require_memory(name, one)
        gradient = Gradient(call, dy, dtotal, needs[1] or needs[2])
        pull: Callable[[Gradient], tuple[Any, ...]]
        # This is to be differentiated itself, or is_grads_batched has made one tensor of many, which has no memory.
        if torch.is_grad_enabled() or lacks_memory(dy) or (dtotal is not None and lacks_memory(dtotal)):
            kernel, pull = "definition", definition_pull.pull
        elif ctx.forced is None and kernels.surely_pulls(gradient) and not is_followed(torch) and not is_forced():
            kernel, pull = kernels.name, kernels.pull
        else:
            kernel, pull = "", _chosen(gradient, ctx.forced)  # which sees to the name itself
        if kernel and is_profiled():
            name = name_of(call, kernel, "_backward")
            dx, dweight, dbias = named(name, (dy, x, weight, ctx.bias), pull, gradient)
        else:
            dx, dweight, dbias = pull(gradient)
        return (
            dx if needs[0] else None,
            dweight if needs[1] else None,
            dbias if needs[2] else None,
            dx if needs[3] else None,
            None,
            None,
            None,
        )


_apply = direct_apply(torch, _Norm)


def _chosen(gradient: Gradient, forced: str | None) -> Callable[[Gradient], tuple[Any, ...]]:
    """What the table has for a derivative, where ``forced`` was forced when the norm was called."""
    if forced is None or forced_here() is not None:
        return _choose.choose_pull(gradient).pull  # type: ignore[no-any-return]
    force(forced)
    try:
        return _choose.choose_pull(gradient).pull  # type: ignore[no-any-return]
    finally:
        force(None)


def is_plain(tensor: Array) -> bool:
    """Whether the memory of a tensor on the right device holds its numbers."""
    plain = type(tensor) is torch.Tensor and tensor.layout == torch.strided
    return plain and not tensor.is_neg() and not lacks_memory(tensor)
