"""The norms of flax, which are the same functions in flax.linen and flax.nnx."""

from collections.abc import Callable
from typing import Any

import numpy as np

from benchmarks.originals import Original


def _of_flax(kind: str, **options: Any) -> Callable[..., np.ndarray]:
    def run(x: np.ndarray, weight: np.ndarray, bias: np.ndarray | None, eps: float) -> np.ndarray:
        import flax.linen
        import jax.numpy as jnp

        parameters = (
            {"scale": jnp.asarray(weight)}
            if bias is None
            else {"scale": jnp.asarray(weight), "bias": jnp.asarray(bias)}
        )
        module = getattr(flax.linen, kind)(epsilon=eps, **options)
        return np.asarray(module.apply({"params": parameters}, jnp.asarray(x)))

    return run


ORIGINALS = (
    Original(
        "flax LayerNorm", "flax", "layer_norm", "flax", _of_flax("LayerNorm", use_fast_variance=False), True, eps=1e-6
    ),
    Original("flax RMSNorm", "flax", "rms_norm", "flax", _of_flax("RMSNorm")),
)
