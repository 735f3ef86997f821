"""The norms by torch's own operators: for TorchScript, and on other devices for what no kernel here takes.

There the definition would run operation by operation, where torch's own are fused.
torch.jit.script compiles `layer_norm`, `rms_norm` and `scale_norm`, and takes the types from the annotations.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.nn import functional

from anynorm import _choose
from anynorm._check import Call, check
from anynorm._definition.norms import Rule
from anynorm._forced import forced
from anynorm._kernels import definition
from anynorm._profiled import is_profiled, name_of, named, with_names
from anynorm._types import Axis

Tensor = torch.Tensor


def norm(
    rule: Rule,
    x: Tensor,
    weight: Any = None,
    bias: Tensor | None = None,
    *,
    axis: Axis = -1,
    eps: float,
    weight_offset: float = 0.0,
) -> Tensor:
    """Return what the norm of that rule does, as precisely as torch does it, by torch's own operators."""
    call = check(rule, x, weight, bias, axis, eps, weight_offset=weight_offset)
    if is_profiled():
        return named(name_of(call, "torch"), (x, weight, bias), _run, call)  # type: ignore[no-any-return]
    return _run(call)  # type: ignore[no-any-return]


def choose(call: Call) -> _choose.Kernel:
    """The kernel for a call; on another device than the CPU torch's own in place of the definition, unless forced."""
    found = _choose.choose(call)
    is_elsewhere = call.library.name == "torch" and not call.x.is_cpu
    if found.name != "definition" or not is_elsewhere or forced() is not None or not call.rule.is_plain:
        return found
    own = found._replace(name="torch", run=_run)
    return with_names(own) if is_profiled() else own


def _run(call: Call) -> Any:
    x: Tensor = call.x
    if call.residual is not None:
        total = x + call.residual
        return _run(call._replace(x=total, residual=None)).to(x.dtype), total
    parameters: list[Any] = [one for one in (call.weight, call.bias) if one is not None and call.rule.averaged]
    if not call.eps or any(one.ndim != len(call.axes) for one in parameters):
        return definition.run(call)  # for torch would divide zeros by zero, and has one weight for all rows
    last = tuple(range(x.ndim - len(call.axes), x.ndim))
    if call.axes != last:
        return _norm(call, x.movedim(call.axes, last), last).movedim(last, call.axes)
    return _norm(call, x, last)


def _norm(call: Call, x: Tensor, axes: tuple[int, ...]) -> Tensor:
    """The norm of x over its last axes."""
    weight: Any = call.weight
    if not call.rule.averaged:
        if isinstance(weight, float):
            return scale_norm(x, list(axes), None, weight, call.eps)
        return scale_norm(x, list(axes), weight, 1.0, call.eps)
    own = layer_norm if call.rule.centred else rms_norm
    return own(x, list(x.shape[x.ndim - len(axes) :]), weight, call.bias, call.eps, call.weight_offset)


def layer_norm(
    x: Tensor,
    shape: list[int],
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    weight_offset: float,
) -> Tensor:
    """Normalize over the last axes, of that shape."""
    weight = _whole(weight, weight_offset)
    dtype = _widest(x, weight, bias)
    weight = None if weight is None else weight.to(dtype)
    bias = None if bias is None else bias.to(dtype)
    if weight is not None and weight.dim() > len(shape):  # a weight for each head
        y = functional.layer_norm(x.to(dtype), shape, None, None, eps) * weight
        return (y if bias is None else y + bias).to(x.dtype)
    return functional.layer_norm(x.to(dtype), shape, weight, bias, eps).to(x.dtype)


def rms_norm(
    x: Tensor,
    shape: list[int],
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float | None,
    weight_offset: float,
) -> Tensor:
    """Likewise; without an eps, by torch's own for the dtype."""
    weight = _whole(weight, weight_offset)
    dtype = _widest(x, weight, bias)
    weight = None if weight is None else weight.to(dtype)
    wide = x.to(dtype)
    if eps is None and wide.dtype != x.dtype:
        eps = 2.0**-23  # torch's for each dtype narrower than float64; of float64 it has another
    if weight is not None and weight.dim() > len(shape):
        y = functional.rms_norm(wide, shape, None, eps) * weight
    else:
        y = functional.rms_norm(wide, shape, weight, eps)
    return (y if bias is None else y + bias).to(x.dtype)


def scale_norm(
    x: Tensor,
    axes: list[int],
    scale: Tensor | None,
    number: float,
    eps: float,
) -> Tensor:
    """Give rows the length of a number times the scale."""
    dtype = torch.promote_types(x.dtype, torch.float32)
    length = torch.linalg.vector_norm(x, 2.0, axes, True, dtype=dtype)
    y = x / length.clamp_min(eps) * number
    y = y if scale is None else y * scale
    return y.to(x.dtype)  # type: ignore[no-any-return]


def _whole(weight: Tensor | None, offset: float) -> Tensor | None:
    """The weight and what is added to it; in bfloat16, 1 + weight would have lost all but two or three digits."""
    if weight is None or offset == 0.0:
        return weight
    return weight.to(torch.promote_types(weight.dtype, torch.float32)) + offset


def _widest(x: Tensor, weight: Tensor | None, bias: Tensor | None) -> int:  # what a dtype is to TorchScript
    """The dtype in which all three can be computed."""
    dtype = x.dtype
    if weight is not None:
        dtype = torch.promote_types(dtype, weight.dtype)
    if bias is not None:
        dtype = torch.promote_types(dtype, bias.dtype)
    return dtype  # type: ignore[return-value]
