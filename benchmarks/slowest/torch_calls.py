"""The calls of a case with torch tensors: anynorm's, and torch's own."""

from collections.abc import Callable
from typing import Any

import anynorm
from benchmarks.slowest.arrays import Arrays, as_tensor
from benchmarks.slowest.draw import Case

Call = Callable[[], Any]


def calls(case: Case, arrays: Arrays) -> tuple[Call, list[Call]]:
    """The call of anynorm, and torch's: axes that are not the last are moved there, and back."""
    x, weight, bias, dy = (as_tensor(one) for one in arrays)
    followed = [one for one in (x, weight, bias) if one is not None]
    if case.what == "dx":
        for one in followed:
            one.requires_grad_()
    found = []
    for norm in (ours(case, x, weight, bias), theirs(case, x, weight, bias)):
        found.append(norm if case.what == "y" else with_gradients(norm, followed, dy))
    return found[0], found[1:]


def with_gradients(norm: Call, followed: list[Any], dy: Any) -> Call:
    import torch

    def call() -> Any:
        y = norm()
        return y, *torch.autograd.grad(y, followed, dy)

    return call


def ours(case: Case, x: Any, weight: Any, bias: Any) -> Call:
    axis = case.axes if len(case.axes) > 1 else case.axes[0]
    norm, eps = getattr(anynorm, case.norm), case.eps
    parameters = () if case.norm == "scale_norm" else (weight, bias) if case.bias else (weight,)
    return lambda: norm(x, *parameters, axis=axis, eps=eps)


def theirs(case: Case, x: Any, weight: Any, bias: Any) -> Call:
    from torch.nn import functional

    axes, eps = case.axes, case.eps
    if case.norm == "scale_norm":
        dim = axes if len(axes) > 1 else axes[0]
        return lambda: functional.normalize(x, dim=dim, eps=eps)
    shape, last = [case.shape[axis] for axis in axes], tuple(range(-len(axes), 0))
    parameters = (weight, bias) if case.norm == "layer_norm" else (weight,)
    norm = functional.layer_norm if case.norm == "layer_norm" else functional.rms_norm
    if tuple(axis - len(case.shape) for axis in axes) == last:
        return lambda: norm(x, shape, *parameters, eps)
    return lambda: norm(x.movedim(axes, last), shape, *parameters, eps).movedim(last, axes)
