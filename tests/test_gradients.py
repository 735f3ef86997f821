"""What pullbacks do with blocks of rows, threads, strides and axes, with odd rows and with odd arguments."""

import numpy as np
import pytest

import anynorm
from tests.backends import ALL, BACKENDS, KERNELS, NUMPY, TORCH, as_dtype
from tests.tolerances import DERIVATIVE_BOUND, is_narrow

NORMS = ("layer_norm", "rms_norm", "scale_norm")


def vjp(norm):
    return getattr(anynorm, f"{norm}_vjp")


def arrays(dtype="float32", shape=(5, 33), seed=0):
    """x, dy, weight and bias."""
    rng = np.random.default_rng(seed)
    return tuple(as_dtype(rng.standard_normal(size), dtype) for size in (shape, shape, shape[-1:], shape[-1:]))


def same_bits(got, expected):
    for a, b in zip(got, expected, strict=True):
        assert (a is None) == (b is None)
        if a is not None:
            assert a.dtype == b.dtype
            assert a.shape == b.shape
            assert a.tobytes() == b.tobytes()


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("dtype", ALL)
@pytest.mark.parametrize("features", [1, 7, 33, 127, 1000, 5000])
def test_rows_in_many_blocks(features, dtype, kernel):
    """Of more rows than are added up in one go, one row's gradient is that which it has alone."""
    x, dy, weight, bias = arrays(dtype, (67, features))
    with anynorm.use_kernel(kernel):
        dx, dweight, dbias = anynorm.layer_norm_vjp(x, weight, bias)[1](dy)
        for row in (0, 31, 66):
            alone = anynorm.layer_norm_vjp(x[row], weight, bias)[1](dy[row])
            same_bits([dx[row]], [alone[0]])
    wide = x.astype(np.float64)
    x_hat = (wide - wide.mean(1, keepdims=True)) / np.sqrt(wide.var(1, keepdims=True) + 1e-5)
    spacing = float(np.spacing(as_dtype(1.0, dtype)))
    for got, terms in ((dweight, dy * x_hat), (dbias, dy.astype(np.float64))):
        size = np.abs(terms.sum(0))
        if dtype == "float32" and kernel == "cpu":  # 4 units, or 2 of the next power of 2, at the norm of the terms
            size = 2 * np.maximum(size, np.linalg.norm(np.maximum(np.abs(terms), np.abs(dy)), axis=0))
        error = np.abs(got.astype(np.float64) - terms.sum(0))
        assert (error <= spacing * size + 1e-13 * np.abs(terms).sum(0)).all()


@pytest.mark.parametrize("dtype", ALL)
def test_threads_do_not_matter(dtype):
    x, dy, weight, bias = arrays(dtype, (3000, 500))
    found = []
    for threads in (1, 2, 5):
        anynorm.set_threads(threads)
        found.append(anynorm.layer_norm_vjp(x, weight, bias)[1](dy))
    anynorm.set_threads(None)
    same_bits(found[0], found[1])
    same_bits(found[0], found[2])


@pytest.mark.parametrize("dtype", ALL)
@pytest.mark.parametrize("norm", NORMS)
def test_numpy_and_torch_give_the_same_bits(norm, dtype):
    x, dy, weight, bias = arrays(dtype, (40, 129))
    parameters = (1.5,) if norm == "scale_norm" else (weight, bias)
    found = []
    for backend in (NUMPY, TORCH):
        given = [p if isinstance(p, float) else backend.make(p) for p in parameters]
        got = vjp(norm)(backend.make(x), *given)[1](backend.make(dy))
        found.append([backend.read(one) for one in got])
    same_bits(*found)


def strided(x):
    """The same numbers in views of larger arrays: each second, backwards, and with the axes in another order."""
    yield np.repeat(x, 2, axis=1)[:, ::2]
    yield x[::-1, ::-1].copy()[::-1, ::-1]
    yield np.asfortranarray(x)


@pytest.mark.parametrize("dtype", ALL)
@pytest.mark.parametrize("norm", NORMS)
def test_strides_do_not_matter(norm, dtype):
    x, dy, weight, bias = arrays(dtype, (20, 1030))
    parameters = (1.5,) if norm == "scale_norm" else (weight, bias)
    expected = vjp(norm)(x, *parameters)[1](dy)
    spacing = float(np.spacing(as_dtype(1.0, dtype)))

    def assert_same(got, expected):
        same_bits(got[:1], expected[:1])
        # Rows that are gathered are added up one by one, and others some at a time; the norm of the terms is about 5.
        for one, other in zip(got[1:], expected[1:], strict=True):
            wide, size = one.astype(np.float64), np.maximum(5.0, np.abs(other.astype(np.float64)))
            assert (np.abs(wide - other.astype(np.float64)) <= 4 * spacing * size).all()

    for view, other in zip(strided(x), strided(dy), strict=True):
        assert_same(vjp(norm)(view, *parameters)[1](dy), expected)
        assert_same(vjp(norm)(x, *parameters)[1](other), expected)
    repeated = np.broadcast_to(dy[:1], dy.shape)
    assert_same(vjp(norm)(x, *parameters)[1](repeated), vjp(norm)(x, *parameters)[1](repeated.copy()))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("axis", [0, 1, (0, 2), (1, 2), (0, 1, 2)])
