"""LayerNorm, RMSNorm and ScaleNorm as torch modules and functions, for training and for torch.compile.

On the CPU they run through anynorm's fused kernels, forward and backward; on other devices through torch's own
operators. The modules are subclasses of torch's, with the same parameters under the same names.
"""

from __future__ import annotations

import math
from typing import Any

import torch

from anynorm._check import check_number
from anynorm._torch_functions import add_layer_norm, add_rms_norm, layer_norm, rms_norm, scale_norm

__all__ = [
    "LayerNorm",
    "RMSNorm",
    "ScaleNorm",
    "add_layer_norm",
    "add_rms_norm",
    "layer_norm",
    "rms_norm",
    "scale_norm",
]

Tensor = torch.Tensor
Axis = int | tuple[int, ...]


class LayerNorm(torch.nn.LayerNorm):
    """`layer_norm` over the last axes as a module: a torch.nn.LayerNorm by another way.

    Parameters
    ----------
    normalized_shape : int or tuple of ints
        The lengths of the last axes, which are normalized.
    eps, elementwise_affine, bias, device, dtype
        As in torch.nn.LayerNorm.
    weight_offset : float
        Added to the weight; 1.0 for weights stored around zero, which then start at 0.

    A state_dict of torch.nn.LayerNorm loads here and the other way round.

    Examples
    --------
    >>> import torch, anynorm.torch
    >>> norm = anynorm.torch.LayerNorm(3)
    >>> norm
    LayerNorm((3,), eps=1e-05, elementwise_affine=True, bias=True)
    >>> norm(torch.tensor([[1.0, 2.0, 3.0]]))
    tensor([[-1.2247,  0.0000,  1.2247]], grad_fn=<_NormBackward>)
    """

    def __init__(
        self,
        normalized_shape: Any,
        eps: float = 1e-5,
        elementwise_affine: bool = True,
        bias: bool = True,
        device: Any = None,
        dtype: Any = None,
        *,
        weight_offset: float = 0.0,
    ) -> None:
        self.weight_offset = check_number("weight_offset", weight_offset)  # reset_parameters needs it
        eps = check_number("eps", eps, least=0.0)
        super().__init__(normalized_shape, eps, elementwise_affine, bias, device=device, dtype=dtype)
        if self.weight_offset:
            self.register_forward_pre_hook(_insist)

    def reset_parameters(self) -> None:
        """Weights of 1, offset and all, and biases of 0."""
        super().reset_parameters()
        _start_at_one(self)

    def forward(self, input: Tensor) -> Tensor:
        """Normalize a tensor whose last axes have the normalized shape."""
        axis = _axis_of(self.normalized_shape, input)
        offset = self.weight_offset if self.weight is not None else 0.0
        return layer_norm(input, self.weight, self.bias, axis=axis, eps=self.eps, weight_offset=offset)

    def extra_repr(self) -> str:
        """What is written between the parentheses."""
        return super().extra_repr() + (f", weight_offset={self.weight_offset}" if self.weight_offset else "")


