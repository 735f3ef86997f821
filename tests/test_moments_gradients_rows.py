"""By way of moments, rows that are hard: constant ones, of extreme magnitude, with NaN, without elements."""

import itertools

import mpmath
import numpy as np
import pytest
import torch

import anynorm
from anynorm import MomentsGradient
from tests import derivatives, reference_given
from tests.backends import BACKENDS, DASK, JAX, KERNELS, NUMPY, STRICT, TORCH, as_dtype
from tests.derivatives import NORMS, arrays, vjp
from tests.reference import Exact
from tests.tolerances import (
    GRADIENT_BOUNDS,
    NARROW_GRADIENT_BOUNDS,
    assert_exact,
    assert_sums_exact,
    gradient_bounds_of,
    gradient_of_weight,
)


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("norm", NORMS)
def test_extreme_gradients_and_weights_of_float64(norm, kernel):
    """Beside ordinary rows, whose bits they do not change; some of which the kernel leaves to the definition."""
    x, dy, weight = arrays("float64", (6, 5))
    sizes = np.asarray([1.0, 1e-280, 2.0**-252, 2.0**-247, 2.0**246, 1e250])[:, None]
    for x_sizes, dy_sizes, factor in ((sizes, 1.0, 1.0), (1.0, sizes, 1.0), (sizes, 1 / sizes, 1e-20)):
        rows, upstream, weights = x * x_sizes, dy * dy_sizes, weight * factor
        scale = 1.5 * factor
        parameters = (scale,) if norm == "scale_norm" else (weights,)
        options = {"scale": scale} if norm == "scale_norm" else {"weight": weights}
        exact = [
            reference_given.by_given(norm, *row, eps=0.0, **options) for row in zip(rows, upstream, rows, strict=True)
        ]
        with anynorm.use_kernel(kernel):
            found = anynorm.moments(rows)
            dx, dweight, *_, gradient = vjp(norm)(rows, *parameters, eps=0.0, moments=found)[1](upstream)
            alone = anynorm.moments(rows[:1])
            first = vjp(norm)(rows[:1], *parameters, eps=0.0, moments=alone)[1](upstream[:1])
        assert dx[0].tobytes() == first[0][0].tobytes()
        assert (gradient.variance[0], gradient.mean[0]) == (first[-1].variance[0], first[-1].mean[0])
        said = {"backend": kernel, "dtype": "float64", "bounds": GRADIENT_BOUNDS}
        assert_exact(dx, [row for row, *_ in exact], norm=f"{norm} dx, given", **said)
        by_weight = gradient_of_weight(norm, [shares for _, shares, *_ in exact], upstream, "float64")
        assert_sums_exact(dweight, by_weight, norm=f"{norm} dw, given", **said)
        for place, got in ((2, gradient.mean), (3, gradient.variance)):
            expected = reference_given.as_column([row[place] for row in exact])
            assert_exact(got, expected, norm=f"{norm} by moments", **said)


@pytest.mark.parametrize("backend", BACKENDS)
def test_rows_with_nan_and_inf(backend):
    x, dy, weight = arrays()
    x[1, 4], x[2, 0], dy[3, 4], dy[4, 2] = np.nan, np.inf, np.nan, -np.inf
    with backend.context():
        found, vjp_moments = anynorm.moments_vjp(backend.make(x))
        given = anynorm.moments(backend.make(np.where(np.isfinite(x), x, 0)))
        pullback = anynorm.layer_norm_vjp(backend.make(x), backend.make(weight), moments=given)[1]
        dx, dweight, _, gradient = pullback(backend.make(dy))
        of_rows = [backend.read(one)[:, 0] for one in (gradient.mean, gradient.variance)]
        by_own = anynorm.rms_norm_vjp(backend.make(dy), moments=found)[1](backend.make(dy))[0]
        ones = backend.make(np.ones((5, 1), np.float32))
        by_moments = [vjp_moments(one) for one in (gradient, MomentsGradient(mean=ones), MomentsGradient())]
        by_moments = [backend.read(one) for one in by_moments]
    # Each element is for itself; the row is NaN where its moments are.
    assert (np.isfinite(backend.read(dx)) == np.isfinite(dy)).all()
    assert np.isnan(backend.read(by_own)[1:3]).all()
    assert np.isfinite(backend.read(by_own)[0]).all()
    assert np.isnan(of_rows[0]).tolist() == [False, False, False, True, True]
    assert np.isnan(of_rows[1]).tolist() == [False, True, True, True, True]
    assert np.isnan(by_moments[0]).all(axis=1).tolist() == np.isnan(by_moments[0]).any(axis=1).tolist()
    assert np.isnan(by_moments[0]).all(axis=1).tolist() == [False, True, True, True, True]
    for one, expected in zip(by_moments[1:], (np.float32(1 / 33), 0.0), strict=True):
        assert (one[[0, 3, 4]] == expected).all()
        assert np.isnan(one[1:3]).all()
    assert not np.isfinite(backend.read(dweight)[[0, 2, 4]]).any()
    assert np.isfinite(np.delete(backend.read(dweight), [0, 2, 4])).all()


