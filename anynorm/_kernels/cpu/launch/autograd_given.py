"""Moments, and norms that are given some, as functions that torch's autograd can differentiate, for eager mode."""

from __future__ import annotations

from importlib import import_module
from typing import Any

import torch

from anynorm._check import Call, Gradient
from anynorm._definition.scaling import product
from anynorm._kernels import by_moments, definition
from anynorm._kernels.cpu.launch.given import run as run_kernel
from anynorm._kernels.cpu.launch.given import run_moments as reduce_by_kernel
from anynorm._libraries.torch_tensors import lacks_memory
from anynorm._moments import PARTS, Moments, arrays_of, of_arrays, statistics_of
from anynorm._moments_gradient import MomentsGradient, in_factors, parts_of
from anynorm._overlap import require_memory

Array = Any

# By name, as in autograd.py.
_choose = import_module("anynorm._choose")


def run(call: Call) -> Array:
    """Return y, by the moments that the call gives, with what leads back from there."""
    moments: Any = call.moments
    kept = call._replace(x=None, weight=None, bias=None, moments=None), moments.count
    return _Given.apply(call.x, call.weight, call.bias, *kept, *arrays_of(moments))  # type: ignore[no-untyped-call]


def run_moments(call: Call) -> Moments:
    """Return the moments of the call's array, likewise."""
    count, *arrays = _Moments.apply(call.x, call._replace(x=None))  # type: ignore[no-untyped-call]
    return of_arrays(count, arrays, call.library.namespace)


class _Given(torch.autograd.Function):
    """A norm that is given moments, of which their arrays, x and the weight are saved."""

    @staticmethod
    def forward(
        ctx: Any, x: Array, weight: Any, bias: Array | None, call: Call, count: Any, *arrays: Array | None
    ) -> Array:
        number = type(weight) is float
        ctx.save_for_backward(x, None if number else weight, *arrays)
        # Of the bias only shape and dtype are looked at, and whether there is one.
        ctx.call, ctx.count, ctx.number, ctx.bias = call, count, weight if number else None, bias
        ctx.set_materialize_grads(False)
        moments = of_arrays(count, arrays, call.library.namespace)
        return run_kernel(call._replace(x=x, weight=weight, bias=bias, moments=moments))

    @staticmethod
    def backward(ctx: Any, dy: Array | None) -> Any:
        needs = ctx.needs_input_grad
        if dy is None:
            return (None,) * len(needs)
        x, weight, *arrays = _saved(ctx)
        moments = of_arrays(ctx.count, arrays, ctx.call.library.namespace)
        weight = ctx.number if weight is None else weight
        call = ctx.call._replace(x=x, weight=weight, bias=ctx.bias, moments=moments)
        gradient = Gradient(call, dy, None, needs[1] or needs[2])
        # This is to be differentiated itself, or is_grads_batched has made one tensor of many, which has no memory.
        is_followed = torch.is_grad_enabled() or lacks_memory(dy)
        found = by_moments.pull(gradient) if is_followed else _choose.choose_pull(gradient).pull(gradient)
        by_arrays = _by_arrays(moments, found[3]) if any(needs[5:]) else [None] * len(arrays)
        wanted = [one if need else None for one, need in zip((*found[:3], None, None, *by_arrays), needs, strict=True)]
        return tuple(wanted)


class _Moments(torch.autograd.Function):
    """Moments, of which x is saved with what they are made of."""

    @staticmethod
    def forward(ctx: Any, x: Array, call: Call) -> Any:
        moments = reduce_by_kernel(call._replace(x=x))
        arrays = arrays_of(moments)
        ctx.save_for_backward(x, *arrays)
        ctx.call, ctx.count = call, moments.count
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
        call, moments = ctx.call._replace(x=x), of_arrays(ctx.count, arrays, ctx.call.library.namespace)
        by_variance = None if by_squares is None else by_squares * ctx.count
        gradient = in_factors(by_mean, by_variance, None, statistics_of(moments).unit, about_zero=False)
        if torch.is_grad_enabled():
            return by_moments.pull_moments(call, definition.run_moments(call), gradient), None
        if any(one is not None and lacks_memory(one) for one in grads):
            return by_moments.pull_moments(call, moments, gradient), None
        return _choose.choose(call).pull_moments(call, moments, gradient), None


def _saved(ctx: Any) -> Any:
    for one in ctx.saved_tensors:
        if one is not None and lacks_memory(one):
            require_memory("a saved tensor", one)
    return ctx.saved_tensors


def _by_arrays(moments: Moments, gradient: MomentsGradient) -> list[Array | None]:
    """The gradients of the arrays that moments are made of."""
    found, xp = statistics_of(moments), moments.namespace
    given: Any = parts_of(gradient)
    by_mean, by_variance, *held = given
    factors = [one for one in held if one is not None] + ([] if found.unit is None else [1.0 / found.unit])
    by_mean, by_squares = product(xp, by_mean, factors), product(xp, by_variance / moments.count, factors * 2)
    by_part = dict.fromkeys(("mean", "mean_low", "mean_rest"), by_mean) | dict.fromkeys(
        ("squares", "squares_low"), by_squares
    )
    arrays = dict(zip(PARTS, arrays_of(moments), strict=True))
    return [None if arrays[name] is None else by_part.get(name) for name in PARTS]
