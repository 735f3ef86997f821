"""The norms of Keras, by the backend that KERAS_BACKEND names."""

import os
from collections.abc import Callable
from typing import Any

import numpy as np

from benchmarks.originals import Original
from benchmarks.originals.of_torch import to_numpy, to_torch


def _of_keras(function: str) -> Callable[..., np.ndarray]:
    def run(x: np.ndarray, weight: np.ndarray, bias: np.ndarray | None, eps: float) -> np.ndarray:
        os.environ.setdefault("KERAS_BACKEND", "numpy")
        import keras

        arrays: dict[str, Any] = {"x": x, "weight": weight, "bias": bias}
        in_torch = keras.backend.backend() == "torch"
        x, weight, bias = (
            None if one is None else keras.ops.convert_to_tensor(to_torch(one) if in_torch else one)
            for one in arrays.values()
        )
        parameters = (weight,) if function == "rms_normalization" else (weight, bias)
        y = getattr(keras.ops, function)(x, *parameters, axis=-1, epsilon=eps)
        return to_numpy(y) if in_torch else np.asarray(y)

    return run


ORIGINALS = (
    Original(
        "keras LayerNormalization", "keras", "layer_norm", "keras", _of_keras("layer_normalization"), True, eps=1e-3
    ),
    Original("keras RMSNormalization", "keras", "rms_norm", "keras", _of_keras("rms_normalization")),
)
