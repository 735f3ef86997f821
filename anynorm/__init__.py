"""LayerNorm, RMSNorm and ScaleNorm for whatever array you have.

Functions that take an array of any library and return one like it::

    layer_norm          rows of mean 0 and variance 1
    rms_norm            rows of root mean square 1
    scale_norm          unit vectors, or rows of any other length
    add_layer_norm      a sum, and its layer_norm
    add_rms_norm        a sum, and its rms_norm

The same with a pullback: from the gradient with respect to the result it finds those with respect to the arguments::

    layer_norm_vjp
    rms_norm_vjp
    scale_norm_vjp
    add_layer_norm_vjp
    add_rms_norm_vjp
    moments_vjp         the same of moments

Statistics of rows, which merge, and which every norm takes as ``moments=``::

    moments             those of an array
    Moments             what it returns
    MomentsGradient     what a pullback of a norm with given moments returns, and that of moments_vjp takes

How a norm is computed where implementations differ, which every norm takes as ``convention=``::

    Convention          where eps stands, what is rounded on the way
    CONVENTIONS         those of models and libraries, by name

What runs a call::

    explain             which kernel would, and why each other one would not
    Explanation         what it returns
    use_kernel          force one
    set_threads         how many threads one call may use
    get_threads

Norms that hold their parameters::

    LayerNorm
    RMSNorm
    ScaleNorm
    anynorm.torch       the same as modules of torch
    anynorm.nnx         the same as modules of Flax NNX
    anynorm.sklearn     the norms as a transformer of scikit-learn
"""

from anynorm._convention import CONVENTIONS, Convention
from anynorm._explain import Explanation, explain
from anynorm._gradients import layer_norm_vjp, rms_norm_vjp, scale_norm_vjp
from anynorm._moments import Moments
from anynorm._moments_gradient import MomentsGradient
from anynorm._moments_vjp import moments_vjp
from anynorm._norms import layer_norm, moments, rms_norm, scale_norm
from anynorm._residual import add_layer_norm, add_layer_norm_vjp, add_rms_norm, add_rms_norm_vjp
from anynorm._threads import get_threads, set_threads
from anynorm._use_kernel import use_kernel
from anynorm.modules import LayerNorm, RMSNorm, ScaleNorm

__version__ = "0.1.0"

__all__ = [
    "CONVENTIONS",
    "Convention",
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
