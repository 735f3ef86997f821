"""What the modules of anynorm.torch do in `forward`: the norms over the last axes, whose lengths must be those given.

Besides plain tensors they take nested ones, as torch's own modules do, and proxies of torch.fx, in whose graph each
leaves one node; torch.jit.script compiles such a graph, to torch's own operators.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.fx import Proxy
from torch.overrides import handle_torch_function

from anynorm._by_convention import without_offset
from anynorm._choose import try_fast_paths
from anynorm._convention import Convention, decoded
from anynorm._definition.norms import LAYER_NORM, RMS_NORM, Rule
from anynorm._parameters import beside_last
from anynorm._torch import functions, native
from anynorm._wording import as_array_of, describe, sentence

Tensor = torch.Tensor
Shape = list[int]  # a tuple, which TorchScript knows by this name


def _eps_of_none(dtype: torch.dtype) -> float:
    """The eps that torch.nn.RMSNorm has for None: that of the dtype it computes in, or in older versions of x's."""
    own = torch.finfo(dtype).eps
    if dtype.itemsize > 2:
        return own
    small = torch.full((1,), 2.0**-6, dtype=dtype, device="cpu")
    try:
        is_own = torch.nn.functional.rms_norm(small, (1,)).item() < 0.9
    except RuntimeError:  # imported while tensors have no numbers, as in a FakeTensorMode
        is_own = False
    return own if is_own else torch.finfo(torch.float32).eps


_is_compiling = torch.compiler.is_compiling
_EPS = {dtype: _eps_of_none(dtype) for dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64)}


def layer_norm(
    x: Tensor, shape: Shape, weight: Tensor | None, bias: Tensor | None, eps: float, offset: float, by: str = ""
) -> Tensor:
    """Apply layer_norm over the last axes, by a convention as `encoded` writes it; without a weight with no offset."""
    if torch.jit.is_scripting():  # type: ignore[attr-defined]
        if by:
            raise NotImplementedError("TorchScript has no norms by a convention; use torch.export")
        return native.layer_norm(x, shape, weight, bias, eps, offset)
    y = None if by else _by_fast_path(LAYER_NORM, x, shape, weight, bias, eps, offset)
    if y is not None:
        return y
    if _is_proxy_or_nested(x):
        return _of_proxy_or_nested(layer_norm, x, shape, weight, bias, eps, offset, by)
    axis, offset = _axis_of(shape, x, weight), _offset_beside(offset, weight)
    x, weight, bias = _laid_out(x), *_for_axes_of(x, shape, weight, bias)
    return functions.layer_norm(x, weight, bias, axis=axis, eps=eps, weight_offset=offset, convention=convention_of(by))


def rms_norm(
    x: Tensor, shape: Shape, weight: Tensor | None, bias: Tensor | None, eps: float | None, offset: float, by: str = ""
) -> Tensor:
    """Likewise for rms_norm; without an eps, by that of torch for the dtype."""
    if torch.jit.is_scripting():  # type: ignore[attr-defined]
        if by:
            raise NotImplementedError("TorchScript has no norms by a convention; use torch.export")
        return native.rms_norm(x, shape, weight, bias, eps, offset)
    y = None if by else _by_fast_path(RMS_NORM, x, shape, weight, bias, eps, offset)
    if y is not None:
        return y
    if _is_proxy_or_nested(x):
        return _of_proxy_or_nested(rms_norm, x, shape, weight, bias, eps, offset, by)
    eps = _EPS.get(x.dtype, 0.0) if eps is None else eps
    axis, offset = _axis_of(shape, x, weight), _offset_beside(offset, weight)
    x, weight, bias = _laid_out(x), *_for_axes_of(x, shape, weight, bias)
    return functions.rms_norm(x, weight, bias, axis=axis, eps=eps, weight_offset=offset, convention=convention_of(by))


def scale_norm(x: Tensor, shape: Shape, scale: Tensor, eps: float, by: str = "") -> Tensor:
    """Likewise for scale_norm."""
    if torch.jit.is_scripting():  # type: ignore[attr-defined]
        if by:
            raise NotImplementedError("TorchScript has no norms by a convention; use torch.export")
        if x.shape[-1] != shape[0]:
            raise ValueError(f"the last axis of the input must have the length {shape[0]}")
        return native.scale_norm(x, [-1], scale, 1.0, eps)
    if _is_proxy_or_nested(x):
        return _of_proxy_or_nested(scale_norm, x, shape, scale, eps, by)
    return functions.scale_norm(x, scale, axis=_axis_of(shape, x), eps=eps, convention=convention_of(by))


