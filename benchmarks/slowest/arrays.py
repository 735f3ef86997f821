"""The arrays of a case: their numbers, and how they lie in memory."""

from typing import Any, NamedTuple

import numpy as np

from benchmarks.slowest.draw import Case

_DEVIATES = 1_000_003  # a prime, so that rows differ although the deviates repeat
_LARGE_MEAN, _LARGE = 1e4, {"float16": 1e2, "bfloat16": 1e30, "float32": 1e30, "float64": 1e200}
_LARGE_ROWS = 0.02


class Arrays(NamedTuple):
    """What a call is given."""

    x: Any
    weight: Any
    bias: Any
    other: Any  # the residual, dy or out


def arrays_of(case: Case, seed: int = 0) -> Arrays:
    """The arrays of NumPy, or of torch where they have a dtype that torch alone has."""
    random = np.random.default_rng(seed)
    deviates = random.standard_normal(_DEVIATES)
    count = int(np.prod(case.shape))
    values = np.resize(deviates, count).reshape(case.shape)
    if case.size == "mean":
        values = values + (_LARGE_MEAN if case.dtype != "float16" else 100.0)
    elif case.size == "mixed":
        rows = [1 if axis in case.axes else length for axis, length in enumerate(case.shape)]
        values = values * np.where(random.random(rows) < _LARGE_ROWS, _LARGE[case.dtype], 1.0)
    elif case.size != 1.0:
        values = values * case.size
    other = np.resize(deviates[1:], count).reshape(case.shape)
    shape = [case.shape[axis] for axis in case.axes]
    weight = 1 + 0.1 * random.standard_normal(shape) if case.weight else None
    bias = 0.1 * random.standard_normal(shape) if case.bias else None
    parameters = (None if one is None else in_dtype(one, case.dtype) for one in (weight, bias))
    x, other = (laid_out(in_dtype(one, case.dtype), case.order, random) for one in (values, other))
    return Arrays(x, *parameters, other)


def in_dtype(values: np.ndarray, dtype: str) -> np.ndarray:
    """Numbers in a dtype; those of bfloat16 as ml_dtypes has it."""
    if dtype == "bfloat16":
        import ml_dtypes

        return values.astype(ml_dtypes.bfloat16)
    with np.errstate(over="ignore"):
        return values.astype(dtype)


def laid_out(values: np.ndarray, order: str, random: np.random.Generator) -> np.ndarray:
    """The same numbers in another place of memory."""
    place = room(values.shape, values.dtype, order, random)
    place[...] = values
    return place


def room(shape: tuple[int, ...], dtype: np.dtype, order: str, random: np.random.Generator) -> np.ndarray:
    """An array of a shape that lies in memory as the order says."""
    ndim = len(shape)
    if order == "Fortran":
        return np.empty(shape, dtype, order="F")
    if order == "swapped":
        axes = random.permutation(ndim)
        return np.empty([shape[axis] for axis in axes], dtype).transpose(np.argsort(axes))
    if order in ("every second", "reversed"):
        which, step = int(random.integers(ndim)), (2 if order == "every second" else -1)
        made = np.empty([length * abs(step) if axis == which else length for axis, length in enumerate(shape)], dtype)
        return made[tuple(slice(None, None, step if axis == which else 1) for axis in range(ndim))]
    if order == "offset":
        return np.empty(int(np.prod(shape)) + 1, dtype)[1:].reshape(shape)
    if order in ("padded", "power of two"):
        length = shape[-1] + 3 if order == "padded" else 1 << (shape[-1] - 1).bit_length()
        return np.empty((*shape[:-1], length), dtype)[..., : shape[-1]]
    return np.empty(shape, dtype)


def as_tensor(array: np.ndarray | None) -> Any:
    """A tensor of the same memory."""
    import torch

    if array is None:
        return None
    if array.dtype.name == "bfloat16":
        return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(array)
