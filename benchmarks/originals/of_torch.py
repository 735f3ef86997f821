"""The norms of torch and x-transformers."""

from collections.abc import Callable
from typing import Any

import numpy as np

from benchmarks.originals import Original


def by_torch(compute: Callable[..., Any]) -> Callable[..., np.ndarray]:
    """Call with tensors of the same bits; return an array of them."""

    def run(x: np.ndarray, weight: np.ndarray, bias: np.ndarray | None, eps: float) -> np.ndarray:
        import torch

        with torch.no_grad():
            y = compute(*(None if one is None else to_torch(one) for one in (x, weight, bias)), eps)
        return to_numpy(y)

    return run


def to_torch(array: np.ndarray) -> Any:
    import torch

    if array.dtype.name == "bfloat16":
        return torch.from_numpy(np.atleast_1d(array).view(np.int16).copy()).view(torch.bfloat16).reshape(array.shape)
    return torch.from_numpy(array.copy())


def to_numpy(tensor: Any) -> np.ndarray:
    import ml_dtypes
    import torch

    if tensor.dtype is torch.bfloat16:
        return tensor.contiguous().view(torch.int16).numpy().view(ml_dtypes.bfloat16)
    return tensor.numpy()


def module_with(module: Any, **parameters: Any) -> Any:
    """A module whose parameters are these."""
    import torch

    for name, value in parameters.items():
        if value is not None:
            setattr(module, name, torch.nn.Parameter(value))
    return module


@by_torch
def layer_norm(x: Any, weight: Any, bias: Any, eps: float) -> Any:
    import torch

    return torch.nn.functional.layer_norm(x, x.shape[-1:], weight, bias, eps)


@by_torch
def rms_norm(x: Any, weight: Any, bias: Any, eps: float) -> Any:
    import torch

    return torch.nn.functional.rms_norm(x, x.shape[-1:], weight, eps)


@by_torch
def normalize(x: Any, scale: Any, bias: Any, eps: float) -> Any:
    import torch

    return torch.nn.functional.normalize(x, dim=-1, eps=eps) * scale


def _of_x_transformers(kind: str, parameter: str) -> Callable[..., np.ndarray]:
    @by_torch
    def run(x: Any, weight: Any, bias: Any, eps: float) -> Any:
        from x_transformers import x_transformers

        module = getattr(x_transformers, kind)(x.shape[-1])
        return module_with(module, **{parameter: weight})(x)

    return run


@by_torch
def _scale_norm_of_x_transformers(x: Any, scale: Any, bias: Any, eps: float) -> Any:
    """With the gain 1 that it starts with: its scale is the root of the length."""
    from x_transformers import x_transformers

    return x_transformers.ScaleNorm(x.shape[-1]).to(x.dtype)(x)


# In float16 torch rounds an eps of 1e-12 to 0, and rows of zeros become NaN.
_HALVES = {"eps": 1e-12, "has_zeros": False}
ORIGINALS = (
    Original("torch.nn.functional.layer_norm", "torch", "layer_norm", "torch", layer_norm, has_bias=True),
    Original("torch.nn.functional.rms_norm", "torch", "rms_norm", "torch", rms_norm),
    Original("torch.nn.functional.normalize", "torch", "scale_norm", "x_transformers", normalize, **_HALVES),
    Original(
        "x_transformers.LayerNorm",
        "x-transformers",
        "layer_norm",
        "x_transformers",
        _of_x_transformers("LayerNorm", "gamma"),
    ),
    Original(
        "x_transformers.RMSNorm",
        "x-transformers",
        "rms_norm",
        "x_transformers",
        _of_x_transformers("RMSNorm", "g"),
        **_HALVES,
    ),
    Original(
        "x_transformers.ScaleNorm",
        "x-transformers",
        "scale_norm",
        "x_transformers",
        _scale_norm_of_x_transformers,
        scale=None,  # the root of the features
        **_HALVES,
    ),
)
