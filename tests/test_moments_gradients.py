"""The derivative of moments, and of norms that are given some, against exact ones."""

import tracemalloc

import numpy as np
import pytest

import anynorm
from anynorm import MomentsGradient
from anynorm._moments_gradient import in_factors, is_about_zero
from tests import derivatives, reference, reference_given
from tests.backends import (
    ALL,
    DASK,
    JAX,
    KERNELS,
    NUMPY,
    STRICT,
    TORCH,
    as_dtype,
    needs_llvmlite,
    some,
    thorough_but,
)
from tests.derivatives import NORMS, arrays, vjp
from tests.fast_path import shared_from
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

# A gradient of x of a norm and that by way of its moments are rounded each, and so is their sum.
SUMMED = {"float16": 1.51, "bfloat16": 1.51, "float32": 1.51, "float64": GRADIENT_BOUNDS["float64"]}
NARROW_SUMMED = {dtype: NARROW_GRADIENT_BOUNDS[dtype] + 1.0 for dtype in ALL}
# What is computed in float64 for float32 has that much left of its bits beside a mean of a million deviations.
SLACK = 2.0**-28


def parameters_of(norm, make, weight):
    return (float(weight),) if norm == "scale_norm" else (make(weight), make(weight))


def pull(norm, backend, x, dy, other, weight, eps):
    """The gradients of x, by the parameters, and by the moments of another array that a norm of x is given."""
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
            said = {"backend": backend.name, "dtype": dtype, "flushes": dtype in backend.flushes}
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
                in_wide = said | {"dtype": wide, "flushes": wide in backend.flushes}
                assert_exact(got, expected, norm=f"{norm} by moments", **in_wide)


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
        assert_exact(dx, exact, norm="by moments dx", flushes=dtype in backend.flushes, **said)


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
                found, vjp_moments = anynorm.moments_vjp(backend.make(x))
                parameters = parameters_of(norm, backend.make, weight)
                _, pull_norm = vjp(norm)(backend.make(x), *parameters, eps=0.0, moments=found)
                dx, *_, gradient = pull_norm(backend.make(dy))
                parts = [backend.read(one).astype(np.float64) for one in (dx, vjp_moments(gradient))]
        bounds = NARROW_SUMMED if is_narrow(backend.name) else SUMMED
        said = {"backend": backend.name, "dtype": dtype, "norm": f"{norm} dx, together", "bounds": bounds}
        assert_exact(
            as_dtype(parts[0][in_range] + parts[1][in_range], dtype), exact, flushes=dtype in backend.flushes, **said
        )


@needs_llvmlite
@pytest.mark.parametrize("dtype", ALL)
def test_layout_threads_and_library_change_no_bit(dtype):
    x, dy, weight = arrays(dtype, (150, 40))

    def bits(x, dy, make=np.asarray, read=np.asarray, axis=-1):
        found, vjp_moments = anynorm.moments_vjp(make(x), axis=axis)
        dx, dweight, dbias, gradient = anynorm.layer_norm_vjp(
            make(x), *map(make, (weight, weight)), axis=axis, moments=found
        )[1](make(dy))
        rows = [
            np.moveaxis(read(one), axis, -1) for one in (dx, vjp_moments(gradient), gradient.mean, gradient.variance)
        ]
        return [one.tobytes() for one in (*rows, read(dweight), read(dbias))]

    with anynorm.use_kernel("cpu"), shared_from(1):
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


@pytest.mark.parametrize("backend", [NUMPY, TORCH, STRICT, JAX, DASK], ids=str)
def test_statistics_of_a_training_set(backend):
    """Along axis 0, and given to rows that are fewer."""
    train, x = (np.random.default_rng(seed).standard_normal((n, 4)).astype(np.float32) for seed, n in ((0, 9), (1, 6)))
    dy = np.random.default_rng(2).standard_normal((6, 4)).astype(np.float32)
    found, vjp_moments = anynorm.moments_vjp(backend.make(train), axis=0)
    dx, *_, gradient = anynorm.layer_norm_vjp(backend.make(x), axis=0, moments=found)[1](backend.make(dy))
    mean, deviation = train.astype(float).mean(0), np.sqrt(train.astype(float).var(0) + 1e-5)
    wide = dy.astype(float)
    by_mean, by_variance = -wide.sum(0) / deviation, -((x - mean) * wide).sum(0) / deviation**3 / 2
    # Arrays like x are rounded once, gradients of moments have the wide dtype; JAX computes all of it in float32.
    once, in_wide = (2.0**-20, 2.0**-20) if backend is JAX else (2.0**-23, 2.0**-49)
    np.testing.assert_allclose(backend.read(dx), wide / deviation, rtol=once)
    assert tuple(gradient.mean.shape) == (1, 4)
    np.testing.assert_allclose(backend.read(gradient.mean)[0], by_mean, rtol=in_wide)
    np.testing.assert_allclose(backend.read(gradient.variance)[0], by_variance, rtol=in_wide)
    expected = (by_mean + 2 * by_variance * (train - mean)) / 9
    np.testing.assert_allclose(
        backend.read(vjp_moments(gradient)), expected, rtol=once, atol=2.0**-21 * (backend is JAX)
    )


def test_dask_stays_lazy_and_cuts_nothing():
    x, dy, weight = arrays("float32", (6, 12))
    found, vjp_moments = anynorm.moments_vjp(DASK.make(x))
    dx, dweight, _, gradient = anynorm.rms_norm_vjp(DASK.make(x), DASK.make(weight), moments=found)[1](DASK.make(dy))
    lazy = dx, dweight, gradient.mean, gradient.variance, vjp_moments(gradient)
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
        found, vjp_moments = anynorm.moments_vjp(x)
        *by, gradient = anynorm.layer_norm_vjp(x, weight, weight, moments=found)[1](dy)
        return *by, gradient.mean, gradient.variance, vjp_moments(gradient)

    in_empty_chunks = [da.from_array(one, chunks=((0, 5, 7), (2, 0, 4))) for one in (x, dy)]
    of_unknown_length = [da.from_array(one, chunks=(5, 4))[da.from_array(kept, chunks=5)] for one in (x, dy)]
    for lazy, given in ((in_empty_chunks, (x, dy)), (of_unknown_length, (x[kept], dy[kept]))):
        for got, expected in zip(all_of_it(*lazy), all_of_it(*given), strict=True):
            np.testing.assert_allclose(got.compute(scheduler="synchronous"), expected, rtol=1e-12)


@pytest.mark.parametrize("kernel", KERNELS)
def test_memory_is_not_of_the_size_of_x(kernel):
    x, dy, weight = arrays(shape=(20000, 128))
    with anynorm.use_kernel(kernel):
        found, vjp_moments = anynorm.moments_vjp(x)
        pullback = anynorm.layer_norm_vjp(x, weight, weight, moments=found)[1]
        gradient = pullback(dy)[-1]
        vjp_moments(gradient)
        for run in (lambda: pullback(dy), lambda: vjp_moments(gradient)):
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
            # As one program, for op by op it takes ten times the time.
            found, expected = (jax.jit(transform(loss), static_argnums=1)(x, given) for given in (True, False))
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
    parts = jax.numpy.asarray([1.0, 2.0]), None, jax.numpy.asarray([4.0, 8.0]), None
    returned = jax.jit(lambda gradient: gradient)(in_factors(*parts, about_zero=True))
    assert isinstance(returned, MomentsGradient)
    assert is_about_zero(returned)
    assert (returned.mean.tolist(), returned.variance) == ([4.0, 16.0], None)


@needs_llvmlite
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