class RMSNorm(torch.nn.RMSNorm):
    """`rms_norm` over the last axes as a module: a torch.nn.RMSNorm by another way.

    Parameters
    ----------
    normalized_shape : int or tuple of ints
        The lengths of the last axes, which are normalized.
    eps : float
        A number always; torch's None stands for another one in each dtype, 1.2e-7 for float32.
    elementwise_affine, device, dtype
        As in torch.nn.RMSNorm.
    bias : bool
        Whether to hold a bias besides the weight.
    weight_offset : float
        Added to the weight; 1.0 for weights stored around zero, which then start at 0.

    A state_dict of torch.nn.RMSNorm loads here and, without a bias, the other way round.

    Examples
    --------
    >>> import torch, anynorm.torch
    >>> norm = anynorm.torch.RMSNorm(2)
    >>> norm
    RMSNorm((2,), eps=1e-06, elementwise_affine=True)
    >>> norm(torch.tensor([[1.0, 7.0]]))
    tensor([[0.2000, 1.4000]], grad_fn=<_NormBackward>)
    """

    def __init__(
        self,
        normalized_shape: Any,
        eps: float = 1e-6,
        elementwise_affine: bool = True,
        device: Any = None,
        dtype: Any = None,
        *,
        bias: bool = False,
        weight_offset: float = 0.0,
    ) -> None:
        self.weight_offset = check_number("weight_offset", weight_offset)  # reset_parameters needs it
        eps = check_number("eps", eps, least=0.0)
        super().__init__(normalized_shape, eps, elementwise_affine, device=device, dtype=dtype)
        held = torch.zeros(self.normalized_shape, device=device, dtype=dtype) if bias else None
        self.register_parameter("bias", None if held is None else torch.nn.Parameter(held))
        if bias or self.weight_offset:
            self.register_forward_pre_hook(_insist)

    def reset_parameters(self) -> None:
        """Weights of 1, offset and all, and biases of 0."""
        super().reset_parameters()
        _start_at_one(self)
        bias = getattr(self, "bias", None)
        if bias is not None:
            torch.nn.init.zeros_(bias)

    def forward(self, x: Tensor) -> Tensor:
        """Normalize a tensor whose last axes have the normalized shape."""
        axis = _axis_of(self.normalized_shape, x)
        offset = self.weight_offset if self.weight is not None else 0.0
        return rms_norm(x, self.weight, self.bias, axis=axis, eps=self.eps, weight_offset=offset)  # type: ignore[arg-type]

    def extra_repr(self) -> str:
        """What is written between the parentheses."""
        written = super().extra_repr() + (", bias=True" if self.bias is not None else "")
        return written + (f", weight_offset={self.weight_offset}" if self.weight_offset else "")


class ScaleNorm(torch.nn.Module):
    """`scale_norm` over the last axis as a module, with a single parameter.

    Parameters
    ----------
    dim : int
        The length of the last axis; the scale starts at sqrt(dim), as in the paper.
    eps : float
    device, dtype
        Of the scale.

    Examples
    --------
    >>> import torch, anynorm.torch
    >>> anynorm.torch.ScaleNorm(4).scale
    Parameter containing:
    tensor(2., requires_grad=True)
    """

    def __init__(self, dim: int, eps: float = 1e-5, device: Any = None, dtype: Any = None) -> None:
        super().__init__()
        if type(dim) is not int:
            raise TypeError(f"dim must be an int, got {dim!r}")
        if dim < 1:
            raise ValueError(f"dim must be 1 or more, got {dim}")
        self.dim, self.eps = dim, check_number("eps", eps, least=0.0)
        self.scale = torch.nn.Parameter(torch.empty((), device=device, dtype=dtype))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """A scale of sqrt(dim)."""
        torch.nn.init.constant_(self.scale, math.sqrt(self.dim))

    def forward(self, x: Tensor) -> Tensor:
        """Normalize a tensor whose last axis is as long as dim."""
        axis = _axis_of((self.dim,), x)
        return scale_norm(x, self.scale, axis=axis, eps=self.eps)

    def extra_repr(self) -> str:
        """What is written between the parentheses."""
        return f"{self.dim}, eps={self.eps}"


def _insist(norm: torch.nn.Module, inputs: tuple[Any, ...]) -> None:
    """Do nothing, as a hook: without one torch.nn.TransformerEncoderLayer may not call a norm but read its parameters.

    It takes it for a layer norm of them then, without an offset.
    """


def _start_at_one(norm: Any) -> None:
    if norm.weight is not None and norm.weight_offset:
        torch.nn.init.constant_(norm.weight, 1.0 - norm.weight_offset)


def _axis_of(shape: tuple[int, ...], x: Tensor) -> Axis:
    """The normalized axes of a tensor, whose lengths must be those."""
    given = x.shape
    if len(shape) == 1:
        if given and given[-1] == shape[0]:
            return -1
    elif tuple(given[-len(shape) :]) == tuple(shape):
        return tuple(range(-len(shape), 0))
    raise ValueError(f"the last axes of the input must have the lengths {tuple(shape)}, got shape {tuple(given)}")
