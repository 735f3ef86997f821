"""LayerNorm, RMSNorm and ScaleNorm as torch modules and functions, for training and for torch.compile.

On the CPU and on NVIDIA GPUs they run through anynorm's fused kernels, forward and backward. What those do not take on
a GPU runs through torch's own operators, as do all calls on other devices and in TorchScript. The modules are
subclasses of torch's, with the same parameters under the same names; they take nested tensors too.

Modules::

    LayerNorm           in place of torch.nn.LayerNorm
    RMSNorm             in place of torch.nn.RMSNorm
    ScaleNorm           with a single parameter

Functions::

    layer_norm
    rms_norm
    scale_norm
    add_layer_norm
    add_rms_norm

Models::

    convert             make the norms of a model these
    revert              the way back
"""

import math
from typing import TYPE_CHECKING

import torch

from anynorm._convention import LAYER_NORM_EPS, SCALE_NORM_EPS, Convention
from anynorm._definition.norms import LAYER_NORM, RMS_NORM, SCALE_NORM
from anynorm._numbers import check_length, check_lengths, check_number
from anynorm._torch import convert as _convert
from anynorm._torch import forward as _forward
from anynorm._torch.convert import convert, revert
from anynorm._torch.functions import add_layer_norm, add_rms_norm, layer_norm, rms_norm, scale_norm
from anynorm._torch.holding import ByConvention, require_call, said_of, shape_parameters, start_at_one, take_over

__all__ = [
    "LayerNorm",
    "RMSNorm",
    "ScaleNorm",
    "add_layer_norm",
    "add_rms_norm",
    "convert",
    "layer_norm",
    "revert",
    "rms_norm",
    "scale_norm",
]

# Annotations are types here and not strings, as torch.fx writes those of `forward` into a graph, which it could not
# pickle then.
Tensor = torch.Tensor
Device = torch.device | str | int | None


