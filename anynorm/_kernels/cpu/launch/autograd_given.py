"""Moments, and norms that are given some, as functions that torch's autograd can differentiate, for eager mode."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from anynorm._check import Call, Gradient
from anynorm._definition.scaling import product
from anynorm._kernels import by_moments, definition
from anynorm._kernels.autograd import ChooseVjp, is_for_definition, require_unchanged
from anynorm._kernels.cpu.launch.given import run as run_kernel
from anynorm._kernels.cpu.launch.given import run_moments as reduce_by_kernel
from anynorm._libraries.torch_tensors import lacks_memory
from anynorm._moments import PARTS, Moments, arrays_of, of_arrays, statistics_of
from anynorm._moments_gradient import MomentsGradient, in_factors, parts_of
from anynorm._overlap import require_memory

Array = Any
Choose = Callable[[Call], Any]  # the kernel that the table has for a call


def run(call: Call, choose_vjp: ChooseVjp) -> Array:
    """Return y, by the moments that the call gives, with what leads back from there."""
    moments: Any = call.moments
    plan = call._replace(x=None, weight=None, bias=None, moments=None), moments.count, choose_vjp
    return _Given.apply(plan, call.x, call.weight, call.bias, *arrays_of(moments))  # type: ignore[no-untyped-call]


def run_moments(call: Call, choose: Choose) -> Moments:
    """Return the moments of the call's array, likewise."""
    count, *arrays = _Moments.apply((call._replace(x=None), choose), call.x)  # type: ignore[no-untyped-call]
    return of_arrays(count, arrays, call.library.namespace)


class _Given(torch.autograd.Function):
    """A norm that is given moments, of which their arrays, x and the weight are saved."""

    @staticmethod
    def forward(
        ctx: Any,
        plan: tuple[Call, Any, ChooseVjp],
        x: Array,
        weight: Any,
        bias: Array | None,
        *arrays: Array | None,
    ) -> Array:
        scale = weight if type(weight) is float else None
        ctx.save_for_backward(x, weight if scale is None else None, *arrays)
        # Of the bias only shape and dtype are looked at, and whether there is one.
        ctx.kept = plan, scale, bias
        ctx.set_materialize_grads(False)
        call, count, _ = plan
        moments = of_arrays(count, arrays, call.library.namespace)
        return run_kernel(call._replace(x=x, weight=weight, bias=bias, moments=moments))

    @staticmethod
    def backward(ctx: Any, dy: Array | None) -> Any:
        needs = ctx.needs_input_grad
        if dy is None:
            return (None,) * len(needs)
        x, weight, *arrays = _saved(ctx)
        (call, count, choose_vjp), scale, bias = ctx.kept
        require_unchanged(call.rule, call.axes, x, weight, bias, dy)
        moments = of_arrays(count, arrays, call.library.namespace)
        call = call._replace(x=x, weight=scale if weight is None else weight, bias=bias, moments=moments)
        gradient = Gradient(call, dy, None, needs[2] or needs[3])
        found = by_moments.vjp(gradient) if is_for_definition(dy) else choose_vjp(gradient).vjp(gradient)
        by_arrays = _by_arrays(moments, found[3]) if any(needs[4:]) else [None] * len(arrays)
        return tuple([one if need else None for one, need in zip((None, *found[:3], *by_arrays), needs, strict=True)])


class _Moments(torch.autograd.Function):
    """Moments, of which x is saved with what they are made of."""

    @staticmethod
    def forward(ctx: Any, plan: tuple[Call, Choose], x: Array) -> Any:
        moments = reduce_by_kernel(plan[0]._replace(x=x))
        arrays = arrays_of(moments)
        ctx.save_for_backward(x, *arrays)
        ctx.kept = plan, moments.count
        ctx.set_materialize_grads(False)
        unit = statistics_of(moments).unit
        if unit is not None:
            ctx.mark_non_differentiable(unit)
        return moments.count, *arrays

    @staticmethod
    def backward(ctx: Any, _: Any, *grads: Array | None) -> Any:
        x, *arrays = _saved(ctx)
        given = dict(zip(PARTS, grads, strict=True))
        # What the mean and the squares are rounded to, and what that lacks, are used in sums alone.
        by_mean, by_squares = (
            next((given[name] for name in names if given[name] is not None), None)
            for names in (("mean", "mean_low", "mean_rest"), ("squares", "squares_low"))
        )
        if by_mean is None and by_squares is None:
            return None, None
        (call, choose), count = ctx.kept
        call, moments = call._replace(x=x), of_arrays(count, arrays, call.library.namespace)
        by_variance = None if by_squares is None else by_squares * count
        gradient = in_factors(by_mean, by_variance, None, statistics_of(moments).unit, about_zero=False)
        if is_for_definition(*grads):
            if torch.is_grad_enabled():  # the moments, too, are to be differentiated
                moments = definition.run_moments(call)
            return None, by_moments.vjp_moments(call, moments, gradient)
        return None, choose(call).vjp_moments(call, moments, gradient)


def _saved(ctx: Any) -> Any:
    for one in ctx.saved_tensors:
        if one is not None and lacks_memory(one):
            require_memory("a saved tensor", one)
    return ctx.saved_tensors


def _by_arrays(moments: Moments, gradient: MomentsGradient) -> list[Array | None]:
    """The gradients of the arrays that moments are made of."""
    found, xp = statistics_of(moments), moments.namespace
    given: Any = parts_of(gradient)
    by_mean, by_variance, *factors = given
    factors = [one for one in factors if one is not None] + ([] if found.unit is None else [1.0 / found.unit])
    by_mean, by_squares = product(xp, by_mean, factors), product(xp, by_variance / moments.count, factors * 2)
    by_part = dict.fromkeys(("mean", "mean_low", "mean_rest"), by_mean) | dict.fromkeys(
        ("squares", "squares_low"), by_squares
    )
    arrays = dict(zip(PARTS, arrays_of(moments), strict=True))
    return [None if arrays[name] is None else by_part.get(name) for name in PARTS]
