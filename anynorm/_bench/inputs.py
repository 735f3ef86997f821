"""Inputs of a case, made from a seed, and the check of a result against the formula in float64."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from anynorm._bench.cases import LAYERS, Case
from anynorm._bench.exact import FORMATS, largest_ulp

Array = Any  # of NumPy, torch or JAX

# Largest error allowed before a rival is timed, relative to max(|y|, root mean square of y's row). It tells a wrong
# result from a rounded one: some rivals round twice or sum in float32. anynorm's own bounds are in the test suite.
TOLERANCE = {"float32": 1e-5, "float16": 2.0**-9, "bfloat16": 2.0**-6, "float64": 1e-13}

# A prime, so that rows differ although the deviates repeat; drawing each element anew would take longer than timing.
_DEVIATES = 1_000_003
_BLOCK_ELEMENTS = 1 << 20


def make_inputs(case: Case, library: str, seed: int = 0) -> tuple[Any, Any, Any]:
    """Return x, weight, bias in "numpy" or "torch"; torch's own allocator holds its tensors."""
    random = np.random.default_rng(seed)
    deviates = random.standard_normal(_DEVIATES, dtype=np.float32)
    if (case.mean, case.size) != (0.0, 1.0):
        deviates = (case.size * (deviates.astype(np.float64) + case.mean)).astype(case.dtype)
    weight = 1 + 0.1 * random.standard_normal(case.features, dtype=np.float32)
    bias = 0.1 * random.standard_normal(case.features, dtype=np.float32)
    if library == "numpy":
        if case.dtype == "bfloat16":
            import ml_dtypes  # noqa: F401 - which tells NumPy the name
        x = np.resize(deviates.astype(case.dtype), case.shape)
        return x, weight.astype(case.dtype), bias.astype(case.dtype)
    return _torch_inputs(case, deviates, weight, bias)


def _torch_inputs(case: Case, deviates: Array, weight: Array, bias: Array) -> tuple[Any, Any, Any]:
    import torch

    dtype = getattr(torch, case.dtype)
    source, weight, bias = (torch.tensor(array).to(dtype) for array in (deviates, weight, bias))
    x = torch.empty(case.shape, dtype=dtype)
    flat = x.view(-1)
    for first in range(0, flat.numel(), _DEVIATES):
        part = flat[first : first + _DEVIATES]
        part.copy_(source[: part.numel()])
    return x, weight, bias


def make_gradient(case: Case, library: str = "torch") -> Any:
    """Return a gradient of the result."""
    return make_inputs(case, library, seed=1)[0]


def make_matrices(case: Case) -> Array:
    """Return a matrix for each layer of a model: from numbers as large as 1 to such as large."""
    random = np.random.default_rng(2)
    matrices = random.standard_normal((LAYERS, case.features, case.features)) / math.sqrt(case.features)
    return matrices.astype(case.dtype)