def test_any_axes(axis, backend):
    """The gradient along some axes is that along the last ones of a transposed array."""
    axes = (axis,) if isinstance(axis, int) else axis
    others = tuple(i for i in range(3) if i not in axes)
    rng = np.random.default_rng(0)
    x, dy = (rng.standard_normal((4, 5, 6)).astype(np.float32) for _ in range(2))
    shape = tuple(x.shape[i] for i in axes)
    weight, bias = (rng.standard_normal(shape).astype(np.float32) for _ in range(2))
    order = others + axes
    last = tuple(range(len(others), 3))
    with backend.context():
        given = [backend.make(a) for a in (x, weight, bias)]
        got = anynorm.layer_norm_vjp(*given, axis=axis)[1](backend.make(dy))
        moved = [backend.make(a) for a in (x.transpose(order).copy(), weight, bias)]
        expected = anynorm.layer_norm_vjp(*moved, axis=last)[1](backend.make(dy.transpose(order).copy()))
        got, expected = ([backend.read(one) for one in found] for found in (got, expected))
    # What is computed in float32 alone is off by 16 units of its terms, which are up to 5 here.
    tolerance = DERIVATIVE_BOUND * 2.0**-24 * 5 if is_narrow(backend.name) else 1e-7
    np.testing.assert_allclose(got[0].transpose(order), expected[0], rtol=4e-7, atol=tolerance)
    for a, b in zip(got[1:], expected[1:], strict=True):
        np.testing.assert_allclose(a, b, rtol=4e-7, atol=tolerance)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("norm", ["layer_norm", "rms_norm"])
def test_residual_adds(norm, backend):
    x, dy, weight, bias = arrays(shape=(6, 33))
    residual, dtotal = (as_dtype(np.random.default_rng(9 + i).standard_normal(x.shape), "float32") for i in range(2))
    with backend.context():
        given = [backend.make(a) for a in (x, residual, weight, bias)]
        (y, total), pullback = getattr(anynorm, f"add_{norm}_vjp")(*given)
        dx, dresidual, dweight, dbias = pullback(backend.make(dy), backend.make(dtotal))
        alone = pullback(backend.make(dy))
        expected, single = vjp(norm)(total, *given[2:])
        of_y = single(backend.make(dy))
        read = backend.read
        same_bits([read(y)], [read(expected)])
        same_bits([read(one) for one in alone], [read(one) for one in (of_y[0], *of_y)])
        same_bits([read(dresidual), read(dweight), read(dbias)], [read(one) for one in (dx, *of_y[1:])])
        np.testing.assert_allclose(read(dx), read(of_y[0]) + dtotal, rtol=4e-7, atol=4e-7)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("eps", [0.0, 0.25])
def test_degenerate_rows(eps, norm, backend):
    """Rows of zeros, constant ones, NaN and Inf: the gradients that the docstrings state, and no other row notices."""
    rng = np.random.default_rng(3)
    for dtype in backend.dtypes:
        x = as_dtype(rng.standard_normal((6, 8)), dtype)
        dy = as_dtype(rng.integers(-8, 8, (6, 8)), dtype)
        x[1], x[2], x[3, 4], x[4, 0] = 0, 2, np.nan, np.inf
        with backend.context():
            _, pullback = vjp(norm)(backend.make(x), eps=eps)
            dx = backend.read(pullback(backend.make(dy))[0]).astype(np.float64)
            clean = backend.read(vjp(norm)(backend.make(x[[0, 5]]), eps=eps)[1](backend.make(dy[[0, 5]]))[0])
        assert np.isnan(dx[3:5]).all()
        np.testing.assert_array_equal(dx[[0, 5]], clean)
        g = dy[1].astype(np.float64) - (dy[1].astype(np.float64).mean() if norm == "layer_norm" else 0.0)
        divisor = eps if norm == "scale_norm" else np.sqrt(eps)
        np.testing.assert_array_equal(dx[1], g / divisor if eps else 0.0 * g)
        if norm == "layer_norm":
            g = dy[2].astype(np.float64) - dy[2].astype(np.float64).mean()
            np.testing.assert_array_equal(dx[2], g / divisor if eps else 0.0 * g)
        else:
            assert np.isfinite(dx[2]).all()


@pytest.mark.parametrize("kernel", KERNELS)
def test_rows_of_length_eps_are_long(kernel):
    x = np.asarray([[0.0, 1.0], [0.0, 1 - 2.0**-40]])
    with anynorm.use_kernel(kernel):
        dx, _ = anynorm.scale_norm_vjp(x, eps=1.0)[1](np.ones((2, 2)))
    assert dx.tolist() == [[1.0, 0.0], [1.0, 1.0]]


