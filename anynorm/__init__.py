"""LayerNorm, RMSNorm and ScaleNorm for whatever array you have."""

from anynorm._choose import use_kernel
from anynorm._explain import Explanation, explain
from anynorm._moments import Moments
from anynorm._norms import add_layer_norm, add_rms_norm, layer_norm, moments, rms_norm, scale_norm
from anynorm._threads import get_threads, set_threads
from anynorm.modules import LayerNorm, RMSNorm, ScaleNorm

__version__ = "0.1.0"

__all__ = [
    "Explanation",
    "LayerNorm",
    "Moments",
    "RMSNorm",
    "ScaleNorm",
    "add_layer_norm",
    "add_rms_norm",
    "explain",
    "get_threads",
    "layer_norm",
    "moments",
    "rms_norm",
    "scale_norm",
    "set_threads",
    "use_kernel",
]
