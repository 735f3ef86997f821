"""The norms as operators of torch.library, which is how torch.compile and torch.export keep them in a graph.

Each has a fake implementation, which finds shapes, and a registered derivative, which is an operator again. Eager mode
has no need of them: to dispatch an operator through Python takes longer than to normalize a few rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from anynorm import _norms, _torch_own
from anynorm._check import Gradient, check, check_gradient
from anynorm._choose import choose_pull
from anynorm._definition import LAYER_NORM, RMS_NORM, SCALE_NORM, Rule
from anynorm._kernels import definition

Tensor = torch.Tensor

_LIBRARY: Any = torch.library.Library("anynorm", "DEF")  # type: ignore[no-untyped-call]
_OPTIONS = "int[] axis, float eps, float weight_offset"
_RULES = {rule.name: rule for rule in (LAYER_NORM, RMS_NORM, SCALE_NORM)}


def _given(options: Sequence[Any]) -> dict[str, Any]:
    """What the norms take by name, from the last arguments of an operator."""
    axis, eps, weight_offset = options
    return {"axis": axis[0] if len(axis) == 1 else tuple(axis), "eps": eps, "weight_offset": weight_offset}


def _run(rule: Rule, x: Tensor, weight: Tensor | None, bias: Tensor | None, *options: Any) -> Tensor:
    """The operator itself; autograd is above it."""
    if torch.autograd.forward_ad._current_level >= 0:  # torch would go on with a tangent of 0
        raise NotImplementedError(
            f"the operator anynorm::{rule.name} has no forward-mode derivative; call anynorm.torch.{rule.name}"
        )
    given = _given(options)
    if not x.is_cpu:
        return _torch_own.norm(rule, x, weight, bias, **given)
    with torch.no_grad():
        return _by_name(rule, x, weight, bias, **given)


def _by_name(rule: Rule, x: Tensor, weight: Any, bias: Tensor | None, *, weight_offset: float, **given: Any) -> Tensor:
    """The public function of a norm."""
    if not rule.averaged:
        return _norms.scale_norm(x, weight, **given)  # type: ignore[no-any-return]
    norm = _norms.layer_norm if rule.centred else _norms.rms_norm
    return norm(x, weight, bias, weight_offset=weight_offset, **given)  # type: ignore[no-any-return]


def _gradient(rule: Rule, dy: Tensor, x: Tensor, weight: Tensor | None, bias: Tensor | None, *options: Any) -> Gradient:
    given = _given(options)
    offset = given.pop("weight_offset")
    return check_gradient(check(rule, x, weight, bias, given["axis"], given["eps"], weight_offset=offset), dy)


def _pull(
    rule: Rule, dy: Tensor, x: Tensor, weight: Tensor | None, bias: Tensor | None, *options: Any
) -> tuple[Tensor, Tensor, Tensor]:
    """The derivative; a gradient that does not exist is an empty tensor, for an operator returns no None."""
    with torch.no_grad():
        gradient = _gradient(rule, dy, x, weight, bias, *options)
        found = choose_pull(gradient).pull(gradient)
    dx, dweight, dbias = (x.new_empty(0) if one is None else one for one in found)
    return dx, dweight, dbias


def _pull_fake(
    rule: Rule, dy: Tensor, x: Tensor, weight: Tensor | None, bias: Tensor | None, *options: Any
) -> tuple[Tensor, Tensor, Tensor]:
    dweight, dbias = (x.new_empty(0) if one is None else one.new_empty(one.shape) for one in (weight, bias))
    return torch.empty_like(x), dweight, dbias


def _pull_twice(rule: Rule, ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
    """The derivative of the derivative, by way of the definition."""
    is_followed = torch.is_grad_enabled()
    with torch.enable_grad():
        inputs = [None if one is None else one.view_as(one) for one in ctx.saved_tensors]
        gradient = _gradient(rule, *inputs, *ctx.options)  # type: ignore[arg-type]
        pairs = [
            (found, grad)
            for found, grad in zip(definition.pull(gradient), grads, strict=True)
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
    results: list[Any] = [None] * 7
    for i, one in zip(wanted, found, strict=True):
        results[i] = one
    return tuple(results)


def _remember(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    *tensors, axis, eps, weight_offset = inputs
    ctx.save_for_backward(*tensors)
    ctx.options = axis, eps, weight_offset


def _define(rule: Rule) -> None:
    """Register one norm and its derivative."""
    name, derivative = rule.name, f"{rule.name}_backward"
    tensors = "Tensor x, Tensor? weight, Tensor? bias"
    _LIBRARY.define(f"{name}({tensors}, {_OPTIONS}) -> Tensor")
    _LIBRARY.define(f"{derivative}(Tensor dy, {tensors}, {_OPTIONS}) -> (Tensor, Tensor, Tensor)")

    def run(*arguments: Any) -> Tensor:
        return _run(rule, *arguments)

    def run_fake(x: Tensor, *others: Any) -> Tensor:
        return torch.empty_like(x)

    def pull(*arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
        return _pull(rule, *arguments)

    def pull_fake(*arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
        return _pull_fake(rule, *arguments)

    def backward(ctx: Any, dy: Tensor) -> tuple[Any, ...]:
        x, weight, bias = ctx.saved_tensors
        dx, dweight, dbias = getattr(torch.ops.anynorm, derivative)(dy, x, weight, bias, *ctx.options)
        return dx, None if weight is None else dweight, None if bias is None else dbias, None, None, None

    def backward_of_backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
        return _pull_twice(rule, ctx, *grads)

    for operator, function, fake in ((name, run, run_fake), (derivative, pull, pull_fake)):
        _LIBRARY.impl(operator, function, "CompositeExplicitAutograd")
        torch.library.register_fake(f"anynorm::{operator}", fake, lib=_LIBRARY)
    torch.library.register_autograd(f"anynorm::{name}", backward, setup_context=_remember, lib=_LIBRARY)
    torch.library.register_autograd(
        f"anynorm::{derivative}", backward_of_backward, setup_context=_remember, lib=_LIBRARY
    )


for _rule in _RULES.values():
    _define(_rule)


def define(
    rule: Rule, x: Tensor, weight: Any, bias: Tensor | None, axis: int | tuple[int, ...], eps: float, offset: float
) -> Tensor:
    """The norm as the operations that it is defined by, to be traced one by one."""
    return _by_name(rule, x, weight, bias, axis=axis, eps=eps, weight_offset=offset)


def norm(
    rule: Rule, x: Tensor, weight: Any, bias: Tensor | None, axis: int | tuple[int, ...], eps: float, offset: float
) -> Tensor:
    """Call the operator of a norm."""
    if isinstance(weight, (int, float)):
        weight = x.new_tensor(weight, dtype=torch.float64)
    axes = list(axis) if isinstance(axis, (tuple, list)) else [axis]
    operator = getattr(torch.ops.anynorm, rule.name)
    return operator(x, weight, bias, axes, float(eps), float(offset))  # type: ignore[no-any-return]
