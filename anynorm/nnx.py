"""LayerNorm, RMSNorm and ScaleNorm as modules of Flax NNX.

Modules::

    LayerNorm           in place of flax.nnx.LayerNorm
    RMSNorm             in place of flax.nnx.RMSNorm
    ScaleNorm           with a single parameter

The first two are subclasses of Flax's, with the same arguments and the same parameters under the same names; only the
computation differs. What Flax does with a module works with these: its transforms, `flax.nnx.Optimizer`, split and
merge, checkpoints. A state of one is a state of the other.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from flax.nnx.nn.dtypes import promote_dtype as promoted
from flax.typing import Axes, Dtype, Initializer, PromoteDtypeFn

from anynorm._by_convention import held
from anynorm._convention import SCALE_NORM_EPS, Convention, DefaultEps
from anynorm._definition.norms import LAYER_NORM, RMS_NORM, SCALE_NORM
from anynorm._modules.nnx_forward import normalized, promoted_by, require_features
from anynorm._norms import layer_norm, rms_norm, scale_norm
from anynorm._numbers import check_length, check_number

__all__ = ["LayerNorm", "RMSNorm", "ScaleNorm"]

_EPSILON = DefaultEps(1e-6)  # Flax's
_FLOAT32 = jnp.dtype("float32")
_NO_METADATA: Mapping[str, Any] = MappingProxyType({})


class LayerNorm(nnx.LayerNorm):
    """`anynorm.layer_norm` as a module: a flax.nnx.LayerNorm that computes in another way.

    ``y = (x - mean(x)) / sqrt(var(x) + epsilon) * scale + bias``, where mean and population variance run over
    ``reduction_axes``. ``scale`` and ``bias`` are of shape (num_features,), and belong to ``feature_axes``.

    Parameters
    ----------
    num_features : int
        The length of the feature axis, or the product of the lengths of several.
    epsilon : float
        Added to the variance, in x's units squared.
    dtype : dtype, optional
        That of the result, to which x, scale and bias are converted first. Left out, it is the one to which JAX
        promotes the three: float32 for a bfloat16 x and float32 parameters.
    param_dtype : dtype
        That of scale and bias.
    use_bias, use_scale : bool
        Whether there is one.
    bias_init, scale_init : initializer, optional
        Left out, zeros and ones.
    reduction_axes, feature_axes : int or sequence of ints
        The axes to normalize over, and those that have scale and bias.
    axis_name : str, optional
        The mapped axis of jax.shard_map, pmap or vmap over which rows are cut: moments of the pieces are merged.
    axis_index_groups : list of lists of ints, optional
        Groups of pieces along that axis, each of which is a row of its own, all of one size.
    use_fast_variance : bool
        Changes nothing. The variance is always that of centred values, as precise as `anynorm.layer_norm` says.
    promote_dtype : function, optional
        From (x, scale, bias) and ``dtype=`` to the three in one dtype; left out, as said of ``dtype``.
    rngs : flax.nnx.Rngs
        For the initializers.
    bias_metadata, scale_metadata : mapping
        Metadata of the parameters, such as their sharding.
    convention : Convention or str, optional
        How to compute it, as in `anynorm.layer_norm`. Its eps and weight_offset are taken over; the offset is added to
        scale, which starts at 1 less then.

    Raises
    ------
    TypeError, ValueError
        If an argument does not fit; when called, as `anynorm.layer_norm`, and if a mask does not fit x.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> from flax import nnx
    >>> import anynorm.nnx
    >>> norm = anynorm.nnx.LayerNorm(3, rngs=nnx.Rngs(0))
    >>> norm(jnp.asarray([[1.0, 2.0, 3.0]])).round(3)
    Array([[-1.225,  0.   ,  1.225]], dtype=float32)
    """

    convention: Convention | None
    weight_offset: float

    def __init__(
        self,
        num_features: int,
        *,
        epsilon: float = _EPSILON,
        dtype: Dtype | None = None,
        param_dtype: Dtype = _FLOAT32,
        use_bias: bool = True,
        use_scale: bool = True,
        bias_init: Initializer | None = None,
        scale_init: Initializer | None = None,
        reduction_axes: Axes = -1,
        feature_axes: Axes = -1,
        axis_name: str | None = None,
        axis_index_groups: Any = None,
        use_fast_variance: bool = True,
        promote_dtype: PromoteDtypeFn | None = None,
        rngs: nnx.Rngs,
        bias_metadata: Mapping[str, Any] = _NO_METADATA,
        scale_metadata: Mapping[str, Any] = _NO_METADATA,
        convention: Convention | str | None = None,
    ) -> None:
        self.convention, epsilon, self.weight_offset = held(LAYER_NORM, convention, epsilon, 0.0)
        super().__init__(
            check_length("num_features", num_features),
            epsilon=check_number("epsilon", epsilon, least=0.0),
            dtype=dtype,
            param_dtype=param_dtype,
            use_bias=use_bias,
            use_scale=use_scale,
            bias_init=bias_init or nnx.initializers.zeros,
            scale_init=scale_init or nnx.initializers.constant(1.0 - self.weight_offset),
            reduction_axes=reduction_axes,
            feature_axes=feature_axes,
            axis_name=axis_name,
            axis_index_groups=axis_index_groups,
            use_fast_variance=use_fast_variance,
            promote_dtype=promote_dtype or promoted,
            rngs=rngs,
            bias_metadata=bias_metadata,
            scale_metadata=scale_metadata,
        )

    def __call__(self, x: jax.Array, *, mask: jax.Array | None = None) -> jax.Array:
        """Normalize an array; where there is a mask, by the statistics of the elements where it is true."""
        return normalized(self, layer_norm, x, (self.scale, self.bias), mask)


class RMSNorm(nnx.RMSNorm):
    """`anynorm.rms_norm` as a module: a flax.nnx.RMSNorm that computes in another way.

    ``y = x / sqrt(mean(x**2) + epsilon) * scale``, where the mean runs over ``reduction_axes``. ``scale`` is of shape
    (num_features,), and belongs to ``feature_axes``. Parameters are those of `LayerNorm`, without those of a bias;
    ``epsilon`` is added to the mean square.

    Raises
    ------
    TypeError, ValueError
        If an argument does not fit; when called, as `anynorm.rms_norm`, and if a mask does not fit x.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> from flax import nnx
    >>> import anynorm.nnx
    >>> anynorm.nnx.RMSNorm(2, rngs=nnx.Rngs(0))(jnp.asarray([[1.0, 7.0]]))
    Array([[0.2, 1.4]], dtype=float32)
    """

    convention: Convention | None
    weight_offset: float

    def __init__(
        self,
        num_features: int,
        *,
        epsilon: float = _EPSILON,
        dtype: Dtype | None = None,
        param_dtype: Dtype = _FLOAT32,
        use_scale: bool = True,
        scale_init: Initializer | None = None,
        reduction_axes: Axes = -1,
        feature_axes: Axes = -1,
        axis_name: str | None = None,
        axis_index_groups: Any = None,
        use_fast_variance: bool = True,
        promote_dtype: PromoteDtypeFn | None = None,
        rngs: nnx.Rngs,
        scale_metadata: Mapping[str, Any] = _NO_METADATA,
        convention: Convention | str | None = None,
    ) -> None:
        self.convention, epsilon, self.weight_offset = held(RMS_NORM, convention, epsilon, 0.0)
        super().__init__(
            check_length("num_features", num_features),
            epsilon=check_number("epsilon", epsilon, least=0.0),
            dtype=dtype,
            param_dtype=param_dtype,
            use_scale=use_scale,
            scale_init=scale_init or nnx.initializers.constant(1.0 - self.weight_offset),
            reduction_axes=reduction_axes,
            feature_axes=feature_axes,
            axis_name=axis_name,
            axis_index_groups=axis_index_groups,
            use_fast_variance=use_fast_variance,
            promote_dtype=promote_dtype or promoted,
            rngs=rngs,
            scale_metadata=scale_metadata,
        )

    def __call__(self, x: jax.Array, mask: jax.Array | None = None) -> jax.Array:
        """Normalize an array; where there is a mask, by the mean square of the elements where it is true."""
        return normalized(self, rms_norm, x, (self.scale,), mask)


class ScaleNorm(nnx.Module):
    """`anynorm.scale_norm` over the last axis as a module, with a single parameter, ``scale`` of shape ().

    ``y = scale * x / max(norm2(x), epsilon)``

    Parameters
    ----------
    num_features : int
        The length of the last axis; the scale starts at sqrt(num_features), as in the paper.
    epsilon : float
        The least length to divide by.
    dtype, param_dtype, promote_dtype, rngs, scale_metadata, convention
        As in `LayerNorm`; ``promote_dtype`` is given (x, scale).
    scale_init : initializer, optional
        Called with the shape ().

    Raises
    ------
    TypeError, ValueError
        If an argument does not fit; when called, as `anynorm.scale_norm`, and if the last axis has another length.

    Examples
    --------
    >>> from flax import nnx
    >>> import anynorm.nnx
    >>> anynorm.nnx.ScaleNorm(4, rngs=nnx.Rngs(0)).scale[...]
    Array(2., dtype=float32)
    """

    num_features: int
    epsilon: float
    dtype: Dtype | None
    param_dtype: Dtype
    promote_dtype: PromoteDtypeFn
    convention: Convention | None
    scale: nnx.Param[jax.Array]

    def __init__(
        self,
        num_features: int,
        *,
        epsilon: float = SCALE_NORM_EPS,
        dtype: Dtype | None = None,
        param_dtype: Dtype = _FLOAT32,
        scale_init: Initializer | None = None,
        promote_dtype: PromoteDtypeFn | None = None,
        rngs: nnx.Rngs,
        scale_metadata: Mapping[str, Any] = _NO_METADATA,
        convention: Convention | str | None = None,
    ) -> None:
        self.num_features = check_length("num_features", num_features)
        self.convention, epsilon, _ = held(SCALE_NORM, convention, epsilon, 0.0)
        self.epsilon = check_number("epsilon", epsilon, least=0.0)
        self.dtype, self.param_dtype, self.promote_dtype = dtype, param_dtype, promote_dtype or promoted
        start = scale_init or nnx.initializers.constant(math.sqrt(self.num_features))
        self.scale = nnx.Param(start(rngs.params(), (), param_dtype), **scale_metadata)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Normalize an array whose last axis has the length num_features."""
        x, (scale,), dtype = promoted_by(self, x, (self.scale,))
        if x.ndim:
            require_features(self.num_features, x, (x.ndim - 1,))
        return jnp.asarray(scale_norm(x, scale, eps=self.epsilon, convention=self.convention), dtype)
