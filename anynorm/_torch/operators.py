"""The norms as operators of torch.library, which is how torch.compile and torch.export keep them in a graph.

Each has a fake implementation, which finds shapes, and a registered derivative, which is an operator again. Eager mode
has no need of them: to dispatch an operator through Python takes longer than to normalize a few rows.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch

from anynorm import _norms
from anynorm._by_convention import resolved, without_offset
from anynorm._check import Call, Gradient, check, check_gradient
from anynorm._choose import choose_vjp
from anynorm._convention import Convention, check_convention, decoded, encoded
from anynorm._definition.norms import LAYER_NORM, RMS_NORM, SCALE_NORM, Rule
from anynorm._kernels import definition_vjp
from anynorm._numbers import check_number
from anynorm._portion_vjp import vjp_of_portion
from anynorm._torch import native
from anynorm._torch.state import below_autograd, has_tangent, is_followed
from anynorm._types import Axis

Tensor = torch.Tensor

_LIBRARY: Any = torch.library.Library("anynorm", "DEF")  # type: ignore[no-untyped-call]
_OPTIONS = "int[] axis, float eps, float weight_offset"
_PLAIN = (torch.Tensor, torch.nn.Parameter)


def _given(options: Sequence[Any]) -> dict[str, Any]:
    """What the norms take by name, from the last arguments of an operator."""
    axis, eps, weight_offset, *by = options
    given = {"axis": axis[0] if len(axis) == 1 else tuple(axis), "eps": eps, "weight_offset": weight_offset}
    return given | {"convention": decoded(by[0])} if by else given


def _run(rule: Rule, x: Tensor, weight: Tensor | None, bias: Tensor | None, *options: Any) -> Tensor:
    """The operator itself; autograd is above it."""
    if has_tangent(torch, [one for one in (x, weight, bias) if one is not None]):  # torch would go on with one of 0
        raise NotImplementedError(
            f"the operator anynorm::{rule.name} has no forward-mode derivative; call anynorm.torch.{rule.name}"
        )
    given = _given(options)
    with torch.no_grad():
        return _norms.run(
            rule, x, weight, bias, given["axis"], given["eps"], given["weight_offset"], given.get("convention"),
            choose=native.choose,
        )  # fmt: skip


def by_name(rule: Rule, x: Tensor, weight: Any, bias: Tensor | None, *, weight_offset: float, **given: Any) -> Tensor:
    """Call the public function of a norm, whose operations may be traced one by one."""
    if not rule.averaged:
        return _norms.scale_norm(x, weight, **given)
    norm = _norms.layer_norm if rule.centred else _norms.rms_norm
    return norm(x, weight, bias, weight_offset=weight_offset, **given)


def _call(rule: Rule, x: Tensor, weight: Tensor | None, bias: Tensor | None, *options: Any) -> tuple[Call, float]:
    """The call, and the portion of the features that its statistics are of."""
    given = _given(options)
    eps, offset, portion = given["eps"], given["weight_offset"], 1.0
    if given.get("convention") is not None:
        rule, eps, offset, portion = resolved(rule, given["convention"], eps, offset, weight is not None)
    return check(rule, x, weight, bias, given["axis"], eps, weight_offset=offset), portion


def _vjp(
    rule: Rule, dy: Tensor, x: Tensor, weight: Tensor | None, bias: Tensor | None, *options: Any
) -> tuple[Tensor, Tensor, Tensor]:
    """The derivative; a gradient that does not exist is an empty tensor, for an operator returns no None."""
    with torch.no_grad():
        found = _derived(rule, dy, x, weight, bias, *options, by=lambda gradient: choose_vjp(gradient).vjp(gradient))
    dx, dweight, dbias = (x.new_empty(0) if one is None else one for one in found)
    return dx, dweight, dbias


def _derived(
    rule: Rule, dy: Tensor, x: Tensor, *given: Any, by: Callable[[Gradient], tuple[Any, ...]]
) -> tuple[Any, ...]:
    """The gradients dx, dweight and dbias; of statistics of a portion by way of moments, else ``by``."""
    call, portion = _call(rule, x, *given)
    return by(check_gradient(call, dy)) if portion == 1.0 else vjp_of_portion(call, portion)[1](dy)


def _vjp_fake(
    rule: Rule, dy: Tensor, x: Tensor, weight: Tensor | None, bias: Tensor | None, *options: Any
) -> tuple[Tensor, Tensor, Tensor]:
    dweight, dbias = (x.new_empty(0) if one is None else one.new_empty(one.shape) for one in (weight, bias))
    return torch.empty_like(x), dweight, dbias


def _vjp_twice(rule: Rule, ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
    """The derivative of the derivative, by way of the definition."""
    is_followed = torch.is_grad_enabled()
    with torch.enable_grad():
        inputs = [None if one is None else one.view_as(one) for one in ctx.saved_tensors]
        derived = _derived(rule, *inputs, *ctx.options, by=definition_vjp.vjp)  # type: ignore[arg-type]
        pairs = [
            (found, grad)
            for found, grad in zip(derived, grads, strict=True)
            if found is not None and found.requires_grad
        ]
        wanted = {i: one for i, one in enumerate(inputs) if one is not None and one.requires_grad}
        found = torch.autograd.grad(
            [one for one, _ in pairs],
            list(wanted.values()),
            [grad for _, grad in pairs],
            allow_unused=True,
            create_graph=is_followed,
        )
    results: list[Any] = [None] * (4 + len(ctx.options))
    for i, one in zip(wanted, found, strict=True):
        results[i] = one
    return tuple(results)


def _register(
    name: str,
    signature: str,
    run: Callable[..., Any],
    at_once: Callable[..., Any],
    fake: Callable[..., Any],
    backward: Callable[..., tuple[Any, ...]],
) -> None:
    """Make an operator: ``run`` is what it does, ``at_once`` the same, where nothing but autograd observes it.

    torch.library.register_autograd does it in more steps, which take longer than the norm of a few rows. What
    ``at_once`` returns may be None where a gradient is wanted: autograd does not know of it then.
    """
    _LIBRARY.define(name + signature)
    count = signature.count("Tensor", 0, signature.index("->"))
    operator = getattr(torch.ops.anynorm, name).default

    below = below_autograd(torch)

    def run_below(*arguments: Any) -> Any:
        with below():
            return operator(*arguments)

    def save(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.save_for_backward(*inputs[:count])
        ctx.options = inputs[count:]

    class Followed(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, *arguments: Any) -> Any:
            save(ctx, arguments, None)
            return run_below(*arguments)

        @staticmethod
        def backward(ctx: Any, *grads: Tensor) -> Any:
            return backward(ctx, *grads)

    def follow(*arguments: Any) -> Any:
        tensors = [one for one in arguments if isinstance(one, torch.Tensor)]
        wanted = torch.is_grad_enabled() and any(one.requires_grad for one in tensors)
        if all(type(one) in _PLAIN and one.is_cpu for one in tensors) and not is_followed(torch):
            result = at_once(wanted, *arguments)
            if result is not None:
                return result
        return Followed.apply(*arguments) if wanted else run_below(*arguments)  # type: ignore[no-untyped-call]

    _LIBRARY.impl(name, run, "CompositeExplicitAutograd")
    if below is None:
        torch.library.register_autograd(f"anynorm::{name}", backward, setup_context=save, lib=_LIBRARY)
    else:
        _LIBRARY.impl(name, follow, "Autograd")
    torch.library.register_fake(f"anynorm::{name}", fake, lib=_LIBRARY)


def _define(rule: Rule, name: str, more: str) -> None:
    """Register one norm and its derivative, with more options than all have."""
    derivative, options = f"{name}_backward", _OPTIONS + more
    tensors = "Tensor x, Tensor? weight, Tensor? bias"

    def run_at_once(wanted: bool, x: Tensor, weight: Tensor | None, bias: Tensor | None, *options: Any) -> Tensor:
        return by_name(rule, x, weight, bias, **_given(options))

    def run_fake(x: Tensor, *others: Any) -> Tensor:
        return torch.empty_like(x)

    def backward(ctx: Any, dy: Tensor) -> tuple[Any, ...]:
        x, weight, bias = ctx.saved_tensors
        dx, dweight, dbias = getattr(torch.ops.anynorm, derivative)(dy, x, weight, bias, *ctx.options)
        no_options = [None] * len(ctx.options)
        return dx, None if weight is None else dweight, None if bias is None else dbias, *no_options

    def vjp_at_once(wanted: bool, *arguments: Any) -> Any:
        return None if wanted else _vjp(rule, *arguments)

    _register(name, f"({tensors}, {options}) -> Tensor", partial(_run, rule), run_at_once, run_fake, backward)
    _register(
        derivative,
        f"(Tensor dy, {tensors}, {options}) -> (Tensor, Tensor, Tensor)",
        partial(_vjp, rule),
        vjp_at_once,
        partial(_vjp_fake, rule),
        partial(_vjp_twice, rule),
    )


for _rule in (LAYER_NORM, RMS_NORM, SCALE_NORM):
    _define(_rule, _rule.name, "")
    _define(_rule, f"{_rule.name}_by", ", str convention")


def norm(
    rule: Rule, x: Tensor, weight: Any, bias: Tensor | None, axis: Axis, eps: float, offset: float,
    convention: Convention | str | None = None,
) -> Tensor:  # fmt: skip
    """Call the operator of a norm; with a convention, whose eps and offset are in theirs, that which has one."""
    if isinstance(weight, (int, float)):
        weight = x.new_tensor(weight, dtype=torch.float64)
    axes = list(axis) if isinstance(axis, (tuple, list)) else [axis]
    eps, offset = check_number("eps", eps, least=0.0), check_number("weight_offset", offset)
    operator: Any
    if convention is None:
        operator = getattr(torch.ops.anynorm, rule.name)
        return operator(x, weight, bias, axes, eps, offset)  # type: ignore[no-any-return]
    operator = getattr(torch.ops.anynorm, f"{rule.name}_by")
    by = encoded(without_offset(check_convention(convention)))
    return operator(x, weight, bias, axes, eps, offset, by)  # type: ignore[no-any-return]