@pytest.mark.parametrize("kernel", KERNELS)
def test_lengths_about_eps_of_scale_norm(kernel):
    """From eps on the length has a part in the result, and below it none."""
    dy = np.asarray([[1.0, 2.0]])
    for length, has_part in ((1.0, True), (np.nextafter(1.0, 0.0), False), (0.0, False)):
        with anynorm.use_kernel(kernel):
            found = anynorm.moments(np.asarray([[length, 0.0]]))
            dx, _, gradient = anynorm.scale_norm_vjp(np.ones((1, 2)), eps=1.0, moments=found)[1](dy)
        assert (dx == dy).all()
        assert gradient.variance == (-3.0 if has_part else 0.0)
        assert gradient.mean == (-3.0 if has_part else 0.0)
    with anynorm.use_kernel(kernel):
        found = anynorm.moments(np.zeros((1, 2)))
        gradient = anynorm.scale_norm_vjp(np.ones((1, 2)), eps=1e-200, moments=found)[1](dy)[-1]
    assert gradient.variance == gradient.mean == 0.0


@pytest.mark.parametrize("kernel", KERNELS)
def test_rows_without_deviations(kernel):
    x, dy = np.asarray([[2.0, 2.0], [0.0, 0.0]]), np.asarray([[1.0, -2.0], [3.0, 4.0]])
    with anynorm.use_kernel(kernel):
        found, vjp_moments = anynorm.moments_vjp(x)
        assert (vjp_moments(MomentsGradient(mean=np.ones((2, 1)), variance=np.ones((2, 1)))) == 0.5).all()
        for eps, factor in ((0.0, 0.0), (0.25, 2.0)):
            dx, *_, gradient = anynorm.layer_norm_vjp(x, eps=eps, moments=found)[1](dy)
            assert (dx == dy * factor).all()
            assert (gradient.mean == -factor * dy.sum(1, keepdims=True)).all()
            assert (gradient.variance == 0).all()
            dx, *_, gradient = anynorm.rms_norm_vjp(x[1:], eps=eps, moments=anynorm.moments(x[1:]))[1](dy[1:])
            assert (dx == dy[1:] * factor).all()
            assert gradient.mean == gradient.variance == 0


@pytest.mark.parametrize("kernel", KERNELS)
def test_constant_rows_of_any_magnitude_are_divided_by_eps(kernel):
    x = np.full((7, 3), 1.0) * np.asarray([1.0, 1e20, 1e100, 1e200, 1e300, -1e308, 1e-300])[:, None]
    dy = np.random.default_rng(0).standard_normal(x.shape)
    for eps in (0.0, 1e-300, 1e-200, 1e-12, 1.0, 7e100):
        exact = [reference_given.by_given("layer_norm", *row, eps=eps) for row in zip(x, dy, x, strict=True)]
        with anynorm.use_kernel(kernel):
            dx, *_, gradient = anynorm.layer_norm_vjp(x, eps=eps, moments=anynorm.moments(x))[1](dy)
        said = {"backend": kernel, "dtype": "float64", "bounds": GRADIENT_BOUNDS}
        assert_exact(dx, [row for row, *_ in exact], norm="layer_norm dx, given", **said)
        assert_exact(gradient.mean, reference_given.as_column([row[2] for row in exact]), norm="by mean", **said)
        assert (gradient.variance == 0).all()


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("norm", NORMS[1:])
def test_rows_far_from_the_moments_that_they_are_given(norm, kernel):
    x, dy, _ = arrays("float64", (2, 5))
    # In the unit of the first row's moments x is out of range, and x_hat times what dy is scaled to.
    other, x, dy = x * [[1e-100], [1e200]], x * [[1e199], [1e-240]], dy * [[1e-225], [1e250]]
    for eps in (0.0, 1e100):
        exact = [reference_given.by_given(norm, *row, eps=eps) for row in zip(x, dy, other, strict=True)]
        with anynorm.use_kernel(kernel):
            dx, *_, gradient = vjp(norm)(x, eps=eps, moments=anynorm.moments(other))[1](dy)
        said = {"backend": kernel, "dtype": "float64", "bounds": GRADIENT_BOUNDS}
        assert_exact(dx, [row for row, *_ in exact], norm=f"{norm} dx, given", **said)
        for place, got in ((2, gradient.mean), (3, gradient.variance)):
            expected = reference_given.as_column([row[place] for row in exact])
            assert_exact(got, expected, norm=f"{norm} by moments", **said)


