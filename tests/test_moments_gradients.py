"""The derivative of moments, and of norms that are given some, against exact ones."""

import tracemalloc

import numpy as np
import pytest
import torch

import anynorm
from anynorm import MomentsGradient
from tests import derivatives, reference, reference_given
from tests.backends import (
    ALL,
    BACKENDS,
    DASK,
    JAX,
    KERNELS,
    NUMPY,
    STRICT,
    TORCH,
    as_dtype,
    needs_numba,
    some,
    thorough_but,
)
from tests.tolerances import (
    GRADIENT_BOUNDS,
    NARROW_GRADIENT_BOUNDS,
    assert_exact,
    assert_sums_exact,
    gradient_bounds_of,
    gradient_of_bias,
    gradient_of_weight,
    is_narrow,
)

NORMS = derivatives.NORMS
# A gradient by x of a norm and that by way of its moments are rounded each, and so is their sum.
SUMMED = {"float16": 1.51, "bfloat16": 1.51, "float32": 1.51, "float64": GRADIENT_BOUNDS["float64"]}
NARROW_SUMMED = {dtype: NARROW_GRADIENT_BOUNDS[dtype] + 1.0 for dtype in ALL}
# What is computed in float64 for float32 has that much left of its bits beside a mean of a million deviations.
SLACK = 2.0**-28


def vjp(norm):
    return getattr(anynorm, f"{norm}_vjp")


def parameters_of(norm, make, weight):
    return (float(weight),) if norm == "scale_norm" else (make(weight), make(weight))


def arrays(dtype="float32", shape=(5, 33), seed=0):
    """x, dy and a weight."""
    rng = np.random.default_rng(seed)
    return tuple(as_dtype(rng.standard_normal(size), dtype) for size in (shape, shape, shape[-1:]))


def pull(norm, backend, x, dy, other, weight, eps):
    """The gradients by x, by the parameters, and by the moments of another array that a norm of x is given."""
    with backend.context():
        parameters = parameters_of(norm, backend.make, weight)
        found = anynorm.moments(backend.make(other))
        y, pullback = vjp(norm)(backend.make(x), *parameters, eps=eps, moments=found)
        *got, gradient = pullback(backend.make(dy))
        same = getattr(anynorm, norm)(backend.make(x), *parameters, eps=eps, moments=found)
        assert backend.read(y).tobytes() == backend.read(same).tobytes()
        return [backend.read(one) for one in got], [backend.read(one) for one in (gradient.mean, gradient.variance)]


@pytest.mark.parametrize("dtype", ALL)
@pytest.mark.parametrize("norm", NORMS)
def test_norms_that_are_given_moments(norm, dtype):
    """Those of x with eps = 0, and those of other rows, which are longer."""
    x, weight, dy, _ = derivatives.given(norm, dtype)
    others = x, as_dtype(np.concatenate([x, x[:, :2] * as_dtype(0.5, dtype)], axis=1), dtype)
    for other, eps in zip(others, (0.0, derivatives.EPS[norm]), strict=True):
        options = ({"scale": float(weight)} if norm == "scale_norm" else {"weight": weight}) | {"eps": eps}
        exact = [reference_given.by_given(norm, *rows, **options) for rows in zip(x, dy, other, strict=True)]
        for backend in some(f"given moments, {norm}", 0, dtype):
            narrow = is_narrow(backend.name)
            said = {"backend": backend.name, "dtype": dtype, "flushes": backend.flushes}
            said["bounds"] = gradient_bounds_of(backend.name)
            (dx, dweight, *dbias), by_moments = pull(norm, backend, x, dy, other, weight, eps)
            assert_exact(dx, [row for row, *_ in exact], norm=f"{norm} dx, given", **said)
            by_weight = gradient_of_weight(norm, [shares for _, shares, *_ in exact], dy, dtype, narrow=narrow)
            assert_sums_exact(dweight, by_weight, norm=f"{norm} dw, given", **said)
            assert len(dbias) == (norm != "scale_norm")
            for one in dbias:
                assert_sums_exact(one, gradient_of_bias(dy), norm=f"{norm} db, given", **said)
            wide = by_moments[0].dtype.name
            assert wide == ("float32" if narrow and dtype != "float64" else "float64")
            slack = SLACK if wide == "float64" != dtype else 0.0
            for place, got in zip((2, 3), by_moments, strict=True):
                expected = reference_given.as_column([row[place] for row in exact], slack)
                assert_exact(got, expected, norm=f"{norm} by moments", **said | {"dtype": wide})


