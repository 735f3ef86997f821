"""LayerNorm, RMSNorm and ScaleNorm as objects that hold their parameters, for any array library."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any, SupportsIndex

import numpy

from anynorm._by_convention import held, without_offset
from anynorm._convention import LAYER_NORM_EPS, RMS_NORM_EPS, SCALE_NORM_EPS, Convention, written
from anynorm._definition.norms import LAYER_NORM, RMS_NORM, SCALE_NORM, Rule
from anynorm._modules.loading import check_weight_shape, full, library_and_dtype
from anynorm._modules.state import HoldsParameters
from anynorm._norms import layer_norm, rms_norm, scale_norm
from anynorm._numbers import check_length, check_lengths, check_number
from anynorm._parameters import beside_last
from anynorm._pytrees import pytree
from anynorm._types import Array, ArrayT, Shape
from anynorm._wording import describe, sentence


class _AffineNorm(HoldsParameters):
    """A norm with a weight for each feature and perhaps a bias."""

    shape: tuple[int, ...]
    weight_shape: tuple[int, ...]
    eps: float
    weight_offset: float
    convention: Convention | None = None
    weight: Any  # an array of the library that the norm was made with
    bias: Any  # the same, or None
    _function: Callable[..., Any]
    _rule: Rule
    _parameter_names = ("weight", "bias")

    def __init__(
        self,
        shape: Shape,
        eps: float,
        bias: bool,
        weight_offset: float,
        weight_shape: Shape | None,
        convention: Convention | str | None,
        xp: Any,
        dtype: Any,
        device: Any,
    ) -> None:
        library, dtype = library_and_dtype(xp, dtype)
        self.shape = check_lengths("shape", shape)
        self.weight_shape = check_weight_shape(weight_shape, self.shape)
        self.convention, eps, weight_offset = held(self._rule, convention, eps, weight_offset)
        self.eps = check_number("eps", eps, least=0.0)
        self.weight_offset = check_number("weight_offset", weight_offset)
        if not isinstance(bias, (bool, numpy.bool)):
            do = "set the attribute bias of the norm, or load_state_dict, for its values"
            raise TypeError(sentence("bias", "be True or False", describe(bias), do))
        # Zero-centred weights start at zero, so that the factor starts at 1 either way.
        self.weight = full(library, self.weight_shape, 0.0 if weight_offset == 1.0 else 1.0, dtype, device)
        self.bias = full(library, self.weight_shape, 0.0, dtype, device) if bias else None

    def __call__(self, x: ArrayT, *, out: Array | None = None) -> ArrayT:
        """Normalize an array of the parameters' library."""
        axis = -1 if len(self.shape) == 1 else tuple(range(-len(self.shape), 0))
        weight, bias = self.weight, self.bias
        if self.weight_shape != self.shape:
            self._require_lengths(x, self.weight_shape)
            weight, bias = (beside_last(one, len(x.shape)) for one in (weight, bias))
        try:
            y: ArrayT = self._function(
                x, weight, bias, axis=axis, eps=self.eps, weight_offset=self.weight_offset,
                convention=without_offset(self.convention), out=out,
            )  # fmt: skip
            return y
        except TypeError:
            self._require_own_library(x)
            raise

    def _config(self) -> tuple[Any, ...]:
        options = self.eps, self.weight_offset, self.convention, self.bias is not None
        return self.shape, self.weight_shape, *options, self._dtype_name()

    def __repr__(self) -> str:
        options: dict[str, Any] = {"eps": self.eps, "bias": self.bias is not None}
        if self.weight_offset:
            options["weight_offset"] = self.weight_offset
        if self.weight_shape != self.shape:
            options["weight_shape"] = self.weight_shape
        if self.convention is not None:
            options["convention"] = written(self.convention)
        return self._repr(self.shape[0] if len(self.shape) == 1 else self.shape, **options, dtype=self._dtype_name())


