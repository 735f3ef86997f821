"""The norms by torch's own operators, for devices that there is no kernel for here: they are fused there, too."""

from __future__ import annotations

from typing import Any

import torch
from torch.nn import functional

from anynorm._check import Call, check
from anynorm._definition import Rule
from anynorm._kernels import definition

Tensor = torch.Tensor


def norm(
    rule: Rule,
    x: Tensor,
    weight: Any = None,
    bias: Tensor | None = None,
    *,
    axis: int | tuple[int, ...] = -1,
    eps: float,
    weight_offset: float = 0.0,
) -> Tensor:
    """Return what the norm of that rule does, as precisely as torch does it."""
    call = check(rule, x, weight, bias, axis, eps, weight_offset=weight_offset)
    if not call.eps:  # by which torch divides zeros by zero
        return definition.run(call)  # type: ignore[no-any-return]
    last = tuple(range(x.ndim - len(call.axes), x.ndim))
    if call.axes != last:
        return _norm(call, x.movedim(call.axes, last), last).movedim(last, call.axes)
    return _norm(call, x, last)


def _norm(call: Call, x: Tensor, axes: tuple[int, ...]) -> Tensor:
    """The norm of x over its last axes."""
    rule, bias, eps = call.rule, call.bias, call.eps
    weight: Any = call.weight
    if not rule.averaged:
        length = torch.linalg.vector_norm(x, dim=axes, keepdim=True, dtype=torch.promote_types(x.dtype, torch.float32))
        y: Tensor = x / length.clamp_min(eps)
        return (y if weight is None else y * weight).to(x.dtype)
    if weight is not None and call.weight_offset:
        # In bfloat16, 1 + weight would have lost all but two or three digits.
        weight = weight.to(torch.promote_types(weight.dtype, torch.float32)) + call.weight_offset
    dtype = x.dtype
    for parameter in (weight, bias):
        if parameter is not None:
            dtype = torch.promote_types(dtype, parameter.dtype)
    shape = x.shape[x.ndim - len(axes) :]
    wide, weight, bias = (None if one is None else one.to(dtype) for one in (x, weight, bias))
    if rule.centred:
        return functional.layer_norm(wide, shape, weight, bias, eps).to(x.dtype)  # type: ignore[arg-type]
    y = functional.rms_norm(wide, shape, weight, eps)  # type: ignore[arg-type]
    return (y if bias is None else y + bias).to(x.dtype)