@pytest.mark.parametrize("dtype", ALL)
def test_the_pullback_of_moments(dtype):
    x = derivatives.rows(dtype, derivatives.FEATURES)
    by = np.random.default_rng(1).standard_normal((2, len(x), 1)).astype(np.float32)
    exact = [reference_given.by_moments(*row) for row in zip(x, *by[:, :, 0], strict=True)]
    for backend in some("pullback of moments", 0, dtype):
        with backend.context():
            found, pullback = anynorm.moments_vjp(backend.make(x))
            gradient = MomentsGradient(*map(backend.make, by))
            dx = backend.read(pullback(gradient))
            assert (backend.read(found.mean) == backend.read(anynorm.moments(backend.make(x)).mean)).all()
        said = {"backend": backend.name, "dtype": dtype, "bounds": gradient_bounds_of(backend.name)}
        assert_exact(dx, exact, norm="by moments dx", flushes=backend.flushes, **said)


@pytest.mark.parametrize("dtype", ALL)
@pytest.mark.parametrize("norm", NORMS)
def test_both_together_are_the_derivative_of_the_norm(norm, dtype):
    """At rows of any magnitude, where the gradient by a variance alone is out of range; the sixth call too."""
    x, weight, dy, _ = derivatives.given(norm, dtype)
    options = ({"scale": float(weight)} if norm == "scale_norm" else {"weight": weight}) | {"eps": 0.0}
    exact = [reference.gradient(norm, *rows, **options)[0] for rows in zip(x, dy, strict=True)]
    # Alone, neither of the two is to be out of range.
    largest = float(reference.FORMATS[dtype][2]) / 4
    in_range = [max(one.magnitude for one in row) < largest for row in exact]
    exact = [row for row, is_kept in zip(exact, in_range, strict=True) if is_kept]
    for backend in some(f"together, {norm}", 0, dtype):
        with backend.context():
            for _ in range(6 if backend is NUMPY else 1):
                found, pull_moments = anynorm.moments_vjp(backend.make(x))
                parameters = parameters_of(norm, backend.make, weight)
                _, pull_norm = vjp(norm)(backend.make(x), *parameters, eps=0.0, moments=found)
                dx, *_, gradient = pull_norm(backend.make(dy))
                parts = [backend.read(one).astype(np.float64) for one in (dx, pull_moments(gradient))]
        bounds = NARROW_SUMMED if is_narrow(backend.name) else SUMMED
        said = {"backend": backend.name, "dtype": dtype, "norm": f"{norm} dx, together", "bounds": bounds}
        assert_exact(as_dtype(parts[0][in_range] + parts[1][in_range], dtype), exact, flushes=backend.flushes, **said)


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


@needs_numba
@pytest.mark.parametrize("dtype", ALL)
def test_layout_threads_and_library_change_no_bit(dtype, monkeypatch):
    x, dy, weight = arrays(dtype, (150, 40))
    monkeypatch.setattr("anynorm._kernels.cpu.pull.LEAST_SHARED_NBYTES", 1)

    def bits(x, dy, make=np.asarray, read=np.asarray, axis=-1):
        found, pull_moments = anynorm.moments_vjp(make(x), axis=axis)
        dx, dweight, dbias, gradient = anynorm.layer_norm_vjp(
            make(x), *map(make, (weight, weight)), axis=axis, moments=found
        )[1](make(dy))
        rows = [
            np.moveaxis(read(one), axis, -1) for one in (dx, pull_moments(gradient), gradient.mean, gradient.variance)
        ]
        return [one.tobytes() for one in (*rows, read(dweight), read(dbias))]

    with anynorm.use_kernel("cpu"):
        try:
            for threads in (1, 2):
                anynorm.set_threads(threads)
                found = bits(x, dy)
                assert bits(x, dy, TORCH.make, TORCH.read) == found
                apart = [np.repeat(one, 2, 0)[::2] for one in (x, dy)]
                assert bits(*apart) == found
                # Of elements that are gathered one by one, sums over rows are formed in another order.
                assert bits(x.T.copy(), dy.T, axis=0)[:4] == found[:4]
        finally:
            anynorm.set_threads(None)


@pytest.mark.parametrize("backend", BACKENDS)
def test_rows_with_nan_and_inf(backend):
    x, dy, weight = arrays()
    x[1, 4], x[2, 0], dy[3, 4], dy[4, 2] = np.nan, np.inf, np.nan, -np.inf
    with backend.context():
        found, pull_moments = anynorm.moments_vjp(backend.make(x))
        given = anynorm.moments(backend.make(np.where(np.isfinite(x), x, 0)))
        pullback = anynorm.layer_norm_vjp(backend.make(x), backend.make(weight), moments=given)[1]
        dx, dweight, _, gradient = pullback(backend.make(dy))
        of_rows = [backend.read(one)[:, 0] for one in (gradient.mean, gradient.variance)]
        by_own = anynorm.rms_norm_vjp(backend.make(dy), moments=found)[1](backend.make(dy))[0]
        ones = backend.make(np.ones((5, 1), np.float32))
        by_moments = [pull_moments(one) for one in (gradient, MomentsGradient(mean=ones), MomentsGradient())]
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


