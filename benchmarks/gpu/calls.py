"""Calls of x and of dy, or a residual, that do one piece of work: anynorm's, torch's, and those of packages."""

import importlib.util
from collections.abc import Callable
from typing import Any

from .work import Work

Call = Callable[[Any, Any], Any]


def calls(work: Work, weight: Any, bias: Any) -> dict[str, Call]:
    """By name, anynorm's first; weight and bias require a gradient where theirs is wanted."""
    found = {"anynorm": ours(work, weight, bias), "torch": _torch(work, weight, bias, compiled=False)}
    if work.compiled:
        found["compiled"] = _torch(work, weight, bias, compiled=True)
    if work.case.axis != -1:
        permuted = found["torch"]
        found["torch contiguous"] = lambda x, other: permuted(x, other).contiguous()
        return found
    for package, of_package in (("liger_kernel", _liger), ("quack", _quack), ("cupy", _cupy_expression)):
        if importlib.util.find_spec(package) is not None:
            found |= _or_its_failure(package, of_package, work, weight, bias)
    return found


def _or_its_failure(package: str, of_package: Callable[..., dict[str, Call]], *given: Any) -> dict[str, Call]:
    """The calls of a package; where it cannot be loaded, a call that says so."""
    try:
        return of_package(*given)
    except Exception as failure:  # whatever goes wrong in it, the others go on
        kept = failure

        def fail(x: Any, other: Any) -> Any:
            raise kept

        return {package: fail}


def ours(work: Work, weight: Any, bias: Any) -> Call:
    """anynorm's call on torch tensors."""
    import anynorm

    case = work.case
    if work.what == "add":
        return lambda x, residual: anynorm.add_rms_norm(x, residual, weight)
    if work.what in ("dx", "gradients"):
        return _pullback(work, weight, bias)

    def norm(x: Any) -> Any:
        if case.norm == "layer_norm":
            return anynorm.layer_norm(x, weight, bias, axis=case.axis)
        return anynorm.rms_norm(x, weight) if case.norm == "rms_norm" else anynorm.scale_norm(x)

    return _step(work, norm, weight, bias) if work.what == "step" else lambda x, other: norm(x)


def _pullback(work: Work, weight: Any, bias: Any) -> Call:
    """The derivative alone; what the forward call keeps for it is no more than its arguments."""
    from anynorm._check import check, check_gradient
    from anynorm._choose import choose_vjp
    from anynorm._definition.norms import LAYER_NORM, RMS_NORM

    rule = LAYER_NORM if work.case.norm == "layer_norm" else RMS_NORM
    weight, bias = weight.detach(), bias.detach() if rule.centred else None

    def differentiate(x: Any, dy: Any) -> Any:
        gradient = check_gradient(check(rule, x, weight, bias, -1, work.case.eps), dy)
        gradient = gradient._replace(parameters=work.what != "dx")
        found = choose_vjp(gradient).vjp(gradient)
        return found[0] if work.what == "dx" else tuple(one for one in found if one is not None)

    return differentiate


def _torch(work: Work, weight: Any, bias: Any, compiled: bool) -> Call:
    import torch
    import torch.nn.functional as functional

    case, shape = work.case, (work.case.features,)
    last = (*(axis for axis in range(len(case.shape)) if axis != case.axis), case.axis)

    def norm(x: Any) -> Any:
        if case.axis != -1:
            y = functional.layer_norm(x.permute(last), shape, weight, bias, case.eps)
            return y.permute([last.index(axis) for axis in range(x.ndim)])
        if case.norm == "layer_norm":
            return functional.layer_norm(x, shape, weight, bias, case.eps)
        return functional.rms_norm(x, shape, weight, case.eps) if case.norm == "rms_norm" else functional.normalize(x)

    def add(x: Any, residual: Any) -> Any:
        total = x + residual
        return norm(total), total

    if compiled:
        # For this shape alone, as nobody would want one program for shapes as different as those of this benchmark.
        torch.compiler.reset()
        norm, add = (torch.compile(one, dynamic=False, fullgraph=True) for one in (norm, add))
    return add if work.what == "add" else _of_torch(work, norm, weight, bias)


def _of_torch(work: Work, norm: Callable[[Any], Any], weight: Any, bias: Any) -> Call:
    """What is wanted of a norm that autograd knows."""
    if work.what == "step":
        return _step(work, norm, weight, bias)
    if work.what in ("dx", "gradients"):
        return _by_autograd(work, norm, weight, bias)
    return lambda x, other: norm(x)


def _differentiated(work: Work, x: Any, weight: Any, bias: Any) -> tuple[Any, ...]:
    if work.what == "dx":
        return (x,)
    return (x, weight, bias) if work.case.norm == "layer_norm" else (x, weight)


