"""The norms by torch's own operators, for devices that there is no kernel for here: they are fused there, too."""

from __future__ import annotations

from typing import Any

import torch
from torch.nn import functional

from anynorm._definition import Rule

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
    axes = sorted(one % x.ndim for one in ((axis,) if isinstance(axis, int) else axis))
    last = tuple(range(x.ndim - len(axes), x.ndim))
    if tuple(axes) != last:
        moved = norm(rule, x.movedim(axes, last), weight, bias, axis=last, eps=eps, weight_offset=weight_offset)
        return moved.movedim(last, axes)
    if not rule.averaged:
        length = torch.linalg.vector_norm(x, dim=last, keepdim=True, dtype=torch.promote_types(x.dtype, torch.float32))
        y = x / length.clamp_min(eps)
        return (y if weight is None else y * weight).to(x.dtype)
    if weight is not None and weight_offset:
        weight = weight + weight_offset
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
