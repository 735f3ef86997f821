"""Weights and biases that broadcast to x, per head, per sample and per channel, on every library."""

import functools

import mpmath
import numpy as np
import pytest

import anynorm
from tests import reference
from tests.backends import ALL, BACKENDS, as_dtype, thorough_but
from tests.derivatives import vjp
from tests.tolerances import (
    assert_exact,
    assert_sums_exact,
    gradient_bounds_of,
    gradient_of_rows,
    gradient_of_weight,
    is_narrow,
)

# Shapes of x, weight and bias, and the normalized axes.
CASES = {
    "per head": ((2, 3, 4, 5), (1, 1, 4, 5), (1, 1, 4, 5), -1),
    "per sample": ((3, 4, 5), (3, 1, 5), (3, 1, 5), -1),
    "per sample, one bias for all": ((3, 4, 5), (3, 1, 5), (5,), -1),
    "a bias alone": ((3, 4, 5), None, (1, 4, 5), 2),
    "the same for all rows": ((3, 4, 5), (1, 1, 5), (1, 1, 5), -1),
    "per channel, which is not normalized": ((2, 3, 4, 5), (1, 3, 1, 1), (1, 3, 1, 1), (2, 3)),
    "per channel, which is": ((2, 5, 3, 2), (2, 5, 1, 1), (1, 5, 3, 1), 1),
    "for each element": ((3, 2, 5), (3, 2, 5), (1, 2, 1), -1),
    "two axes, one of them": ((2, 3, 2, 3), (2, 1, 1, 3), (1, 3, 2, 1), (1, 3)),
    "one number": ((3, 5), (1, 1), (1, 1), -1),
    "x of one axis": ((5,), (5,), (1,), -1),
    "all axes": ((2, 5), (1, 5), (2, 1), (0, 1)),
    "heads as long as kernels take them in turns": ((2, 2, 16), (1, 2, 16), (1, 2, 16), -1),
    "rows of their own": ((3, 16), (3, 16), (3, 16), -1),
    "a number for rows": ((3, 4, 4), (3, 1, 1), (1, 1, 1), (1, 2)),
}


def made(case, dtype):
    """x, weight, bias and dy."""
    rng, shapes = np.random.default_rng(len(case)), CASES[case][:3]
    x, weight, bias, dy = (
        None if shape is None else as_dtype(rng.standard_normal(shape) + 0.5, dtype) for shape in (*shapes, shapes[0])
    )
    return x, weight, bias, dy


def axes_of(case):
    shape, axis = CASES[case][0], CASES[case][3]
    return tuple(one % len(shape) for one in ((axis,) if isinstance(axis, int) else axis))


def whole(parameter, shape, axes):
    """A parameter for each element of x, by the rules of the contract."""
    if parameter is not None and parameter.ndim < len(shape):
        parameter = np.expand_dims(parameter, tuple(axis for axis in range(len(shape)) if axis not in axes))
    return None if parameter is None else np.broadcast_to(parameter, shape)


def in_rows(array, axes):
    if array is None:
        return None
    count = np.prod([array.shape[axis] for axis in axes])
    return np.moveaxis(array, axes, range(-len(axes), 0)).reshape(-1, count)


@functools.cache  # for one backend after the other
def expected_rows(norm, case, dtype, offset):
    (x, weight, bias, _), axes = made(case, dtype), axes_of(case)
    rows = [in_rows(one, axes) for one in (x, *(whole(one, x.shape, axes) for one in (weight, bias)))]
    norm = getattr(reference, norm)
    return [
        norm(row, *(None if one is None else one[i] for one in rows[1:]), 1e-5, offset) for i, row in enumerate(rows[0])
    ]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("norm", ["layer_norm", "rms_norm"])
@pytest.mark.parametrize("case", CASES)
def test_results(case, norm, backend):
    dtype, offset = "float32", 0.25 * (CASES[case][1] is not None)
    x, weight, bias, _ = made(case, dtype)
    with backend.context():
        given = [None if one is None else backend.make(one) for one in (x, weight, bias)]
        y = getattr(anynorm, norm)(*given, axis=CASES[case][3], eps=1e-5, weight_offset=offset)
        got = backend.read(y)
    assert got.shape == x.shape
    expected = expected_rows(norm, case, dtype, offset)
    assert_exact(in_rows(got, axes_of(case)), expected, backend=backend.name, dtype=dtype, norm=norm)


@pytest.mark.parametrize("dtype", thorough_but("bfloat16", of=ALL))
@pytest.mark.parametrize("case", ["per head", "per sample", "per channel, which is not normalized"])
def test_results_of_each_dtype(case, dtype):
    x, weight, bias, _ = made(case, dtype)
    y = anynorm.layer_norm(x, weight, bias, axis=CASES[case][3], eps=1e-5)
    expected = expected_rows("layer_norm", case, dtype, 0.0)
    assert_exact(in_rows(y, axes_of(case)), expected, backend="numpy", dtype=dtype, norm="layer_norm")


def summed(terms, shape, x_shape, axes):
    """Lists of exact terms for each element of a parameter, from an array of them that has the shape of x."""
    ndim = len(x_shape)
    own = shape if len(shape) == ndim else [x_shape[axis] if axis in axes else 1 for axis in range(ndim)]
    over = [axis for axis in range(ndim) if own[axis] == 1]
    kept = [axis for axis in range(ndim) if own[axis] != 1]
    return terms.transpose(*over, *kept).reshape(int(np.prod([x_shape[axis] for axis in over], dtype=int)), -1)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("norm", ["layer_norm", "rms_norm"])
