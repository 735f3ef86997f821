"""Derivatives of rows side by side: dx has the bits of rows one after the other, sums over rows are exact."""

import numpy as np
import pytest

import anynorm
from anynorm._kernels.cpu.launch import vjp as launch
from tests.backends import ALL, as_dtype, needs_llvmlite, thorough_but
from tests.derivatives import NORMS, vjp
from tests.tolerances import KERNEL_GRADIENT_BOUNDS, assert_exact, assert_sums_exact, gradient_of_bias, gradient_of_rows

pytestmark = [needs_llvmlite, pytest.mark.usefixtures("cpu_kernels")]
every_dtype = pytest.mark.parametrize("dtype", thorough_but("float32", "float64", of=ALL))
every_norm = pytest.mark.parametrize("norm", NORMS)


@pytest.fixture
def kernels(monkeypatch):
    """The names of the kernels that derivatives go through."""
    names = []

    def kernel(name, variant):
        names.append(name)
        return real(name, variant)

    real = launch.kernel
    monkeypatch.setattr(launch, "kernel", kernel)
    return names


def rows_of(dtype, shape):
    """Rows and their gradients; some leave float32 or float64, some hold NaN, some gradients lie along their row."""
    rng = np.random.default_rng(shape)
    x, dy = rng.standard_normal(shape) + rng.standard_normal((shape[0], 1)), rng.standard_normal(shape)
    extreme = {"float16": 6e4, "bfloat16": 3e38, "float32": 3e38, "float64": 1e300}[dtype]
    if len(x) > 13:
        x[1], x[2], x[3, -1], x[4] = extreme * x[1] / np.abs(x[1]).max(), x[2] / extreme, np.nan, 0.0
        dy[4], dy[5], dy[6, 0], dy[7], dy[8] = x[4], x[5], np.inf, 0.0, dy[8] / extreme
        x[9], dy[10] = 3.0, extreme * dy[10] / np.abs(dy[10]).max()
        x[11, 0] += 300.0
    return as_dtype(x, dtype), as_dtype(dy, dtype)


def parameters_of(norm, dtype, features):
    if norm == "scale_norm":
        return (0.7,)
    rng = np.random.default_rng(1)
    return tuple(as_dtype(rng.standard_normal(features), dtype) for _ in range(2))


def assert_bits(got, expected):
    got, expected = (np.where(np.isnan(one), one.dtype.type(np.nan), one) for one in (got, expected))
    assert got.tobytes() == expected.tobytes()


def one_by_one(norm, x, dy, *parameters):
    """dx of few rows at a time, which go one after the other however short they are."""
    pieces = [vjp(norm)(x[i : i + 8], *parameters)[1](dy[i : i + 8])[0] for i in range(0, len(x), 8)]
    return np.concatenate(pieces)


# Neighbours that lie one after the other; every second one; and such as do so in x alone.
LAID = {
    "direct": lambda x: np.ascontiguousarray(x.T),
    "apart": lambda x: np.repeat(x.T, 2, axis=1)[:, ::2],
    "aslant": lambda x: np.ascontiguousarray(x.T) if x.flags.writeable else x.T,
}


@every_dtype
@every_norm
@pytest.mark.parametrize("features", [1, 3, 9, 15, 17, 129, 1033])
def test_dx_has_the_bits_of_rows_one_after_the_other(norm, dtype, features, kernels):
    x, dy = rows_of(dtype, (41, features))
    parameters = parameters_of(norm, dtype, features)
    expected = one_by_one(norm, x, dy, *parameters)
    assert set(kernels) == {"derivative"}
    dy.flags.writeable = False
    for name, laid in LAID.items():
        dx = vjp(norm)(laid(x), *parameters, axis=0)[1](laid(dy))[0]
        # Longer ones are not packed, nor such as have their features closer to each other than to other rows.
        most = {"direct": 1033, "apart": 129, "aslant": 41}[name]
        assert kernels[-1] == ("derivative" if features > most else "derivative_columns"), name
        assert_bits(dx.T, expected)


# On either side of what float64 squares, and of what has a unit near the end of its range.
SIZES = 2.0 ** np.asarray([0, 248, 249, 250, 251, 252, 1000, -248, -249, -250, -251, -252, -720, -724, -1060, 300, 0])


@pytest.mark.parametrize("features", [9, 1033])
@pytest.mark.parametrize("norm", ["layer_norm", "rms_norm", "add_layer_norm", "add_rms_norm"])
def test_extreme_rows_have_the_bits_of_rows_one_after_the_other(norm, features, kernels):
    """x, dy and the weights of each size; in blocks with ordinary rows, and in one without any."""
    rng, count = np.random.default_rng(features), len(SIZES)
    x, dy, dtotal = rng.standard_normal((3, 2 * count, features))
    x[:count] *= SIZES[:, None]
    dy[count:] *= SIZES[:, None]
    pullback = getattr(anynorm, f"{norm}_vjp")
    for size in (1.0, 2.0**300):
        weight = rng.standard_normal(features) * size
        for rows in (slice(None), slice(3, 12)):
            given, rest = [x[rows], dy[rows]], [dtotal[rows]] * norm.startswith("add")
            of_x = (given[0], given[0] * 0) if rest else (given[0],)
            expected = pullback(*of_x, weight)[1](given[1], *rest)[0]
            kernels.clear()
            along = [np.ascontiguousarray(one.T) for one in (*of_x, given[1], *rest)]
            found = pullback(*along[: len(of_x)], weight, axis=0)[1](*along[len(of_x) :])[0]
            assert set(kernels) == {"derivative_columns"}
            assert_bits(found.T, expected)


