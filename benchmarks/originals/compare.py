"""An original and a convention, bit by bit."""

from typing import Any, NamedTuple

import numpy as np

import anynorm
from benchmarks.originals import Inputs, Original

# Bits of the significand, and the exponent of the smallest positive number.
_FORMATS = {"float16": (11, -24), "bfloat16": (8, -133), "float32": (24, -149)}


class Compared(NamedTuple):
    """How a convention compares with its original."""

    equal: float  # the share of results that are bit-equal
    ulp: float  # the largest difference, in units in the last place


def by_anynorm(original: Original, inputs: Inputs) -> np.ndarray:
    """The same by anynorm, in the original's convention."""
    x, weight, bias, eps = inputs
    options: dict[str, Any] = {} if original.convention is None else {"convention": original.convention}
    parameters = (weight,) if bias is None else (weight, bias)
    return getattr(anynorm, original.norm)(x, *parameters, eps=eps, **options)


def compare(original: Original, inputs: Inputs, theirs: np.ndarray, ours: np.ndarray) -> Compared:
    """Compare two results.

    A unit is taken at the largest of x_hat * weight, bias and the result itself, for layer_norm with an x_hat of 1 at
    least, as in the promise of the contract. NaN in both is equal.
    """
    theirs, ours = (one.astype(np.float64) for one in (theirs, ours))
    equal = (theirs == ours) | (np.isnan(theirs) & np.isnan(ours))
    unit = units(original, inputs, theirs)
    apart = np.where(equal, 0.0, np.abs(theirs - ours) / unit)
    return Compared(float(equal.mean()), float(apart.max()))


def units(original: Original, inputs: Inputs, result: np.ndarray) -> np.ndarray:
    """One unit in the last place of x's dtype, for each result."""
    x, weight, bias = (None if one is None else one.astype(np.float64) for one in inputs[:3])
    assert x is not None
    assert weight is not None
    centred = original.norm == "layer_norm"
    deviations = x - x.mean(axis=-1, keepdims=True) if centred else x
    squares = (deviations**2).mean(axis=-1, keepdims=True)
    x_hat = np.abs(deviations / np.sqrt(squares + (inputs.eps or 1e-300)))
    if centred:
        x_hat = np.maximum(x_hat, 1.0)
    factor = weight if original.weight_at else weight + 1.0
    size = np.maximum(np.abs(x_hat * factor), np.abs(result))
    if bias is not None:
        size = np.maximum(size, np.abs(bias))
    digits, least = _FORMATS[inputs.x.dtype.name]
    return np.ldexp(1.0, np.maximum(np.frexp(size)[1] - digits, least))
