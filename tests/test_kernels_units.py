"""float64 of any magnitude through the CPU kernels, beside exact results: on either side of each bound, and mixed."""

import numpy as np
import pytest

import anynorm
from tests.backends import NUMPY, needs_llvmlite
from tests.test_gradients_magnitude import assert_gradients, exact_gradients, pull
from tests.test_kernels_precision import assert_both

pytestmark = needs_llvmlite
NORMS = ("layer_norm", "rms_norm", "scale_norm")
LARGEST, LEAST = float(np.finfo(np.float64).max), 5e-324


def beside(bound):
    return [float(np.nextafter(bound, 0.0)), bound, float(np.nextafter(bound, np.inf))]


def of_sizes(sizes, features=9, seed=0):
    """A row of each size, the largest of which are not out of range."""
    x = np.random.default_rng(seed).uniform(0.25, 1, (len(sizes), features))
    return x * np.random.default_rng(seed).choice([-1, 1], x.shape) * np.asarray(sizes)[:, None]


# Squares of rows are held as they are between 2**-400 and 2**400.
SIZES = [*beside(2.0**200), *beside(2.0**-200), 1.0, 1e60, 1e-70, 1e200, 1e-300, LARGEST, 1e-310, LEAST, 0.0, 3.0]


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("eps", [0.0, 1e-5, 1e-320, 1e-160, 1e160, 1e300])
def test_ordinary_and_extreme_rows_in_one_call(eps, norm):
    weight, bias = np.random.default_rng(1).standard_normal((2, 9))
    assert_both(norm, "float64", of_sizes(SIZES), weight, bias, eps=eps)
    assert_both(norm, "float64", of_sizes(SIZES, 1), eps=eps)


@pytest.mark.parametrize("norm", NORMS)
def test_rows_that_mix_magnitudes(norm):
    x = np.asarray([[1e300, 1e-300, 1.0], [LARGEST, -LARGEST, LARGEST], [LARGEST, LEAST, 0.0], [1e-320, LEAST, 3e-310]])
    for eps in (0.0, 1e-5):
        assert_both(norm, "float64", x, np.asarray([1.0, 1e300, 1e-300]), np.asarray([0.0, 1e-300, 1.0]), eps=eps)


@pytest.mark.parametrize("size", [LARGEST / 2, 1e300, 1e-300, 1e-320])
@pytest.mark.parametrize("features", [2, 33, 1030])
def test_means_of_up_to_a_million_deviations(features, size):
    x = (np.random.default_rng(3).standard_normal((2, features)) * 1e-6 + 1) * size / (1 + 1e-5)
    assert_both("layer_norm", "float64", x, eps=0.0)


def test_constant_rows_are_the_bias():
    x, bias = np.asarray([LARGEST, 1e300, -1e300, 1e-300, LEAST, 3.0, 0.0])[:, None] * np.ones(9), np.arange(9.0)
    for eps in (0.0, 1e-320, 1e-5, 1e300):
        with anynorm.use_kernel("cpu"):
            assert (anynorm.layer_norm(x, np.ones(9), bias, eps=eps) == bias).all()


def test_nan_and_inf_make_nan_of_their_row_alone():
    x = of_sizes([1e300, 1e-300, 1.0, 1e300, 1e-300])
    x[1, 3], x[3, 0] = np.inf, np.nan
    for norm in NORMS:
        with anynorm.use_kernel("cpu"):
            y = getattr(anynorm, norm)(x)
        assert np.isnan(y).all(axis=1).tolist() == np.isnan(y).any(axis=1).tolist() == [False, True, False, True, False]


@pytest.mark.parametrize("value", [*beside(2.0**500), *beside(2.0**-500), LARGEST, LEAST])
def test_weights_of_any_magnitude(value):
    weight = np.ones(9)
    weight[2:4] = value, -value
    for norm in ("layer_norm", "rms_norm"):
        for offset in (0.0, 1.0):
            assert_both(norm, "float64", of_sizes(SIZES), weight, weight[::-1].copy(), eps=0.0, offset=offset)