@pytest.mark.parametrize("backend", [NUMPY, TORCH, STRICT, JAX, DASK], ids=str)
@pytest.mark.parametrize("norm", NORMS)
def test_moments_whose_rows_have_counts_of_their_own(norm, backend):
    x, dy, _ = arrays("float32", (3, 6))
    other = np.random.default_rng(1).standard_normal((3, 6)).astype(np.float32)
    other[0, :4], other[2, 5] = np.nan, np.nan
    eps, present = derivatives.EPS[norm], [row[~np.isnan(row)] for row in other]
    exact = [reference_given.by_given(norm, *row, eps=eps) for row in zip(x, dy, present, strict=True)]
    found = anynorm.moments(backend.make(other), skip_nan=True)
    dx, *_, gradient = vjp(norm)(backend.make(x), moments=found)[1](backend.make(dy))
    bounds = gradient_bounds_of(backend.name)
    said = {"backend": backend.name, "dtype": "float32", "bounds": bounds, "flushes": "float32" in backend.flushes}
    assert_exact(backend.read(dx), [row for row, *_ in exact], norm=f"{norm} dx, given", **said)
    for place, got in ((2, gradient.mean), (3, gradient.variance)):
        expected = reference_given.as_column([row[place] for row in exact])
        assert_exact(backend.read(got).astype(np.float32), expected, norm=f"{norm} by moments", **said)
    if backend is TORCH:
        held, weight = backend.make(x).requires_grad_(), backend.make(x).requires_grad_()
        y = getattr(anynorm, norm)(held, moments=anynorm.moments(weight, skip_nan=True))
        assert all(one.isfinite().all() for one in torch.autograd.grad(y, (held, weight), backend.make(dy)))


def test_arrays_without_elements():
    for shape in ((0, 8), (3, 0)):
        x = np.zeros(shape, np.float32)
        _, vjp_moments = anynorm.moments_vjp(x)
        assert vjp_moments(MomentsGradient(mean=np.zeros((shape[0], 1)))).shape == shape
        given = anynorm.moments(np.ones((shape[0], 2), np.float32))
        dx, dweight, _, gradient = anynorm.layer_norm_vjp(x, np.ones(shape[1], np.float32), moments=given)[1](x)
        assert (dx.shape, dweight.shape) == (shape, shape[1:])
        assert (dweight == 0).all()
        assert gradient.mean.shape == gradient.variance.shape == (shape[0], 1)
        assert (gradient.mean == 0).all()


@pytest.mark.parametrize("backend", [NUMPY, JAX], ids=str)
def test_x_beside_constant_rows_in_whose_unit_eps_vanishes(backend):
    """It is divided by the root of eps all the same, within the bound of y."""
    dtype, sizes = ("float64", (1e200, 1e300)) if backend is NUMPY else ("float32", (1e30, 1e36))
    for size, eps in itertools.product(sizes, (7e-5, 1e3)):
        x = as_dtype(np.random.default_rng(0).standard_normal((64, 1)) * size * 1e-3, dtype)
        mean = as_dtype([[size]], dtype)
        found = anynorm.moments(backend.make(mean), axis=0)
        y = backend.read(anynorm.layer_norm(backend.make(x), axis=0, eps=eps, moments=found))
        values = [(mpmath.mpf(float(one)) - mpmath.mpf(float(mean[0, 0]))) / mpmath.sqrt(eps) for one in x[:, 0]]
        exact = [[Exact(value, abs(value))] for value in values]
        assert_exact(y, exact, backend=backend.name, dtype=dtype, norm="layer_norm")


def test_jax_has_a_derivative_beside_constant_rows():
    """There the one by the variance is large, and so is a factor of it in which float32 has no room to spare."""
    import jax

    def loss(x, other, eps):
        moments = anynorm.moments(other)
        return anynorm.layer_norm(x, eps=eps, moments=moments).sum() + 0.5 * moments.mean.sum()

    for value, constant, eps in ((2.0, 1000.0, 1e-5), (1e8, 1.0, 0.0)):
        x, other = (np.full((1, 3), one, np.float32) for one in (value, constant))
        dx, dother = jax.grad(loss, argnums=(0, 1))(x, other, eps)
        row, _, by_mean, by_variance = reference_given.by_given("layer_norm", x[0], np.ones(3), other[0], eps=eps)
        by_other = reference_given.by_moments(other[0], by_mean.value + 0.5, by_variance.value)
        said = {"backend": "jax", "dtype": "float32", "bounds": NARROW_GRADIENT_BOUNDS}
        for got, exact in ((dx, row), (dother, by_other)):
            assert_exact(got, [exact], norm="layer_norm dx, given", **said)


def test_a_large_x_beside_zeros_in_jax():
    """In the unit that small rows of float32 have, x would be out of range: 0 for eps = 0, and not NaN."""
    x = np.asarray([[1.7e9, 1.0, 1e30, 0.0]], np.float32)
    found = anynorm.moments(JAX.make(np.zeros((3, 4), np.float32)), axis=0)
    for eps in (0.0, 7e-10, 3e-30):
        y = JAX.read(anynorm.layer_norm(JAX.make(x), axis=0, eps=eps, moments=found))
        values = [mpmath.mpf(float(one)) / mpmath.sqrt(eps) if eps else mpmath.mpf(0) for one in x[0]]
        exact = [[Exact(value, max(abs(value), 1)) for value in values]]
        assert_exact(y, exact, backend="jax", dtype="float32", norm="layer_norm")