class LayerNorm(_AffineNorm):
    """`anynorm.layer_norm` over the last axes, holding weight and bias: 2 x dim parameters.

    Parameters
    ----------
    shape : int or tuple of ints
        The lengths of the last axes, which are normalized.
    eps : float
        Added to the variance (`RMSNorm`: to the mean square), in x's units squared.
    bias : bool
        Whether to hold a bias besides the weight.
    weight_offset : float
        Added to the weight; 1.0 for weights stored around zero, which then start at 0.
    weight_shape : tuple of ints, optional
        The shape of weight and bias, where they vary along axes before the normalized ones too: ``(heads, dim)`` for a
        weight for each head. It ends with ``shape``, and x has the shape ``(..., *weight_shape)``.
    convention : Convention or str, optional
        How to compute it, as in `anynorm.layer_norm`. Its eps and weight_offset are taken over.
    xp : array namespace, optional
        The library of the parameters, such as torch, cupy or jax.numpy; left out, NumPy. Parameters of
        NumPy go with an x of JAX, Dask or ndonnx too.
    dtype : dtype of that library, optional
        Left out, its float32.
    device : device of that library, optional
        Left out, the library's own.

    Raises
    ------
    ValueError, TypeError
        If an argument does not fit; when called, as `anynorm.layer_norm`.

    Examples
    --------
    >>> import numpy, anynorm
    >>> norm = anynorm.LayerNorm(3)
    >>> norm
    LayerNorm(3, eps=1e-05, bias=True, dtype=float32)
    >>> norm(numpy.asarray([[1.0, 2.0, 3.0]], dtype=numpy.float32)).round(3)
    array([[-1.225,  0.   ,  1.225]], dtype=float32)

    Queries of 8 heads, each with a weight of its own:

    >>> anynorm.LayerNorm(64, weight_shape=(8, 64), bias=False)(numpy.ones((2, 8, 64))).shape
    (2, 8, 64)
    """

    _function = staticmethod(layer_norm)
    _rule = LAYER_NORM

    def __init__(
        self,
        shape: Shape,
        *,
        eps: float = LAYER_NORM_EPS,
        bias: bool = True,
        weight_offset: float = 0.0,
        weight_shape: Shape | None = None,
        convention: Convention | str | None = None,
        xp: Any = None,
        dtype: Any = None,
        device: Any = None,
    ) -> None:
        super().__init__(shape, eps, bias, weight_offset, weight_shape, convention, xp, dtype, device)


class RMSNorm(_AffineNorm):
    """`anynorm.rms_norm` over the last axes, holding its weight: 1 x dim parameters.

    Parameters are those of `LayerNorm`; ``bias`` is False unless asked for and ``eps`` 1e-6.

    Examples
    --------
    >>> import numpy, anynorm
    >>> anynorm.RMSNorm(2)(numpy.asarray([[1.0, 7.0]], dtype=numpy.float32))
    array([[0.2, 1.4]], dtype=float32)
    """

    _function = staticmethod(rms_norm)
    _rule = RMS_NORM

    def __init__(
        self,
        shape: Shape,
        *,
        eps: float = RMS_NORM_EPS,
        bias: bool = False,
        weight_offset: float = 0.0,
        weight_shape: Shape | None = None,
        convention: Convention | str | None = None,
        xp: Any = None,
        dtype: Any = None,
        device: Any = None,
    ) -> None:
        super().__init__(shape, eps, bias, weight_offset, weight_shape, convention, xp, dtype, device)


class ScaleNorm(HoldsParameters):
    """`anynorm.scale_norm` over the last axis, holding its scale: a single parameter.

    Parameters
    ----------
    dim : int
        The length of the last axis; the scale starts at sqrt(dim), as in the paper.
    eps : float
        The least length to divide by, as in `scale_norm`.
    convention, xp, dtype, device
        As in `LayerNorm`.

    Examples
    --------
    >>> import anynorm
    >>> anynorm.ScaleNorm(4).scale
    array(2., dtype=float32)
    """

    dim: int
    eps: float
    convention: Convention | None = None
    scale: Any  # an array of the library that the norm was made with
    _parameter_names = ("scale",)

    def __init__(
        self,
        dim: SupportsIndex,
        *,
        eps: float = SCALE_NORM_EPS,
        convention: Convention | str | None = None,
        xp: Any = None,
        dtype: Any = None,
        device: Any = None,
    ) -> None:
        library, dtype = library_and_dtype(xp, dtype)
        self.dim = check_length("dim", dim)
        self.convention, eps, _ = held(SCALE_NORM, convention, eps, 0.0)
        self.eps = check_number("eps", eps, least=0.0)
        self.scale = full(library, (), math.sqrt(check_number("dim", self.dim)), dtype, device)

    def __call__(self, x: ArrayT, *, out: Array | None = None) -> ArrayT:
        """Normalize an array of the scale's library."""
        if type(x) is not numpy.ndarray or x.shape[-1:] != (self.dim,):
            self._require_lengths(x, (self.dim,))
        try:
            return scale_norm(x, self.scale, eps=self.eps, convention=without_offset(self.convention), out=out)
        except TypeError:
            self._require_own_library(x)
            raise

    def _config(self) -> tuple[Any, ...]:
        return self.dim, self.eps, self.convention, self._dtype_name()

    def __repr__(self) -> str:
        options = {} if self.convention is None else {"convention": written(self.convention)}
        return self._repr(self.dim, eps=self.eps, **options, dtype=self._dtype_name())


def _flatten(norm: HoldsParameters) -> tuple[tuple[Any, ...], tuple[tuple[str, Any], ...]]:
    rest = {name: value for name, value in vars(norm).items() if name not in norm._parameter_names}
    return tuple(getattr(norm, name) for name in norm._parameter_names), tuple(rest.items())


def _unflatten(
    kind: type[HoldsParameters], rest: tuple[tuple[str, Any], ...], leaves: tuple[Any, ...]
) -> HoldsParameters:
    norm = object.__new__(kind)
    vars(norm).update(rest)
    vars(norm).update(zip(kind._parameter_names, leaves, strict=True))
    return norm


for _kind in (LayerNorm, RMSNorm, ScaleNorm):
    pytree(_kind, _kind._parameter_names, _flatten, partial(_unflatten, _kind))
