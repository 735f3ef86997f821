"""The norms as functions of torch tensors: kernels on CPUs and NVIDIA GPUs, operators in a graph, else torch's own.

A graph of torch.fx has them as calls of these functions, as it has those of torch.nn.functional.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.fx import Proxy
from torch.overrides import handle_torch_function

from anynorm import _norms, _residual
from anynorm._by_convention import resolved, without_offset
from anynorm._check import check
from anynorm._convention import (
    LAYER_NORM_EPS,
    RMS_NORM_EPS,
    SCALE_NORM_EPS,
    Convention,
    DefaultEps,
    check_convention,
    encoded,
)
from anynorm._definition.norms import LAYER_NORM, RMS_NORM, SCALE_NORM, Rule
from anynorm._torch import native, operators
from anynorm._torch.state import transforms_question
from anynorm._types import Axis, Number

Tensor = torch.Tensor

_is_compiling = torch.compiler.is_compiling
_is_transformed = transforms_question(torch)


def layer_norm(
    x: Tensor,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    *,
    axis: Axis = -1,
    eps: float = LAYER_NORM_EPS,
    weight_offset: float = 0.0,
    convention: Convention | str | None = None,
) -> Tensor:
    """`anynorm.layer_norm` of a tensor; under torch.compile and torch.export the operator ``anynorm::layer_norm``.

    On the CPU, and on an NVIDIA GPU where its kernels take the call (see `anynorm.explain`), that is with anynorm's
    precision and kernels, forward and backward; derivatives of derivatives go through the definition. What they do not
    take on a GPU, as torch.func, forward-mode derivatives and subclasses, is ``torch.nn.functional.layer_norm`` with
    the precision that has; so is all on another device, and what torch.compile makes for any device but the CPU.
    Autocast changes nothing: the result has x's dtype.

    Examples
    --------
    >>> import torch, anynorm.torch
    >>> anynorm.torch.layer_norm(torch.tensor([[1.0, 2.0, 3.0]]))
    tensor([[-1.2247,  0.0000,  1.2247]])
    """
    if _is_compiling():
        return _traced(LAYER_NORM, x, weight, bias, axis, eps, weight_offset, convention)
    if type(x) is not Tensor and isinstance(x, Proxy):
        given = _for_graph(axis, eps, weight_offset, convention)
        return handle_torch_function(layer_norm, (x,), x, weight, bias, **given)
    return _norms.run(LAYER_NORM, x, weight, bias, axis, eps, weight_offset, convention, choose=native.choose)


def rms_norm(
    x: Tensor,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    *,
    axis: Axis = -1,
    eps: float = RMS_NORM_EPS,
    weight_offset: float = 0.0,
    convention: Convention | str | None = None,
) -> Tensor:
    """`anynorm.rms_norm` of a tensor, as `layer_norm` here is `anynorm.layer_norm`.

    Examples
    --------
    >>> import torch, anynorm.torch
    >>> anynorm.torch.rms_norm(torch.tensor([[1.0, 7.0]]))
    tensor([[0.2000, 1.4000]])
    """
    if _is_compiling():
        return _traced(RMS_NORM, x, weight, bias, axis, eps, weight_offset, convention)
    if type(x) is not Tensor and isinstance(x, Proxy):
        given = _for_graph(axis, eps, weight_offset, convention)
        return handle_torch_function(rms_norm, (x,), x, weight, bias, **given)
    return _norms.run(RMS_NORM, x, weight, bias, axis, eps, weight_offset, convention, choose=native.choose)


def scale_norm(
    x: Tensor,
    scale: Tensor | Number | None = None,
    *,
    axis: Axis = -1,
    eps: float = SCALE_NORM_EPS,
    convention: Convention | str | None = None,
) -> Tensor:
    """`anynorm.scale_norm` of a tensor, as `layer_norm` here is `anynorm.layer_norm`.

    Examples
    --------
    >>> import torch, anynorm.torch
    >>> anynorm.torch.scale_norm(torch.tensor([[3.0, 4.0]]))
    tensor([[0.6000, 0.8000]])
    """
    if _is_compiling():
        return _traced(SCALE_NORM, x, scale, None, axis, eps, 0.0, convention)
    if type(x) is not Tensor and isinstance(x, Proxy):
        given = _for_graph(axis, eps, None, convention)
        return handle_torch_function(scale_norm, (x,), x, scale, **given)
    return _norms.run(SCALE_NORM, x, scale, None, axis, eps, 0.0, convention, choose=native.choose)


def add_layer_norm(
    x: Tensor,
    residual: Tensor,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    *,
    axis: Axis = -1,
    eps: float = LAYER_NORM_EPS,
    weight_offset: float = 0.0,
    convention: Convention | str | None = None,
) -> tuple[Tensor, Tensor]:
    """`anynorm.add_layer_norm` of tensors: ``total = x + residual`` and its layer_norm, returned as ``(y, total)``.

    Under torch.compile these are two operations, of which the addition is fused with what comes before.

    Examples
    --------
    >>> import torch, anynorm.torch
    >>> anynorm.torch.add_layer_norm(torch.ones(2), torch.tensor([0.0, 2.0]), eps=0.0)
    (tensor([-1.,  1.]), tensor([1., 3.]))
    """
    options = axis, eps, weight_offset, convention
    return _add(LAYER_NORM, add_layer_norm, layer_norm, x, residual, weight, bias, *options)


def add_rms_norm(
    x: Tensor,
    residual: Tensor,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    *,
    axis: Axis = -1,
    eps: float = RMS_NORM_EPS,
    weight_offset: float = 0.0,
    convention: Convention | str | None = None,
) -> tuple[Tensor, Tensor]:
    """`anynorm.add_rms_norm` of tensors, as `add_layer_norm` here is `anynorm.add_layer_norm`.

    Examples
    --------
    >>> import torch, anynorm.torch
    >>> anynorm.torch.add_rms_norm(torch.ones(2), torch.tensor([0.0, 6.0]), eps=0.0)
    (tensor([0.2000, 1.4000]), tensor([1., 7.]))
    """
    options = axis, eps, weight_offset, convention
    return _add(RMS_NORM, add_rms_norm, rms_norm, x, residual, weight, bias, *options)


def _add(
    rule: Rule,
    function: Callable[..., Any],
    norm: Callable[..., Tensor],
    x: Tensor,
    residual: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    axis: Axis,
    eps: float,
    offset: float,
    convention: Convention | str | None,
) -> tuple[Tensor, Tensor]:
    """What the public ``function`` does: one kernel, or in a graph an addition and a ``norm``."""
    if type(x) is not Tensor and isinstance(x, Proxy):
        given = _for_graph(axis, eps, offset, convention)
        return handle_torch_function(function, (x,), x, residual, weight, bias, **given)
    if not _is_compiling():
        return _residual.run(rule, x, residual, weight, bias, axis, eps, offset, convention, choose=native.choose)
    check(rule, x, weight, bias, axis, eps, weight_offset=offset, residual=residual)
    total = x + residual
    return norm(total, weight, bias, axis=axis, eps=eps, weight_offset=offset, convention=convention).to(x.dtype), total


def _for_graph(axis: Axis, eps: float, offset: float | None, convention: Convention | str | None) -> dict[str, Any]:
    """Options as torch.fx writes them into a graph; a default eps that a convention may replace is left out."""
    given: dict[str, Any] = {"axis": axis}
    if type(eps) is not DefaultEps or convention is None:
        given["eps"] = float(eps) if type(eps) is DefaultEps else eps
    if offset is not None:
        given["weight_offset"] = offset
    if convention is not None:
        given["convention"] = encoded(convention)
    return given


def _traced(
    rule: Rule, x: Tensor, weight: Any, bias: Tensor | None, axis: Axis, eps: float, offset: float,
    convention: Convention | str | None,
) -> Tensor:  # fmt: skip
    """Leave an operator in the graph: anynorm's on the CPU, torch's own elsewhere."""
    if convention is not None:
        by, eps, offset, portion = resolved(rule, convention, eps, offset, weight is not None)
        if not by.is_plain or portion != 1.0:
            if _is_transformed():
                given: dict[str, Any] = {"axis": axis, "eps": eps, "weight_offset": offset}
                convention = without_offset(check_convention(convention))
                return operators.by_name(rule, x, weight, bias, **given, convention=convention)
            return operators.norm(rule, x, weight, bias, axis, eps, offset, convention)
    elif type(eps) is DefaultEps:
        eps = float(eps)
    if x.device.type == "cpu":
        if _is_transformed():
            # For these an operator has no derivative, or one of 0.
            return operators.by_name(rule, x, weight, bias, axis=axis, eps=eps, weight_offset=offset)
        return operators.norm(rule, x, weight, bias, axis, eps, offset)
    return native.norm(rule, x, weight, bias, axis=axis, eps=eps, weight_offset=offset)