@pytest.mark.parametrize("kernel", KERNELS)
def test_rows_without_deviations(kernel):
    x, dy = np.asarray([[2.0, 2.0], [0.0, 0.0]]), np.asarray([[1.0, -2.0], [3.0, 4.0]])
    with anynorm.use_kernel(kernel):
        found, pull_moments = anynorm.moments_vjp(x)
        assert (pull_moments(MomentsGradient(mean=np.ones((2, 1)), variance=np.ones((2, 1)))) == 0.5).all()
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
    said = {"backend": backend.name, "dtype": "float32", "bounds": bounds, "flushes": backend.flushes}
    assert_exact(backend.read(dx), [row for row, *_ in exact], norm=f"{norm} dx, given", **said)
    for place, got in ((2, gradient.mean), (3, gradient.variance)):
        expected = reference_given.as_column([row[place] for row in exact])
        assert_exact(backend.read(got).astype(np.float32), expected, norm=f"{norm} by moments", **said)
    if backend is TORCH:
        held, weight = backend.make(x).requires_grad_(), backend.make(x).requires_grad_()
        y = getattr(anynorm, norm)(held, moments=anynorm.moments(weight, skip_nan=True))
        assert all(one.isfinite().all() for one in torch.autograd.grad(y, (held, weight), backend.make(dy)))


@pytest.mark.parametrize("backend", [NUMPY, TORCH, STRICT, JAX, DASK], ids=str)
def test_statistics_of_a_training_set(backend):
    """Along axis 0, and given to rows that are fewer."""
    train, x = (np.random.default_rng(seed).standard_normal((n, 4)).astype(np.float32) for seed, n in ((0, 9), (1, 6)))
    dy = np.random.default_rng(2).standard_normal((6, 4)).astype(np.float32)
    found, pull_moments = anynorm.moments_vjp(backend.make(train), axis=0)
    dx, *_, gradient = anynorm.layer_norm_vjp(backend.make(x), axis=0, moments=found)[1](backend.make(dy))
    mean, deviation = train.astype(float).mean(0), np.sqrt(train.astype(float).var(0) + 1e-5)
    np.testing.assert_allclose(backend.read(dx), dy / deviation, rtol=1e-6)
    by_mean, by_variance = -dy.sum(0) / deviation, -((x - mean) * dy).sum(0) / deviation**3 / 2
    assert tuple(gradient.mean.shape) == (1, 4)
    np.testing.assert_allclose(backend.read(gradient.mean)[0], by_mean, rtol=1e-5)
    np.testing.assert_allclose(backend.read(gradient.variance)[0], by_variance, rtol=1e-5)
    expected = (by_mean + 2 * by_variance * (train - mean)) / 9
    np.testing.assert_allclose(backend.read(pull_moments(gradient)), expected, rtol=1e-4, atol=1e-6)


def test_arrays_without_elements():
    for shape in ((0, 8), (3, 0)):
        x = np.zeros(shape, np.float32)
        _, pull_moments = anynorm.moments_vjp(x)
        assert pull_moments(MomentsGradient(mean=np.zeros((shape[0], 1)))).shape == shape
        given = anynorm.moments(np.ones((shape[0], 2), np.float32))
        dx, dweight, _, gradient = anynorm.layer_norm_vjp(x, np.ones(shape[1], np.float32), moments=given)[1](x)
        assert (dx.shape, dweight.shape) == (shape, shape[1:])
        assert (dweight == 0).all()
        assert gradient.mean.shape == gradient.variance.shape == (shape[0], 1)
        assert (gradient.mean == 0).all()


def test_dask_stays_lazy_and_cuts_nothing():
    x, dy, weight = arrays("float32", (6, 12))
    found, pull_moments = anynorm.moments_vjp(DASK.make(x))
    dx, dweight, _, gradient = anynorm.rms_norm_vjp(DASK.make(x), DASK.make(weight), moments=found)[1](DASK.make(dy))
    lazy = dx, dweight, gradient.mean, gradient.variance, pull_moments(gradient)
    assert {type(one) for one in lazy} == {type(DASK.make(x))}
    assert dx.chunks == lazy[-1].chunks == DASK.make(x).chunks
    of_numpy, pull_of_numpy = anynorm.moments_vjp(x)
    expected = anynorm.rms_norm_vjp(x, weight, moments=of_numpy)[1](dy)
    expected = *expected[:2], expected[3].mean, expected[3].variance, pull_of_numpy(expected[3])
    for got, one in zip(lazy, expected, strict=True):
        np.testing.assert_allclose(DASK.read(got), one, rtol=1e-6, atol=1e-7)