class LayerNorm(ByConvention, torch.nn.LayerNorm):
    """`layer_norm` over the last axes as a module: a torch.nn.LayerNorm that computes in another way.

    Parameters
    ----------
    normalized_shape : int or tuple of ints
        The lengths of the last axes, which are normalized.
    eps, elementwise_affine, bias, device, dtype
        As in torch.nn.LayerNorm.
    weight_offset : float
        Added to the weight; 1.0 for weights stored around zero, which then start at 0.
    weight_shape : tuple of ints, optional
        As in `anynorm.LayerNorm`: ``(heads, dim)`` for a weight for each head, of an input (..., heads, dim).
    convention : Convention or str, optional
        How to compute it, as in `anynorm.layer_norm`. Its eps and weight_offset are taken over.

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

    __constants__: list[str] = [*torch.nn.LayerNorm.__constants__, "_by"]  # noqa: RUF012  # for TorchScript

    def __init__(
        self,
        normalized_shape: int | tuple[int, ...] | list[int],
        eps: float = LAYER_NORM_EPS,
        elementwise_affine: bool = True,
        bias: bool = True,
        device: Device = None,
        dtype: torch.dtype | None = None,
        *,
        weight_offset: float = 0.0,
        weight_shape: tuple[int, ...] | None = None,
        convention: Convention | str | None = None,
    ) -> None:
        eps, offset = take_over(self, LAYER_NORM, convention, eps, weight_offset)
        self.weight_offset: float = check_number("weight_offset", offset)  # reset_parameters needs it
        eps = check_number("eps", eps, least=0.0)
        normalized_shape = check_lengths("normalized_shape", normalized_shape, least=0)
        super().__init__(normalized_shape, eps, elementwise_affine, bias, device=device, dtype=dtype)
        shape_parameters(self, weight_shape)
        if self.weight_offset or self._by or weight_shape is not None:
            self.register_forward_pre_hook(require_call)

    def reset_parameters(self) -> None:
        """Weights of 1, offset and all, and biases of 0."""
        super().reset_parameters()
        start_at_one(self)

    if TYPE_CHECKING:  # torch's own returns Any

        def __call__(self, input: Tensor) -> Tensor: ...  # noqa: D102

    def forward(self, input: Tensor) -> Tensor:
        """Normalize a tensor whose last axes have the normalized shape."""
        shape, offset = self.normalized_shape, self.weight_offset
        return _forward.layer_norm(input, shape, self.weight, self.bias, self.eps, offset, self._by)  # type: ignore[arg-type]

    def extra_repr(self) -> str:
        """What is written between the parentheses."""
        return super().extra_repr() + said_of(self)


class RMSNorm(ByConvention, torch.nn.RMSNorm):
    """`rms_norm` over the last axes as a module: a torch.nn.RMSNorm that computes in another way.

    Parameters
    ----------
    normalized_shape : int or tuple of ints
        The lengths of the last axes, which are normalized.
    eps : float, optional
        None as in torch.nn.RMSNorm: the eps of the dtype that torch computes in, 1.2e-7 for float32; of a convention
        that has one, its own.
    elementwise_affine, device, dtype
        As in torch.nn.RMSNorm.
    bias : bool
        Whether to hold a bias besides the weight.
    weight_offset : float
        Added to the weight; 1.0 for weights stored around zero, which then start at 0.
    weight_shape : tuple of ints, optional
        As in `anynorm.LayerNorm`: ``(heads, dim)`` for a weight for each head, of an input (..., heads, dim).
    convention : Convention or str, optional
        How to compute it, as in `anynorm.layer_norm`. Its eps and weight_offset are taken over.

    A state_dict of torch.nn.RMSNorm loads here and, without a bias, the other way round.

    Examples
    --------
    >>> import torch, anynorm.torch
    >>> norm = anynorm.torch.RMSNorm(2)
    >>> norm
    RMSNorm((2,), eps=None, elementwise_affine=True)
    >>> norm(torch.tensor([[1.0, 7.0]]))
    tensor([[0.2000, 1.4000]], grad_fn=<_NormBackward>)
    """

    __constants__: list[str] = [*torch.nn.RMSNorm.__constants__, "_by"]  # noqa: RUF012  # for TorchScript

    def __init__(
        self,
        normalized_shape: int | tuple[int, ...] | list[int],
        eps: float | None = None,
        elementwise_affine: bool = True,
        device: Device = None,
        dtype: torch.dtype | None = None,
        *,
        bias: bool = False,
        weight_offset: float = 0.0,
        weight_shape: tuple[int, ...] | None = None,
        convention: Convention | str | None = None,
    ) -> None:
        eps, offset = take_over(self, RMS_NORM, convention, eps, weight_offset)
        self.weight_offset: float = check_number("weight_offset", offset)  # reset_parameters needs it
        eps = None if eps is None else check_number("eps", eps, least=0.0)
        normalized_shape = check_lengths("normalized_shape", normalized_shape, least=0)
        super().__init__(normalized_shape, eps, elementwise_affine, device=device, dtype=dtype)
        zeros = torch.zeros(self.normalized_shape, device=device, dtype=dtype) if bias else None
        self.register_parameter("bias", None if zeros is None else torch.nn.Parameter(zeros))
        shape_parameters(self, weight_shape)
        if bias or self.weight_offset or self._by or weight_shape is not None:
            self.register_forward_pre_hook(require_call)

    def reset_parameters(self) -> None:
        """Weights of 1, offset and all, and biases of 0."""
        super().reset_parameters()
        start_at_one(self)
        bias = getattr(self, "bias", None)
        if bias is not None:
            torch.nn.init.zeros_(bias)

    if TYPE_CHECKING:

        def __call__(self, x: Tensor) -> Tensor: ...  # noqa: D102

    def forward(self, x: Tensor) -> Tensor:
        """Normalize a tensor whose last axes have the normalized shape."""
        shape, offset = self.normalized_shape, self.weight_offset
        return _forward.rms_norm(x, shape, self.weight, self.bias, self.eps, offset, self._by)  # type: ignore[arg-type]

    def extra_repr(self) -> str:
        """What is written between the parentheses."""
        return super().extra_repr() + (", bias=True" if self.bias is not None else "") + said_of(self)


class ScaleNorm(ByConvention):
    """`scale_norm` over the last axis as a module, with a single parameter.

    Parameters
    ----------
    dim : int
        The length of the last axis; the scale starts at sqrt(dim), as in the paper.
    eps : float
    device, dtype
        Of the scale.
    convention : Convention or str, optional
        How to compute it, as in `anynorm.scale_norm`.

    Examples
    --------
    >>> import torch, anynorm.torch
    >>> anynorm.torch.ScaleNorm(4).scale
    Parameter containing:
    tensor(2., requires_grad=True)
    """

    dim: int
    eps: float
    scale: Tensor
    __constants__: list[str] = ["_by"]  # noqa: RUF012  # for TorchScript

    def __init__(
        self,
        dim: int,
        eps: float = SCALE_NORM_EPS,
        device: Device = None,
        dtype: torch.dtype | None = None,
        *,
        convention: Convention | str | None = None,
    ) -> None:
        super().__init__()
        eps, _ = take_over(self, SCALE_NORM, convention, eps, 0.0)
        self.dim, self.eps = check_length("dim", dim), check_number("eps", eps, least=0.0)
        self.scale = torch.nn.Parameter(torch.empty((), device=device, dtype=dtype))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """A scale of sqrt(dim)."""
        torch.nn.init.constant_(self.scale, math.sqrt(self.dim))

    if TYPE_CHECKING:

        def __call__(self, x: Tensor) -> Tensor: ...  # noqa: D102

    def forward(self, x: Tensor) -> Tensor:
        """Normalize a tensor whose last axis is as long as dim."""
        return _forward.scale_norm(x, (self.dim,), self.scale, self.eps, self._by)  # type: ignore[arg-type]

    def extra_repr(self) -> str:
        """What is written between the parentheses."""
        return f"{self.dim}, eps={self.eps}{said_of(self)}"


_convert.OURS.update({torch.nn.LayerNorm: LayerNorm, torch.nn.RMSNorm: RMSNorm})
_convert.OWN.update((LayerNorm, RMSNorm, ScaleNorm))