@every_dtype
@pytest.mark.parametrize("missing", [1, 0, -1])
def test_as_many_rows_as_there_are_lanes_and_one_more_or_less(dtype, missing, kernels):
    lanes = 64 // as_dtype(np.zeros(1), dtype).itemsize
    x, dy = rows_of(dtype, (lanes - missing, 33))
    expected = anynorm.add_rms_norm_vjp(x, x)[1](dy, x)[0]
    across = [np.ascontiguousarray(one.T) for one in (x, dy)]
    dx = anynorm.add_rms_norm_vjp(across[0], across[0], axis=0)[1](across[1], across[0])[0]
    assert kernels == ["derivative", "derivative_columns"]
    assert_bits(dx.T, expected)


@pytest.mark.parametrize("dtype", ALL)
@every_norm
def test_the_widest_block_and_one_row_more(norm, dtype, kernels):
    widest = 255 + 64 // as_dtype(np.zeros(1), dtype).itemsize
    for rows in (widest, widest + 1):
        x, dy = rows_of(dtype, (rows, 40))
        expected = one_by_one(norm, x, dy)
        dx = vjp(norm)(x.T.copy(), axis=0)[1](dy.T.copy())[0]
        assert kernels[-1] == "derivative_columns"
        assert_bits(dx.T, expected)


@every_dtype
@pytest.mark.parametrize(("rows", "shorter"), [(15, 1), (16, 1), (41, 1), (41, 0), (41, 3)])
def test_short_rows_are_side_by_side_if_there_are_some_of_them(dtype, rows, shorter, kernels):
    features = 64 // as_dtype(np.zeros(1), dtype).itemsize - shorter
    x, dy = rows_of(dtype, (rows, features))
    parameters = parameters_of("layer_norm", dtype, features)
    expected = one_by_one("layer_norm", x, dy, *parameters)
    dx = anynorm.layer_norm_vjp(x, *parameters)[1](dy)[0]
    assert kernels[-1] == ("derivative_columns" if rows >= 16 and shorter else "derivative")
    assert_bits(dx, expected)


@every_dtype
@every_norm
@pytest.mark.parametrize("features", [3, 33])
def test_given_moments_have_the_bits_of_rows_one_after_the_other(norm, dtype, features, kernels):
    x, dy = rows_of(dtype, (41, features))
    parameters = parameters_of(norm, dtype, features)

    def found(x, dy, axis):
        *by, of_moments = vjp(norm)(x, *parameters, axis=axis, moments=anynorm.moments(x, axis=axis))[1](dy)
        return by[0], np.stack([of_moments.mean, of_moments.variance])

    pieces = [found(x[i : i + 8], dy[i : i + 8], -1) for i in range(0, len(x), 8)]
    assert set(kernels) == {"derivative"}
    dx, of_moments = found(np.ascontiguousarray(x.T), np.ascontiguousarray(dy.T), 0)
    assert kernels[-1] == "derivative_columns"
    # Those of float64 before the eleventh are for the definition, by NumPy's sums, in whatever order they have.
    first = 11 if dtype == "float64" else 0
    assert_bits(dx.T[first:], np.concatenate([one for one, _ in pieces])[first:])
    assert_bits(
        of_moments.reshape(2, -1)[:, first:], np.concatenate([one.reshape(2, -1) for _, one in pieces], 1)[:, first:]
    )


@every_dtype
@every_norm
@pytest.mark.parametrize(("features", "rows"), [(3, 700), (33, 90), (300, 40)])
def test_gradients_are_exact(norm, dtype, features, rows, kernels):
    rng = np.random.default_rng(features)
    x, dy = (as_dtype(rng.standard_normal((rows, features)) + 1, dtype) for _ in range(2))
    parameters = parameters_of(norm, dtype, features)
    options = {"scale": 0.7} if norm == "scale_norm" else {"weight": parameters[0]}
    exact = gradient_of_rows(norm, x, dy, dtype, by_kernel=True, eps=1e-5, **options)
    dx, dweight, *dbias = vjp(norm)(x.T.copy(), *parameters, axis=0, eps=1e-5)[1](dy.T.copy())
    said = {"backend": "numpy", "dtype": dtype, "bounds": KERNEL_GRADIENT_BOUNDS}
    assert kernels == ["derivative_columns"]
    assert_exact(dx.T, exact[0], norm=f"{norm} dx", **said)
    assert_sums_exact(dweight, exact[1], norm=f"{norm} dw", **said)
    if dbias:
        assert_sums_exact(dbias[0], gradient_of_bias(dy), norm=f"{norm} db", **said)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_threads_do_not_change_the_bits(dtype):
    x, dy = rows_of(dtype, (5000, 130))
    across, weight = [np.ascontiguousarray(one.T) for one in (x, dy)], as_dtype(np.ones(130), dtype)
    found = []
    before = anynorm.get_threads()
    for threads in (1, 2, 3):
        anynorm.set_threads(threads)
        try:
            found.append(anynorm.layer_norm_vjp(across[0], weight, weight, axis=0)[1](across[1]))
        finally:
            anynorm.set_threads(before)
    for others in found[1:]:
        for got, expected in zip(others, found[0], strict=True):
            assert_bits(got, expected)
