"""The kernels of a device as a function that torch's autograd knows the derivative of, for eager mode."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch

from anynorm._check import Call, Gradient
from anynorm._forced import force, forced_here, is_forced
from anynorm._kernels import definition_pull
from anynorm._libraries.torch_tensors import lacks_memory
from anynorm._overlap import require_memory
from anynorm._profiled import is_profiled, name_of, named, profiler_of
from anynorm._torch.state import direct_apply, is_followed

Array = Any
Pull = Callable[[Gradient], tuple[Any, ...]]
Run = Callable[..., Any]  # x, weight and bias -> y; None: a call like this does not go that way
ChoosePull = Callable[[Gradient], Any]  # the kernel that the table has for a derivative


class Kernels(NamedTuple):
    """What runs a norm and its derivative on the tensors of a device."""

    name: str  # in the table of kernels
    run: Callable[[Call], Any]
    pull: Pull
    surely_pulls: Callable[[Array, Array, Array | None], bool]  # x, dy and dtotal; of others the table is asked


class _Plan(NamedTuple):
    """What calls for different tensors have in common."""

    kernels: Kernels
    choose_pull: ChoosePull
    call: Call  # without arrays
    run: Run | None  # tried before the kernels' own


def run(kernels: Kernels, choose_pull: ChoosePull, call: Call) -> Any:
    """Return y, or (y, total) where the call has a residual, with what leads back from there."""
    plan = _Plan(kernels, choose_pull, _with_arrays(call, None, None, None), None)
    return _Norm.apply(plan, call.x, call.weight, call.bias, call.residual)  # type: ignore[no-untyped-call]


def differentiable(kernels: Kernels, choose_pull: ChoosePull, call: Call, run: Run) -> Callable[..., Array]:
    """Make a function of x, weight and bias that does what a call without arrays says, by ``run`` where that does it.

    Torch's autograd can differentiate it; that torch follows nothing else is for the caller to see to.
    """
    apply, plan = _apply, _Plan(kernels, choose_pull, call, run)

    def follow(x: Array, weight: Any, bias: Array | None) -> Array:
        return apply(plan, x, weight, bias, None)

    return follow


class _Norm(torch.autograd.Function):
    """A norm, of which x and the weight are saved; statistics are formed anew, from x as it is read for dx anyway."""

    @staticmethod
    def forward(ctx: Any, plan: _Plan, x: Array, weight: Any, bias: Array | None, residual: Array | None) -> Any:
        result = None if plan.run is None else plan.run(x, weight, bias)
        if result is None:
            result = plan.kernels.run(_with_arrays(plan.call, x, weight, bias, residual))
        scale = weight if type(weight) is float else None
        ctx.save_for_backward(x if residual is None else result[1], weight if scale is None else None)
        # Torch goes back on a GPU in a thread of its own, where nothing is forced.
        forced = forced_here() if is_forced() and not x.is_cpu else None
        # Of the bias only shape and dtype are looked at, and whether there is one.
        ctx.kept = plan, scale, bias, forced
        ctx.set_materialize_grads(False)
        return result

    @staticmethod
    def backward(ctx: Any, dy: Array | None, dtotal: Array | None = None) -> Any:
        if dy is None:  # y has not been used, so there is only the sum
            return None, dtotal, None, None, dtotal
        plan, scale, bias, forced = ctx.kept
        x, weight = ctx.saved_tensors
        needs = ctx.needs_input_grad
        call = _with_arrays(plan.call, x, scale if weight is None else weight, bias)
        gradient = Gradient(call, dy, dtotal, needs[2] or needs[3])
        if forced is None and _is_usual(plan.kernels, x, weight, dy, dtotal):
            dx, dweight, dbias = plan.kernels.pull(gradient)
        else:
            dx, dweight, dbias = _pull(plan, gradient, forced)
        return (
            None,
            dx if needs[1] else None,
            dweight if needs[2] else None,
            dbias if needs[3] else None,
            dx if needs[4] else None,
        )


_apply = direct_apply(torch, _Norm)


def _with_arrays(call: Call, x: Array, weight: Any, bias: Array | None, residual: Array | None = None) -> Call:
    """The call on other arrays; by `_replace` it would take three times as long."""
    rule, library, precision, _, axes, eps, _, _, offset, moments, _, out, skip_nan = call
    return Call(rule, library, precision, x, axes, eps, weight, bias, offset, moments, residual, out, skip_nan)


def _is_usual(kernels: Kernels, x: Array, weight: Array | None, dy: Array, dtotal: Array | None) -> bool:
    """Whether nothing but the kernels of the device is to take the derivative; the quick questions come first."""
    return not (
        torch.is_grad_enabled()
        or is_forced()
        or profiler_of(torch)._is_profiler_enabled
        or not kernels.surely_pulls(x, dy, dtotal)
        or lacks_memory(x)
        or (weight is not None and lacks_memory(weight))
        or is_followed(torch)
    )


def _pull(plan: _Plan, gradient: Gradient, forced: str | None) -> tuple[Any, ...]:
    """Return dx, dweight and dbias whatever the arrays are, and whatever torch is doing."""
    call, dy, dtotal, _ = gradient
    given = {"x": call.x, "weight": call.weight, "bias": call.bias}
    given |= {"the gradient of y": dy, "the gradient of total": dtotal}
    for name, one in given.items():
        if isinstance(one, torch.Tensor) and lacks_memory(one):
            require_memory(name, one)
    # This is to be differentiated itself, or is_grads_batched has made one tensor of many, which has no memory.
    if torch.is_grad_enabled() or lacks_memory(dy) or (dtotal is not None and lacks_memory(dtotal)):
        if not is_profiled():
            return definition_pull.pull(gradient)
        name = name_of(call, "definition", "_backward")
        found: tuple[Any, ...] = named(name, (dy, call.x, call.weight, call.bias), definition_pull.pull, gradient)
        return found
    return _chosen(plan.choose_pull, gradient, forced)(gradient)  # which sees to the name itself


def _chosen(choose_pull: ChoosePull, gradient: Gradient, forced: str | None) -> Pull:
    """What the table has for a derivative, where ``forced`` was forced when the norm was called."""
    if forced is None or forced_here() is not None:
        return choose_pull(gradient).pull  # type: ignore[no-any-return]
    force(forced)
    try:
        return choose_pull(gradient).pull  # type: ignore[no-any-return]
    finally:
        force(None)


def is_plain(tensor: Array) -> bool:
    """Whether the memory of a tensor on the right device holds its numbers."""
    plain = type(tensor) is torch.Tensor and tensor.layout is torch.strided
    return plain and not tensor.is_neg() and not lacks_memory(tensor)