def test_dask_with_empty_chunks_unknown_lengths_and_rows_with_nan():
    import dask.array as da

    x, dy, weight = arrays("float64", (12, 6))
    x[3, 2], dy[5, 1] = np.nan, np.inf
    kept = x[:, 0] > -0.3

    def all_of_it(x, dy):
        found, pull_moments = anynorm.moments_vjp(x)
        *by, gradient = anynorm.layer_norm_vjp(x, weight, weight, moments=found)[1](dy)
        return *by, gradient.mean, gradient.variance, pull_moments(gradient)

    in_empty_chunks = [da.from_array(one, chunks=((0, 5, 7), (2, 0, 4))) for one in (x, dy)]
    of_unknown_length = [da.from_array(one, chunks=(5, 4))[da.from_array(kept, chunks=5)] for one in (x, dy)]
    for lazy, given in ((in_empty_chunks, (x, dy)), (of_unknown_length, (x[kept], dy[kept]))):
        for got, expected in zip(all_of_it(*lazy), all_of_it(*given), strict=True):
            np.testing.assert_allclose(got.compute(scheduler="synchronous"), expected, rtol=1e-12)


@pytest.mark.parametrize("kernel", KERNELS)
def test_memory_is_not_of_the_size_of_x(kernel):
    x, dy, weight = arrays(shape=(20000, 128))
    with anynorm.use_kernel(kernel):
        found, pull_moments = anynorm.moments_vjp(x)
        pullback = anynorm.layer_norm_vjp(x, weight, weight, moments=found)[1]
        gradient = pullback(dy)[-1]
        pull_moments(gradient)
        for run in (lambda: pullback(dy), lambda: pull_moments(gradient)):
            tracemalloc.start()
            run()
            peak = tracemalloc.get_traced_memory()[1]
            tracemalloc.stop()
            # Beyond dx there are numbers of rows, in float64, and those of a block.
            assert peak < x.nbytes + 20000 * 8 * 20 + 5_000_000


@pytest.mark.parametrize("norm", thorough_but("rms_norm", of=NORMS))
def test_jax_follows_moments_and_norms_to_the_second_order(norm):
    import jax

    x, dy, _ = arrays("float64", (5,))

    def loss(x, given):
        moments = anynorm.moments(x) if given else None
        return (getattr(anynorm, norm)(x, moments=moments) * dy).sum()

    with jax.enable_x64(True):
        x, dy = map(jax.numpy.asarray, (x, dy))
        for transform in (jax.grad, jax.hessian):
            found, expected = (transform(loss)(x, given) for given in (True, False))
            np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-12)


def test_arguments():
    x, dy, _ = arrays()
    _, pullback = anynorm.moments_vjp(x)
    with pytest.raises(
        TypeError, match=r"the gradient must be a MomentsGradient, got .*; pass anynorm.MomentsGradient"
    ):
        pullback(dy)
    with pytest.raises(ValueError, match=r"gradient.variance must have the shape of the moments, \(5, 1\), got \(5,\)"):
        pullback(MomentsGradient(variance=dy[:, 0]))
    with pytest.raises(TypeError, match=r"gradient.mean must be a NumPy array like x"):
        pullback(MomentsGradient(mean=1.0))
    with pytest.raises(TypeError, match=r"gradient.mean must"):
        pullback(MomentsGradient(mean=np.ones((5, 1), int)))
    sparse = pytest.importorskip("sparse")
    given = anynorm.Moments.from_dict(anynorm.moments(x).to_dict(), xp=sparse)
    with pytest.raises(TypeError, match="x must be dense where a derivative by way of given moments is wanted"):
        anynorm.rms_norm_vjp(sparse.COO.from_numpy(x), moments=given)


def test_what_it_prints_and_is_in_jax():
    import jax

    gradient = MomentsGradient(mean=np.ones(1))
    assert repr(gradient) == "MomentsGradient(mean=array([1.]), variance=None)"
    x = jax.numpy.ones((2, 3))
    _, pullback = anynorm.rms_norm_vjp(x, moments=anynorm.moments(x))
    doubled = jax.tree_util.tree_map(lambda one: 2 * one, jax.jit(pullback)(x)[-1])
    assert isinstance(doubled, MomentsGradient)


@needs_numba
def test_kernels_tell_the_truth():
    x, dy, _ = arrays()
    found = anynorm.moments(x)
    with anynorm.use_kernel("cuda"), pytest.raises(RuntimeError, match="kernel cuda was asked for"):
        anynorm.layer_norm_vjp(x, moments=found)
    pullback = anynorm.layer_norm_vjp(x, moments=found)[1]
    with anynorm.use_kernel("blocks"), pytest.raises(RuntimeError, match="it takes Dask arrays"):
        pullback(dy)
    with anynorm.use_kernel("cpu"):
        by_kernel = pullback(dy)[0]
    with anynorm.use_kernel("definition"):
        np.testing.assert_array_equal(pullback(dy)[0], by_kernel)
