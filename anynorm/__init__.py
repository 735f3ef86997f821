"""LayerNorm, RMSNorm and ScaleNorm for whatever array you have."""

from anynorm._choose import use_kernel
from anynorm._explain import Explanation, explain
from anynorm._gradients import (
    add_layer_norm_vjp,
    add_rms_norm_vjp,
    layer_norm_vjp,
    rms_norm_vjp,
    scale_norm_vjp,
)
from anynorm._moments import Moments
from anynorm._moments_gradient import MomentsGradient
from anynorm._moments_vjp import moments_vjp
from anynorm._norms import add_layer_norm, add_rms_norm, layer_norm, moments, rms_norm, scale_norm
from anynorm._threads import get_threads, set_threads
from anynorm.modules import LayerNorm, RMSNorm, ScaleNorm

__version__ = "0.1.0"

__all__ = [
    "Explanation",
    "LayerNorm",
    "Moments",
    "MomentsGradient",
    "RMSNorm",
    "ScaleNorm",
    "add_layer_norm",
    "add_layer_norm_vjp",
    "add_rms_norm",
    "add_rms_norm_vjp",
    "explain",
    "get_threads",
    "layer_norm",
    "layer_norm_vjp",
    "moments",
    "moments_vjp",
    "rms_norm",
    "rms_norm_vjp",
    "scale_norm",
    "scale_norm_vjp",
    "set_threads",
    "use_kernel",
]