@pytest.mark.parametrize("case", CASES)
def test_gradients(case, norm, backend):
    dtype = "float32"
    (x, weight, bias, dy), axes = made(case, dtype), axes_of(case)
    with backend.context():
        given = [None if one is None else backend.make(one) for one in (x, weight, bias)]
        _, pullback = vjp(norm)(*given, axis=CASES[case][3], eps=1e-5)
        gradients = [None if one is None else backend.read(one) for one in pullback(backend.make(dy))]
    for got, like in zip(gradients, (x, weight, bias), strict=True):
        assert (got is None) == (like is None)
        assert got is None or (got.shape, got.dtype) == (like.shape, like.dtype)
    by_kernel = backend.name.startswith(("numpy", "torch")) and "definition" not in backend.name
    how = {"by_kernel": by_kernel or backend.name == "dask", "narrow": is_narrow(backend.name)}
    said = {"backend": backend.name, "dtype": dtype}
    said["bounds"] = gradient_bounds_of(backend.name, how["by_kernel"])
    rows = [in_rows(one, axes) for one in (x, dy)]
    weights = in_rows(whole(weight, x.shape, axes), axes)
    dx, shares = [], np.empty(rows[0].shape, dtype=object)
    for i, both in enumerate(zip(*rows, strict=True)):
        of_row = {"weight": None if weights is None else weights[i], "eps": 1e-5}
        dx += gradient_of_rows(norm, *(one[None] for one in both), dtype, **how, **of_row)[0]
        shares[i] = reference.gradient(norm, *both, **of_row)[1]
    assert_exact(in_rows(gradients[0], axes), dx, norm=f"{norm} dx", **said)
    back = np.moveaxis(shares.reshape(np.moveaxis(x, axes, range(-len(axes), 0)).shape), range(-len(axes), 0), axes)
    for got, terms, is_weight in ((gradients[1], back, True), (gradients[2], dy.astype(object), False)):
        if got is None:
            continue
        terms, of_dy = (summed(one, got.shape, x.shape, axes) for one in (terms, dy))
        terms = [[mpmath.mpf(float(v)) if not is_weight else v for v in row] for row in terms]
        exact = gradient_of_weight(norm if is_weight else "rms_norm", terms, of_dy, dtype, **how)
        assert_sums_exact(got, exact, norm=f"{norm} dw", **said)


@pytest.mark.parametrize(
    ("shape", "of_weight", "of_bias"),
    [
        ((0, 3, 5), (0, 1, 5), (1, 3, 5)),
        ((2, 0, 5), (2, 1, 5), (1, 0, 1)),
        ((2, 3, 0), (2, 1, 0), (2, 3, 1)),
        ((0,), (0,), (1,)),
    ],
)
def test_arrays_without_elements(shape, of_weight, of_bias):
    for dtype in ("float16", "float32", "float64"):
        x, weight, bias = (np.ones(one, dtype) for one in (shape, of_weight, of_bias))
        for norm in ("layer_norm", "rms_norm"):
            y, pullback = vjp(norm)(x, weight, bias)
            assert y.shape == shape
            dx, dweight, dbias = pullback(y)
            assert (dx.shape, dweight.shape, dbias.shape) == (shape, of_weight, of_bias)
            assert (dweight == 0).all()
            assert (dbias == 0).all()


def test_given_moments_and_gradients_by_them():
    x, weight, bias, dy = made("per head", "float64")
    given = anynorm.moments(x)
    y, pullback = anynorm.layer_norm_vjp(x, weight, bias, moments=given)
    np.testing.assert_allclose(y, anynorm.layer_norm(x, weight, bias), rtol=0, atol=1e-14)
    dx, dweight, dbias, by = pullback(dy)
    for head in range(4):
        own = anynorm.Moments.from_dict(anynorm.moments(x[:, :, head]).to_dict())
        alone = anynorm.layer_norm_vjp(x[:, :, head], weight[0, 0, head], bias[0, 0, head], moments=own)[1](
            dy[:, :, head]
        )
        for got, expected in zip((dx[:, :, head], dweight[0, 0, head], dbias[0, 0, head]), alone, strict=False):
            np.testing.assert_allclose(got, expected, rtol=0, atol=1e-13)
        np.testing.assert_allclose(by.mean[:, :, head], alone[3].mean, rtol=0, atol=1e-13)


def test_under_torch_compile_and_on_other_devices():
    import torch

    import anynorm.torch

    x, weight, bias, _ = (torch.from_numpy(one) for one in made("per head", "float32"))
    expected = anynorm.layer_norm(x, weight, bias)
    torch.testing.assert_close(anynorm.torch.layer_norm(x, weight, bias), expected)
    on_meta = [one.to("meta") for one in (x, weight, bias)]
    assert anynorm.torch.layer_norm(*on_meta).shape == x.shape
    compiled = torch.compile(lambda *given: anynorm.torch.rms_norm(*given), fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x, weight, bias), anynorm.rms_norm(x, weight, bias))


def test_what_is_refused_is_said():
    x = np.ones((2, 3, 4), np.float32)
    weight = np.ones((2, 1, 4), np.float32)
    explained = anynorm.explain(x, weight, moments=anynorm.moments(x))
    assert explained.kernel == "definition"
    if "cpu" in explained.refused:
        assert "not the same for all rows" in explained.refused["cpu"] or "llvmlite" in explained.refused["cpu"]