# By the string that a graph has of it; a module has the offset as an attribute.
_conventions: dict[str, Convention | None] = {"": None}


def convention_of(by: str) -> Convention | None:
    """The convention of a string, without the offset, which a module has as an attribute."""
    if by not in _conventions:
        _conventions[by] = without_offset(decoded(by))
    return _conventions[by]


def _by_fast_path(
    rule: Rule, x: Any, shape: Shape, weight: Tensor | None, bias: Tensor | None, eps: float | None, offset: float
) -> Tensor | None:
    """What becomes of a plain tensor in C order whose last axis is as long as the weight, and that as it should be."""
    if _is_compiling() or type(x) is not Tensor or weight is None or not x.is_contiguous():
        return None
    if len(shape) != 1 or weight.shape != shape:  # type: ignore[comparison-overlap]  # see Shape
        return None
    eps = _EPS.get(x.dtype) if eps is None else eps
    return try_fast_paths(rule, x, None, weight, bias, -1, eps, offset, None)  # type: ignore[no-any-return]


def _laid_out(x: Tensor) -> Tensor:
    """Contiguous, as torch's modules return it of any x; models go on with ``view``, which may refuse other strides."""
    return x if x.layout != torch.strided or x.is_contiguous() else x.contiguous()


def _offset_beside(offset: float, weight: Tensor | None) -> float:
    return 0.0 if weight is None else offset


def _is_proxy_or_nested(x: Any) -> bool:
    if not isinstance(x, (Tensor, Proxy)):
        raise TypeError(sentence("x", "be a torch tensor", describe(x), f"pass {as_array_of('torch', 'x', x)}"))
    return isinstance(x, Proxy) or bool(getattr(x, "is_nested", False))


def _of_proxy_or_nested(norm: Callable[..., Tensor], x: Any, *arguments: Any) -> Tensor:
    """A norm as a node of a graph, or of what a nested tensor holds, laid out as that is."""
    if isinstance(x, Proxy):
        return handle_torch_function(norm, (x,), x, *arguments)
    if x.layout == torch.strided:
        parts = [norm(part, *arguments) for part in x.unbind()]
        return torch.nested.as_nested_tensor(parts, dtype=x.dtype, device=x.device)
    ragged = [axis for axis, length in enumerate(x.shape) if not isinstance(length, int)]
    lengths = _lengths_of(*arguments[:2])
    if ragged and ragged[0] >= x.ndim - len(lengths):
        raise ValueError(f"the last axes of the input must have the lengths {lengths}, got shape {tuple(x.shape)}")
    values = norm(x.values(), *arguments)
    jagged_dim = ragged[0] if ragged else 1
    return torch.nested.nested_tensor_from_jagged(values, x.offsets(), x.lengths(), jagged_dim=jagged_dim)


def _axis_of(shape: Shape, x: Tensor, weight: Tensor | None = None) -> int | tuple[int, ...]:
    """The normalized axes of a tensor, whose last lengths must be those of the norm."""
    given, lengths = x.shape, _lengths_of(shape, weight)
    if len(lengths) == 1:
        if given and given[-1] == lengths[0]:
            return -1
    elif tuple(given[-len(lengths) :]) == lengths:
        return tuple(range(-len(shape), 0)) if len(shape) > 1 else -1
    raise ValueError(f"the last axes of the input must have the lengths {lengths}, got shape {tuple(given)}")


def _lengths_of(shape: Shape, weight: Tensor | None) -> tuple[int, ...]:
    """The lengths of the last axes that a norm is for: those normalized, or of a weight that has more."""
    return tuple(weight.shape) if _has_more_axes(weight, shape) else tuple(shape)  # type: ignore[union-attr]


def _has_more_axes(parameter: Tensor | None, shape: Shape) -> bool:
    return parameter is not None and parameter.ndim > len(shape)


def _for_axes_of(x: Tensor, shape: Shape, *parameters: Tensor | None) -> list[Tensor | None]:
    """Weight and bias as they are, or where they have more axes than are normalized with as many as x."""
    return [beside_last(one, x.ndim) if _has_more_axes(one, shape) else one for one in parameters]
