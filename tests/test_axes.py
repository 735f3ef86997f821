"""Any axis or axes, on every library: the same as moving them to the end."""

import functools

import numpy as np
import pytest

import anynorm
from tests import reference
from tests.backends import BACKENDS, as_dtype
from tests.tolerances import assert_exact

SHAPE = (2, 3, 4, 5)
SOME, THOROUGH = (1, (3, 0)), [pytest.mark.thorough]
AXES = [0, 1, 2, 3, -1, -3, (1,), (0, 1), (3, 0), (-2, -1), (1, 2, 3), [0, 2], (0, 1, 2, 3)]


def normalized_axes(axis):
    return tuple(sorted(a % 4 for a in ((axis,) if isinstance(axis, int) else axis)))


@functools.cache  # for one backend after the other
def expected_rows(norm, axes):
    x, weight, bias = made(axes)
    rows = np.moveaxis(x, axes, range(-len(axes), 0)).reshape(-1, weight.size)
    if norm == "scale_norm":
        return [reference.scale_norm(row, 1.5, 1e-5) for row in rows]
    return [getattr(reference, norm)(row, weight.ravel(), bias.ravel(), 1e-5) for row in rows]


def made(axes):
    """x, weight and bias."""
    rng = np.random.default_rng(0)
    lengths = tuple(SHAPE[a] for a in axes)
    return as_dtype(rng.standard_normal(SHAPE) + 2, "float32"), *as_dtype(rng.standard_normal((2, *lengths)), "float32")


# Which axes are meant is found out alike for each norm.
CASES = [
    pytest.param(norm, axis, id=f"{norm}-{axis}", marks=[] if norm == "layer_norm" or axis in SOME else THOROUGH)
    for norm in ("layer_norm", "rms_norm", "scale_norm")
    for axis in AXES
]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("norm", "axis"), CASES)
def test_any_axes(norm, axis, backend):
    axes = normalized_axes(axis)
    x, weight, bias = made(axes)
    expected = expected_rows(norm, axes)
    with backend.context():
        if norm == "scale_norm":
            y = anynorm.scale_norm(backend.make(x), 1.5, axis=axis)
        else:
            y = getattr(anynorm, norm)(*map(backend.make, (x, weight, bias)), axis=axis, eps=1e-5)
        got = np.moveaxis(backend.read(y), axes, range(-len(axes), 0)).reshape(-1, weight.size)
    assert_exact(got, expected, backend=backend.name, dtype="float32", norm=norm)


@pytest.mark.parametrize("axis", [0, 1, (0, 1)])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_long_leading_axes(axis, dtype):
    # NumPy adds along a leading axis one term after the other, which costs accuracy that must not show.
    x = as_dtype(np.random.default_rng(1).standard_normal((5000, 3)) + 1e5, dtype)
    axes = (axis,) if isinstance(axis, int) else axis
    last = np.moveaxis(x, axes, range(-len(axes), 0)).reshape(-1, np.prod([x.shape[a] for a in axes]))
    got = np.moveaxis(anynorm.layer_norm(x, axis=axis), axes, range(-len(axes), 0)).reshape(last.shape)
    rows = slice(0, 3)
    expected = [reference.layer_norm(row) for row in last[rows]]
    assert_exact(got[rows], expected, backend="numpy", dtype=dtype, norm="layer_norm")


def test_blocks_cut_the_longest_free_axis():
    x = np.random.default_rng(2).standard_normal((3, 8, 40_000)).astype(np.float32)
    y = anynorm.layer_norm(x, axis=1)
    assert y.shape == x.shape
    np.testing.assert_array_equal(y[:, :, 39_000:], anynorm.layer_norm(x[:, :, 39_000:].copy(), axis=1))