@pytest.mark.parametrize("kernel", KERNELS)
def test_what_is_not_a_number_stays_where_it_is(kernel):
    x, dy, weight, bias = arrays(shape=(5, 8))
    dy[2, 3] = np.nan
    with anynorm.use_kernel(kernel):
        dx, dweight, dbias = anynorm.layer_norm_vjp(x, weight, bias)[1](dy)
    assert np.isnan(dx[2]).all()
    assert not np.isnan(dx[[0, 1, 3, 4]]).any()
    assert np.isnan(dweight).tolist() == np.isnan(dbias).tolist() == [i == 3 for i in range(8)]
    x[1, 0] = np.nan
    with anynorm.use_kernel(kernel):
        assert np.isnan(anynorm.rms_norm_vjp(x, weight)[1](dy)[1]).all()


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("size", [1e-300, 1e-160, 1e160, 1e300])
def test_extreme_rows_of_float64(size, norm, kernel):
    """A row of any size has the gradient of one that is as long as others, by so much smaller or larger."""
    x, dy, *_ = arrays("float64", (20, 65))
    large = x * np.where(np.arange(20) == 7, size, 1.0)[:, None]
    with anynorm.use_kernel(kernel):
        dx, dweight = vjp(norm)(large, 2.0 if norm == "scale_norm" else np.ones(65), eps=0.0)[1](dy)[:2]
        expected, same = vjp(norm)(x, 2.0 if norm == "scale_norm" else np.ones(65), eps=0.0)[1](dy)[:2]
    np.testing.assert_allclose(dx[7] * size, expected[7], rtol=1e-11, atol=1e-14)
    np.testing.assert_array_equal(np.delete(dx, 7, 0), np.delete(expected, 7, 0))
    np.testing.assert_allclose(dweight, same, rtol=1e-11, atol=1e-13)


def test_no_rows_and_no_elements():
    for shape in ((0, 8), (3, 0), (0,)):
        x = np.zeros(shape, np.float32)
        weight = np.ones(shape[-1:], np.float32)
        dx, dweight, dbias = anynorm.layer_norm_vjp(x, weight, weight)[1](x)
        assert dx.shape == shape
        assert (dweight == 0).all()
        assert dweight.shape == dbias.shape == weight.shape
        dx, dscale = anynorm.scale_norm_vjp(x, 2.0)[1](x)
        assert (dx.shape, dscale.shape, float(dscale)) == (shape, (), 0.0)


def test_gradients_have_the_dtypes_of_what_they_belong_to():
    x, dy, weight, bias = arrays()
    dx, dweight, dbias = anynorm.layer_norm_vjp(x, weight.astype(np.float64), bias.astype(np.float16))[1](dy)
    assert (dx.dtype, dweight.dtype, dbias.dtype) == (np.float32, np.float64, np.float16)
    assert anynorm.scale_norm_vjp(x, np.asarray(2.0))[1](dy)[1].dtype == np.float64
    assert anynorm.scale_norm_vjp(x, 2.0)[1](dy)[1].dtype == np.float32
    assert anynorm.scale_norm_vjp(x)[1](dy)[1] is None


def test_a_pullback_may_be_called_again_and_writes_to_nothing():
    given = arrays()
    x, dy, weight, bias = (a.copy() for a in given)
    y, pullback = anynorm.layer_norm_vjp(x, weight, bias)
    same_bits([y], [anynorm.layer_norm(x, weight, bias)])
    same_bits(pullback(dy), pullback(dy))
    same_bits([x, dy, weight, bias], given)


def test_bad_gradients():
    x, dy, weight, _ = arrays()
    pullback = anynorm.layer_norm_vjp(x, weight)[1]
    with pytest.raises(ValueError, match=r"dy must have x's shape and dtype, \(5, 33\) of float32, got \(33,\)"):
        pullback(dy[0])
    with pytest.raises(ValueError, match=r"got .* of float64"):
        pullback(dy.astype(np.float64))
    with pytest.raises(TypeError, match="dy must be a NumPy array like x"):
        pullback(1.0)
    (_, _), pullback = anynorm.add_rms_norm_vjp(x, x, weight)
    with pytest.raises(ValueError, match="dtotal must have"):
        pullback(dy, dy[:2])
    with pytest.raises(ValueError, match="weight must have the shape"):
        anynorm.rms_norm_vjp(x, dy[:, 1:])


@pytest.mark.parametrize("norm", NORMS)
def test_memory_is_not_of_the_size_of_x(norm):
    """Blocks of rows hold sums of their own, so this is what there is beyond dx: a few rows for each block."""
    import tracemalloc

    x, dy, weight, bias = arrays(shape=(20000, 128))
    pullback = vjp(norm)(x, *((1.5,) if norm == "scale_norm" else (weight, bias)))[1]
    pullback(dy)
    tracemalloc.start()
    dx = pullback(dy)[0]
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < dx.nbytes + 1_000_000