@pytest.mark.parametrize("bound", [2.0**700, 2.0**-700, 2.0**1000, LEAST])
def test_scales_of_any_magnitude(bound):
    for scale in beside(bound):
        for eps in (0.0, 1e-12):
            assert_both("scale_norm", "float64", of_sizes(SIZES), scale=scale, eps=eps)


@pytest.mark.parametrize("norm", ["layer_norm", "rms_norm"])
def test_a_residual_is_added_before_a_row_is_scaled(norm):
    x, residual = of_sizes(SIZES), of_sizes(SIZES[::-1], seed=1) * 2.0**-3
    with anynorm.use_kernel("cpu"):
        y, total = getattr(anynorm, f"add_{norm}")(x, residual)
        again = getattr(anynorm, norm)(total)
    assert total.tobytes() == (x + residual).tobytes()
    assert y.tobytes() == again.tobytes()


@pytest.mark.parametrize("norm", NORMS)
def test_bits_are_those_of_the_row_wherever_it_lies(norm, monkeypatch):
    weight = () if norm == "scale_norm" else (np.random.default_rng(1).standard_normal(33),)
    x = of_sizes(SIZES, 33)

    def bits(x, **options):
        with anynorm.use_kernel("cpu"):
            return np.ascontiguousarray(getattr(anynorm, norm)(x, *weight, **options)).tobytes()

    expected = b"".join(bits(row[None]) for row in x)
    apart = np.repeat(x, 2, axis=1)[:, ::2]
    assert bits(x) == bits(np.asfortranarray(x)) == bits(apart) == expected
    assert bits(x.copy(), out=x.copy()) == expected
    monkeypatch.setattr("anynorm._kernels.cpu.launch.tasks.last_cache_nbytes", lambda: 1)
    out = np.empty(x.size + 1)[1:].reshape(x.shape)  # rows that begin and end within a line
    assert bits(x, out=out) == expected
    in_place = x.copy()
    assert bits(in_place, out=in_place) == expected


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("eps", [0.0, 1e-320, 1e-5, 1e300])
def test_gradients_of_ordinary_and_extreme_rows_in_one_call(eps, norm):
    # The squares of x and of dy are held between 2**-500 and 2**500.
    sizes = [*beside(2.0**250), *beside(2.0**-250), 1.0, 1e300, 1e-300, LARGEST / 16, 1e-310, 0.0]
    x, dy = of_sizes(sizes), of_sizes([1e200, *[1.0] * 6, *sizes[7:]], seed=1)
    dy[:6] = of_sizes([1.0, *beside(2.0**250)[:2], *beside(2.0**-250)], seed=2)
    weight = 1.5 if norm == "scale_norm" else np.random.default_rng(2).standard_normal(9)
    x[-1] = 3.0  # a row without deviations
    kept = [i for i in range(len(x)) if not (eps == 1e300 and np.abs(x[i]).max() < 1e-100)]  # whose x_hat is subnormal
    exact = exact_gradients(norm, x[kept], dy[kept], weight, eps)
    got = pull(norm, NUMPY, x[kept], dy[kept], weight, None, eps)
    assert_gradients(norm, "numpy", got, dy[kept], exact)


def test_gradients_with_weights_of_any_magnitude_beside_one_another():
    x, dy = of_sizes([1.0, 1e300, 1e-300]), of_sizes([1.0, 1.0, 1e-100], seed=1)
    weight = np.asarray([1.0, 1e150, 1e-150, 1e300, 1e-300, 1.0, 2.0**500, 2.0**-500, LEAST])
    for norm in ("layer_norm", "rms_norm"):
        dx = pull(norm, NUMPY, x, dy, weight / 4, None, 0.0)[0]
        expected = exact_gradients(norm, x, dy, weight / 4, 0.0)
        assert_gradients(norm, "numpy", [dx, None, None], dy, expected)
