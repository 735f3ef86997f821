"""The kernels of a device as a function that torch's autograd knows the derivative of, for eager mode."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch

from anynorm._check import Call, Gradient
from anynorm._definition.norms import Rule
from anynorm._forced import force, forced_here, is_forced
from anynorm._kernels import definition_vjp
from anynorm._libraries import library_of
from anynorm._libraries.torch_tensors import lacks_memory
from anynorm._overlap import require_memory
from anynorm._parameters import fits_shape
from anynorm._profiled import is_profiled, name_of, named, profiler_of
from anynorm._torch.state import direct_apply, followed_question
from anynorm._wording import describe, sentence

_is_grad_enabled, _is_followed, _profiler = torch.is_grad_enabled, followed_question(torch), profiler_of(torch)

Array = Any
Vjp = Callable[[Gradient], tuple[Any, ...]]
ChooseVjp = Callable[[Gradient], Any]  # the kernel that the table has for a derivative


class Kernels(NamedTuple):
    """What runs a norm and its derivative on the tensors of a device."""

    name: str  # in the table of kernels
    run: Callable[[Call], Any]
    vjp: Vjp
    surely_takes_vjp: Callable[[Array, Array, Array | None], bool]  # x, dy and dtotal; of others the table is asked
    # Rule, x, weight, bias, axes, eps, weight_offset, dy, and whether the gradients of weight and bias are wanted ->
    # dx, dweight and dbias; or None, for `vjp` to take it.
    quick_vjp: Callable[..., tuple[Any, ...] | None] | None
    choose_vjp: ChooseVjp


# The kernels, the rule without roundings, axes, eps and weight_offset.
Norm = tuple[Kernels, Rule, tuple[int, ...], float, float]


def run(kernels: Kernels, call: Call) -> Any:
    """Return y, or (y, total) where the call has a residual, with what leads back from there."""
    norm = kernels, call.rule.formula, call.axes, call.eps, call.weight_offset
    return _Norm.apply(norm, call.x, call.weight, call.bias, call.residual, call)  # type: ignore[no-untyped-call]


def follow(
    kernels: Kernels,
    rule: Rule,
    x: Array,
    residual: Array | None,
    weight: Any,
    bias: Array | None,
    axis: int | tuple[int, ...],
    eps: float,
    weight_offset: float,
    result: Any,
) -> Any:
    """A result that a kernel has written already, with what leads back from there.

    That torch follows nothing else is for the caller to see to.
    """
    axes = (axis % x.ndim,) if type(axis) is int else axis
    norm = kernels, rule.formula, axes, eps, weight_offset
    return _apply(norm, x, weight, bias, residual, (result,))


class _Norm(torch.autograd.Function):
    """A norm, of which x and the weight are saved; statistics are formed anew, from x as it is read for dx anyway."""

    @staticmethod
    def forward(
        ctx: Any,
        norm: Norm,
        x: Array,
        weight: Any,
        bias: Array | None,
        residual: Array | None,
        by: Any,
    ) -> Any:
        """``by``: the call, or a tuple of its result, which torch would take for one more argument by itself."""
        if type(by) is tuple:
            (result,) = by
        else:
            result = norm[0].run(by._replace(x=x, weight=weight, bias=bias, residual=residual))
        scale = weight if type(weight) is float else None
        ctx.save_for_backward(x if residual is None else result[1], weight if scale is None else None)
        # Torch goes back on a GPU in a thread of its own, where nothing is forced.
        forced = forced_here() if is_forced() and not x.is_cpu else None
        # Of the bias only shape and dtype are looked at, and whether there is one.
        ctx.kept = norm, scale, bias, forced
        ctx.set_materialize_grads(False)
        return result

    @staticmethod
    def backward(ctx: Any, dy: Array | None, dtotal: Array | None = None) -> Any:
        if dy is None:  # y has not been used, so there is only the sum
            return None, dtotal, None, None, dtotal, None
        norm, scale, bias, forced = ctx.kept
        x, weight = ctx.saved_tensors
        needs = ctx.needs_input_grad
        parameters, found = needs[2] or needs[3], None
        is_usual = forced is None and _is_usual()
        kernels, rule, axes, eps, weight_offset = norm
        if is_usual and dtotal is None and kernels.quick_vjp is not None and not dy.is_neg():
            found = kernels.quick_vjp(rule, x, weight, bias, axes, eps, weight_offset, dy, parameters)
        if found is None:
            weight = scale if weight is None else weight
            found = _vjp(norm, x, weight, bias, dy, dtotal, parameters, is_usual, forced)
        dx, dweight, dbias = found
        return (
            None,
            dx if needs[1] else None,
            dweight if needs[2] else None,
            dbias if needs[3] else None,
            dx if needs[4] else None,
            None,
        )


_apply = direct_apply(torch, _Norm)


def _is_usual() -> bool:
    """Whether torch does nothing but go back, and no kernel is forced."""
    return not (_is_grad_enabled() or is_forced() or _profiler._is_profiler_enabled or _is_followed())


def _vjp(
    norm: Norm, x: Array, weight: Any, bias: Array | None, dy: Array, dtotal: Array | None, parameters: bool,
    is_usual: bool, forced: str | None,
) -> tuple[Any, ...]:  # fmt: skip
    """Return dx, dweight and dbias, whatever the arrays are and whatever torch is doing."""
    kernels, rule, axes, eps, weight_offset = norm
    require_unchanged(rule, axes, x, weight, bias, dy)
    given = {"x": x, "weight": weight, "bias": bias, "the gradient of y": dy, "the gradient of total": dtotal}
    for name, one in given.items():
        if isinstance(one, torch.Tensor) and lacks_memory(one):
            require_memory(name, one)
    library = library_of(x)
    precision = library.precision(x)
    call = Call(rule, library, precision, x, axes, eps, weight, bias, weight_offset, None, None, None)
    gradient = Gradient(call, dy, dtotal, parameters)
    if is_usual and call.rule.is_plain and kernels.surely_takes_vjp(x, dy, dtotal):
        return kernels.vjp(gradient)
    if is_for_definition(dy, dtotal):
        if not is_profiled():
            return definition_vjp.vjp(gradient)
        name = name_of(call, "definition", "_backward")
        found: tuple[Any, ...] = named(name, (dy, x, weight, bias), definition_vjp.vjp, gradient)
        return found
    return _chosen(kernels.choose_vjp, gradient, forced)(gradient)  # which sees to the name itself


def require_unchanged(rule: Rule, axes: tuple[int, ...], x: Array, weight: Any, bias: Array | None, dy: Array) -> None:
    """Raise RuntimeError where something saved has another shape or place by now, or x another dtype, than in the call.

    ``x.data = other`` and hooks for saved tensors can bring that about, and the kernels would read and write elsewhere.
    """
    shape = tuple(dy.shape)
    row = tuple([shape[axis] for axis in axes])
    for name, one, expected in (("x", x, shape), ("weight", weight, row if rule.averaged else ()), ("bias", bias, row)):
        if not isinstance(one, torch.Tensor):
            continue
        dtype, own = dy.dtype if one is x else one.dtype, tuple(one.shape)
        fits = own == expected or (one is not x and rule.averaged and fits_shape(own, shape, axes))
        if not fits or one.device != dy.device or one.dtype != dtype:
            must = f"be as it was in the call, of shape {tuple(expected)} and {dtype} on {dy.device}"
            got, do = f"{describe(one)} on {one.device}", "give it other data after backward(), and see to hooks"
            raise RuntimeError(sentence(name, must, got, do))


def is_for_definition(*gradients: Array | None) -> bool:
    """Whether only the definition can take a derivative.

    It is to be differentiated itself, or is_grads_batched has made one tensor of many gradients, which has no memory.
    """
    return torch.is_grad_enabled() or any(one is not None and lacks_memory(one) for one in gradients)


def _chosen(choose_vjp: ChooseVjp, gradient: Gradient, forced: str | None) -> Vjp:
    """What the table has for a derivative, where ``forced`` was forced when the norm was called."""
    if forced is None or forced_here() is not None:
        return choose_vjp(gradient).vjp  # type: ignore[no-any-return]
    force(forced)
    try:
        return choose_vjp(gradient).vjp  # type: ignore[no-any-return]
    finally:
        force(None)


def is_plain(tensor: Array) -> bool:
    """Whether the memory of a tensor on the right device holds its numbers."""
    plain = type(tensor) is torch.Tensor and tensor.layout is torch.strided
    return plain and not tensor.is_neg() and not lacks_memory(tensor)