def largest_error(case: Case, x: Any, weight: Any, bias: Any, y: Any) -> float:
    """Compare a result with the formula in float64, a block of the first axis at a time.

    Gradients come as dx, or as a tuple of those of x, weight and bias; of a model's only that of x is compared.
    """
    y, *by_parameters = y if isinstance(y, tuple) else (y,)
    if tuple(y.shape) != case.shape or case.dtype not in str(y.dtype):
        raise ValueError(f"expected {case.dtype} {case.shape}, got {y.dtype} {tuple(y.shape)}")
    dy: Any = None if case.of == "y" else make_gradient(case, "torch" if hasattr(x, "double") else "numpy")
    weight, bias = as_float64(weight), as_float64(bias)
    step = max(1, _BLOCK_ELEMENTS // math.prod(case.shape[1:]))
    errors: list[float] = []
    sums: list[Any] = [0.0, 0.0] if case.of == "dx" else []
    for first in range(0, case.shape[0], step):
        block = (slice(first, min(first + step, case.shape[0])), ...)  # as strict as array-api-strict
        wide = as_float64(x[block])
        if case.of == "y":
            expected = formula(case, wide, weight, bias)
        elif case.of == "model":
            expected = model_derivative(case, wide, weight, bias, as_float64(dy[block]))
        else:
            expected, share = derivative(case, wide, weight, as_float64(dy[block]))
            if by_parameters:
                sums = [sums[0] + share.sum(0), sums[1] + as_float64(dy[block]).sum(0)]
        errors.append(_error(as_float64(y[block]), expected, case.axis))
    errors += [_error(as_float64(found), expected, -1) for found, expected in zip(by_parameters, sums, strict=False)]
    return float(np.max(errors))  # NaN if one is


def judged_rows(case: Case, x: Any, weight: Any, bias: Any, y: Any) -> dict[str, Any]:
    """Look at a few rows along the last axis: the largest error, ``ulp``, in units of the last place.

    That is None where a result is not finite. Where half of the digits are wrong in each row, ``became`` says what such
    a row is, if there is a word for it.
    """
    weight, bias = (as_float64(array).tolist() for array in (weight, bias))
    rows = sorted({0, case.shape[0] // 2, case.shape[0] - 1})
    found, became = [], []
    for row in rows:
        block = (slice(row, row + 1), ...)
        wide = [as_float64(array[block]).reshape(-1, case.features)[0].tolist() for array in (x, y)]
        found.append(largest_ulp(case, wide[0], weight, bias, wide[1]))
        became.append(None if found[-1] < half_of_the_digits(case.dtype) else word_for(case, wide[0], wide[1], bias))
    ulp = None if any(map(math.isnan, found)) else float(f"{max(found):.3g}")
    return {"ulp": ulp} | ({"became": became[0]} if all(became) else {})


def half_of_the_digits(dtype: str) -> int:
    """From which error on, in units of the last place, half of the digits are wrong."""
    return int(2 ** (FORMATS[dtype][0] // 2))


def word_for(case: Case, x: Sequence[float], y: Sequence[float], bias: Sequence[float]) -> str | None:
    """What a wrong row is: NaN, infinite, 0 before the bias, x as it was, or None."""
    if any(map(math.isnan, y)):
        return "NaN"
    if any(map(math.isinf, y)):
        return "infinite"
    if y == x:
        return "unchanged"
    return "0" if y == (bias if case.norm == "layer_norm" else [0.0] * len(y)) else None


def _error(found: Array, expected: Array, axis: int) -> float:
    scale = np.maximum(np.abs(expected), np.sqrt(np.mean(expected**2, axis=axis, keepdims=True)))
    return float(np.max(np.abs(found - expected) / scale))


def formula(case: Case, x: Array, weight: Array, bias: Array) -> Array:
    """Return the norm of x as the formula stands; numbers near 1 need no more care in float64."""
    if case.norm == "scale_norm":
        return x / np.maximum(np.sqrt(np.sum(x**2, axis=case.axis, keepdims=True)), case.eps)
    along_axis = tuple(-1 if axis == case.axis % x.ndim else 1 for axis in range(x.ndim))
    weight, bias = weight.reshape(along_axis), bias.reshape(along_axis)
    if case.norm == "rms_norm":
        return x / np.sqrt(np.mean(x**2, axis=case.axis, keepdims=True) + case.eps) * weight
    centred = x - np.mean(x, axis=case.axis, keepdims=True)
    return centred / np.sqrt(np.mean(centred**2, axis=case.axis, keepdims=True) + case.eps) * weight + bias


def derivative(case: Case, x: Array, weight: Array, dy: Array) -> tuple[Array, Array]:
    """Return dx as the formula stands, along the last axis, and each row's share of the gradient of the weight."""
    count, eps, g = (1, 0.0, dy) if case.norm == "scale_norm" else (case.features, case.eps, dy * weight)
    if case.norm == "layer_norm":
        x, g = x - np.mean(x, axis=-1, keepdims=True), g - np.mean(g, axis=-1, keepdims=True)
    factor = 1 / np.sqrt(np.sum(x**2, axis=-1, keepdims=True) / count + eps)
    dx = factor * (g - x * np.sum(g * x, axis=-1, keepdims=True) / count * factor**2)
    return dx, dy * x * factor


def model_derivative(case: Case, x: Array, weight: Array, bias: Array, dy: Array) -> Array:
    """Return dx of a model whose layers add the product of their norm and a matrix."""
    entered, matrices = [], as_float64(make_matrices(case))
    for matrix in matrices:
        entered.append(x)
        x = x + formula(case, x, weight, bias) @ matrix
    for x, matrix in zip(reversed(entered), reversed(matrices), strict=True):
        dy = dy + derivative(case, x, weight, dy @ matrix.T)[0]
    return dy


def as_float64(array: Any) -> Array:
    """Widen a NumPy, JAX or torch array."""
    return array.detach().double().numpy() if hasattr(array, "double") else np.asarray(array).astype(np.float64)
