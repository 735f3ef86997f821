"""The norms of other libraries, as they are installed, called with NumPy arrays.

Each gives what its library computes for x, weight and bias, so that a convention can be compared with it bit by bit. A
library that is not installed leaves its originals out, with the reason.
"""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

Compute = Callable[[np.ndarray, np.ndarray, np.ndarray | None, float], Any]

DTYPES = {"float16": np.dtype(np.float16), "bfloat16": np.dtype(ml_dtypes.bfloat16), "float32": np.dtype(np.float32)}
EPS = {"layer_norm": 1e-5, "rms_norm": 1e-6, "scale_norm": 1e-12}


class Original(NamedTuple):
    """A norm of another library."""

    name: str
    package: str  # whose version is stated, by its name on PyPI
    norm: str  # the function of anynorm
    convention: str | None  # None: the default
    compute: Compute  # (x, weight, bias, eps) -> y
    has_bias: bool = False
    weight_at: float = 1.0  # around which weights lie
    eps: float | None = None  # None: that of EPS
    dtypes: tuple[str, ...] = ("float16", "bfloat16", "float32")
    scale: float | None = 1.0  # of scale_norm; None: the root of the length
    has_zeros: bool = True  # whether a row of zeros is a number to it


class Inputs(NamedTuple):
    """What an original and a convention are both given."""

    x: np.ndarray
    weight: np.ndarray
    bias: np.ndarray | None
    eps: float


def originals() -> Iterator[Original]:
    """Yield all originals; libraries are imported when one is computed."""
    from benchmarks.originals import keras_layers, of_jax, of_onnx, of_torch, of_transformers

    for module in (of_torch, of_transformers, of_onnx, of_jax, keras_layers):
        yield from module.ORIGINALS


def inputs_for(original: Original, dtype: str, rows: int = 256, features: int = 576) -> Inputs:
    """Draw rows as networks have them: each of its own scale, some with a large mean, some tiny, one of zeros."""
    random = np.random.default_rng([rows, features, len(original.name), *original.name.encode()])
    x = random.standard_normal((rows, features)) * 10.0 ** random.uniform(-2, 2, (rows, 1))
    x += np.where(np.arange(rows) % 4 == 0, 3.0, 0.0)[:, None] * x.std(axis=1, keepdims=True)
    x[1] *= 1e-4
    x[2] *= 0.0 if original.has_zeros else 1e-3
    weight = original.weight_at + 0.2 * random.standard_normal(features)
    if original.norm == "scale_norm":
        weight = np.asarray(features**0.5 if original.scale is None else original.scale)
    bias = 0.1 * random.standard_normal(features) if original.has_bias else None
    narrow = DTYPES[dtype]
    return Inputs(
        x.astype(narrow),
        weight.astype(narrow),
        None if bias is None else bias.astype(narrow),
        EPS[original.norm] if original.eps is None else original.eps,
    )