def _step(work: Work, norm: Callable[[Any], Any], weight: Any, bias: Any) -> Call:
    import torch

    def forward_and_backward(x: Any, dy: Any) -> Any:
        followed = x.detach().requires_grad_()
        return torch.autograd.grad(norm(followed), _differentiated(work, followed, weight, bias), dy)

    return forward_and_backward


def _by_autograd(work: Work, norm: Callable[[Any], Any], weight: Any, bias: Any) -> Call:
    """The derivative alone, of a graph that is kept for each buffer."""
    import torch

    kept: dict[int, tuple[Any, Any]] = {}

    def differentiate(x: Any, dy: Any) -> Any:
        if x.data_ptr() not in kept:
            followed = x.detach().requires_grad_()
            kept[x.data_ptr()] = followed, norm(followed)
        followed, y = kept[x.data_ptr()]
        found = torch.autograd.grad(y, _differentiated(work, followed, weight, bias), dy, retain_graph=True)
        return found[0] if work.what == "dx" else found

    return differentiate


def _liger(work: Work, weight: Any, bias: Any) -> dict[str, Call]:
    from liger_kernel.transformers import functional as liger

    eps = work.case.eps
    if work.what == "add":
        return {"Liger": lambda x, residual: liger.liger_fused_add_rms_norm(x, residual, weight, eps, in_place=False)}
    if work.case.norm == "layer_norm":
        return {"Liger": _of_torch(work, lambda x: liger.liger_layer_norm(x, weight, bias, eps), weight, bias)}
    if work.case.norm == "rms_norm":
        # In place its derivative would overwrite dy.
        norm = lambda x: liger.liger_rms_norm(x, weight, eps, in_place=False)  # noqa: E731
        return {"Liger": _of_torch(work, norm, weight, bias)}
    return {}


def _quack(work: Work, weight: Any, bias: Any) -> dict[str, Call]:
    from quack import rmsnorm
    from quack.rmsnorm import layernorm_fwd

    eps = work.case.eps
    if work.case.norm == "rms_norm" and work.what == "add":
        return {"quack": lambda x, residual: rmsnorm(x, weight, residual=residual, eps=eps, prenorm=True)}
    if work.case.norm == "rms_norm":
        return {"quack": _of_torch(work, lambda x: rmsnorm(x, weight, eps=eps), weight, bias)}
    if work.case.norm == "layer_norm" and work.what == "y":
        wide = weight.float(), bias.float()  # it takes no others
        return {"quack": lambda x, other: layernorm_fwd(x, *wide, eps=eps)}
    return {}


def _cupy_expression(work: Work, weight: Any, bias: Any) -> dict[str, Call]:
    if work.what != "y" or work.case.dtype != "float32" or work.case.features != 4096:
        return {}
    import cupy

    factor, constant = cupy.from_dlpack(weight), cupy.from_dlpack(bias)
    return {"CuPy expression": lambda x, other: plain(work, cupy.from_dlpack(x), factor, constant)}


def plain(work: Work, x: Any, weight: Any, bias: Any) -> Any:
    """What one would write with CuPy."""
    import cupy

    if work.case.norm == "layer_norm":
        x = x - cupy.mean(x, axis=-1, keepdims=True)
    if work.case.norm == "scale_norm":
        return x / cupy.maximum(cupy.linalg.norm(x, axis=-1, keepdims=True), work.case.eps)
    y = x / cupy.sqrt(cupy.mean(x**2, axis=-1, keepdims=True) + work.case.eps) * weight
    return y + bias if work.case.norm == "layer_norm" else y


def small_calls(work: Work, weight: Any, bias: Any) -> dict[str, Call]:
    """Whole calls on the host, of CuPy arrays where CuPy is installed; the arrays are converted beforehand."""
    found = calls(work._replace(compiled=True), weight, bias)
    if importlib.util.find_spec("cupy") is None:
        return found
    import cupy

    import anynorm

    factor, constant = cupy.from_dlpack(weight), cupy.from_dlpack(bias)
    arrays: dict[int, Any] = {}

    def of_cupy(norm: Callable[[Any], Any]) -> Call:
        def call(x: Any, other: Any) -> Any:
            array = arrays.get(id(x))
            if array is None:
                array = arrays[id(x)] = cupy.from_dlpack(x)
            return norm(array)

        return call

    out = cupy.empty(work.case.shape, work.case.dtype)
    return {
        "anynorm CuPy": of_cupy(lambda x: anynorm.layer_norm(x, factor, constant)),
        "anynorm CuPy out=": of_cupy(lambda x: anynorm.layer_norm(x, factor, constant, out=out)),
        "CuPy expression": of_cupy(lambda x: plain(work, x, factor, constant)),
    } | found
