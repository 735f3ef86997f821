"""The compiled kernels, forced, against exact arithmetic: within the bound of each dtype on what is hard for a norm."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, note
from hypothesis import strategies as st

import anynorm
from tests import reference
from tests.backends import ALL, NUMPY, TORCH, as_dtype, needs_llvmlite, thorough_but
from tests.strategies import KINDS, cases, examples
from tests.tolerances import assert_exact, smallest_normal

pytestmark = needs_llvmlite
NORMS = ("layer_norm", "rms_norm", "scale_norm")
BOTH = (NUMPY, TORCH)
# Around the lanes of a vector (32), the width of a chunk (1024), and neither.
FEATURES = (1, 2, 3, 7, 31, 32, 33, 127)
LONG = (1000, 1030, 5000)
LAYOUTS = ("rows", "columns", "scattered")

every_dtype = pytest.mark.parametrize("dtype", ALL)
every_norm = pytest.mark.parametrize("norm", NORMS)


def expected_rows(norm, x, weight=None, bias=None, eps=1e-5, offset=0.0, scale=1.0):
    if norm == "scale_norm":
        return [reference.scale_norm(row, scale, eps) for row in x]
    return [getattr(reference, norm)(row, weight, bias, eps, offset) for row in x]


def run(norm, backend, x, weight=None, bias=None, eps=1e-5, offset=0.0, scale=1.0):
    held, weight, bias = (None if a is None else backend.make(a) for a in (x, weight, bias))
    with anynorm.use_kernel("cpu"):
        if norm == "scale_norm":
            return backend.read(anynorm.scale_norm(held, scale, eps=eps))
        return backend.read(getattr(anynorm, norm)(held, weight, bias, eps=eps, weight_offset=offset))


def assert_both(norm, dtype, x, *arguments, **options):
    expected = expected_rows(norm, x, *arguments, **options)
    for backend in BOTH:
        got = run(norm, backend, x, *arguments, **options)
        assert_exact(got, expected, backend=f"{backend.name}, cpu", dtype=dtype, norm=norm)


def assert_case(norm, dtype, case):
    note(case.kind)
    scale = 1.0 if case.scale is None else case.scale
    assert_both(norm, dtype, case.x, case.weight, case.bias, case.eps, case.weight_offset, scale)


@every_dtype
@every_norm
@given(data=st.data())
@examples(60)
def test_short_rows(norm, dtype, data):
    assert_case(norm, dtype, data.draw(cases(dtype, features=FEATURES)))


@every_dtype
@every_norm
@pytest.mark.parametrize("features", thorough_but(1030, of=LONG))
@given(data=st.data())
@examples(4)
def test_long_rows(features, norm, dtype, data):
    case = data.draw(cases(dtype, features=(features,)))
    assert_case(norm, dtype, replace(case, x=case.x[:1]))


@every_dtype
@every_norm
@pytest.mark.parametrize("kind", KINDS)
def test_many_rows_of_each_kind_at_once(kind, norm, dtype):
    # Groups of rows share roots and divisions, and one of them may have to be done again.
    rng = np.random.default_rng(1)
    rows = KINDS[kind](rng, (37, 33), dtype)
    rows[5:9] = rng.standard_normal((4, 33))
    largest = float(reference.FORMATS[dtype][2])
    x = as_dtype(np.clip(rows, -largest, largest), dtype)
    weight, bias = (as_dtype(rng.standard_normal(33), dtype) for _ in range(2))
    assert_both(norm, dtype, x, weight, bias)


@every_dtype
@every_norm
@pytest.mark.parametrize("kind", KINDS)
def test_rows_side_by_side(kind, norm, dtype):
    # Along the first axis, where neighbours in memory belong to different rows.
    rng = np.random.default_rng(2)
    largest = float(reference.FORMATS[dtype][2])
    x = as_dtype(np.clip(KINDS[kind](rng, (40, 33), dtype), -largest, largest), dtype)
    weight, bias = (as_dtype(rng.standard_normal(33), dtype) for _ in range(2))
    expected = expected_rows(norm, x, weight, bias)
    parameters = () if norm == "scale_norm" else (weight, bias)
    for backend in BOTH:
        held = backend.make(np.ascontiguousarray(x.T))
        with anynorm.use_kernel("cpu"):
            y = getattr(anynorm, norm)(held, *map(backend.make, parameters), axis=0, eps=1e-5)
        assert_exact(backend.read(y).T, expected, backend=f"{backend.name}, cpu", dtype=dtype, norm=norm)


@every_dtype
@pytest.mark.parametrize("ratio", [1e2, 1e4, 1e6])
@pytest.mark.parametrize("features", [2, 33, 1030])
def test_means_of_up_to_a_million_sigma(features, ratio, dtype):
    rng = np.random.default_rng(3)
    x = as_dtype((rng.standard_normal((2, features)) + ratio) / 128, dtype)
    assert_both("layer_norm", dtype, x, eps=0.0)


@every_dtype
@every_norm
@pytest.mark.parametrize("place", [0, 1, 16, 31, 32, 1023, 1024, -1])
def test_an_outlier_anywhere(place, norm, dtype):
    x = np.random.default_rng(4).standard_normal((1, 1030))
    x[0, place] = 6e4
    assert_both(norm, dtype, as_dtype(x, dtype))


@every_dtype
@every_norm
def test_every_magnitude(norm, dtype):
    low, high = np.log2(smallest_normal(dtype)), np.log2(float(reference.FORMATS[dtype][2]))
    powers = np.linspace(low - 8, high - 2, 60)
    x = as_dtype(np.asarray([[1.0, -2.0, 3.0, -1.5, 0.1]]) * 2.0 ** powers[:, None], dtype)
    for eps in (0.0, 1e-5):
        assert_both(norm, dtype, x, eps=eps)
    if norm == "scale_norm":  # whose factor need not be extreme where the row is
        for scale in (1e-12, 1e-6, 1e6, 1e12):
            assert_both(norm, dtype, x, eps=0.0, scale=scale)


@every_dtype
@pytest.mark.parametrize("other", ALL)
@pytest.mark.parametrize("offset", [0.0, 1.0, 0.1])
def test_weight_and_bias_of_another_dtype(offset, other, dtype):
    rng = np.random.default_rng(5)
    x = as_dtype(rng.standard_normal((5, 33)), dtype)
    weight, bias = (as_dtype(rng.standard_normal(33), other) for _ in range(2))
    for norm in ("layer_norm", "rms_norm"):
        assert_both(norm, dtype, x, weight, bias, offset=offset)
        assert_both(norm, dtype, x, weight, None, offset=offset)
        assert_both(norm, dtype, x, None, bias)


@every_dtype
@pytest.mark.parametrize("other", ALL)
@pytest.mark.parametrize("norm", ["layer_norm", "rms_norm"])
def test_weights_that_cancel_with_the_offset(norm, other, dtype):
    # What is left of -0.1 + 0.1 is the rounding of the weight alone, and still owed to the last bit.
    x = as_dtype(np.random.default_rng(6).standard_normal((2, 33)), dtype)
    weight = as_dtype(np.full(33, -0.1), other)
    assert_both(norm, dtype, x, weight, offset=0.1)
    assert_both(norm, dtype, x, as_dtype(-1 + np.linspace(0, 1e-3, 33), other), offset=1.0)


@every_dtype
@pytest.mark.parametrize("other", ["bfloat16", "float32", "float64"])
@pytest.mark.parametrize("power", [-120, -70, -59, 59, 70, 120])
def test_extreme_weights(power, other, dtype):
    rng = np.random.default_rng(7)
    x = as_dtype(rng.standard_normal((3, 33)), dtype)
    weight = as_dtype(rng.standard_normal(33) * 2.0**power, other)
    some = weight.copy()
    some[1:] = 1
    for norm in ("layer_norm", "rms_norm"):
        assert_both(norm, dtype, x, weight)
        assert_both(norm, dtype, x, some, weight[::-1].copy())


@every_dtype
@pytest.mark.parametrize("eps", [0.0, 1e-300, 1e-30, 1e-5, 1.0, 1e30, 1e300])
@pytest.mark.parametrize("scale", [0.0, 1e-300, -1e-40, 1e-20, 3.0, 1e20, 1e300])
def test_extreme_scales_and_eps(scale, eps, dtype):
    low, high = smallest_normal(dtype), float(reference.FORMATS[dtype][2]) / 8
    x = np.random.default_rng(8).uniform(0.5, 2, (6, 7)) * np.asarray([[low], [1.0], [high], [high / 2], [0.0], [3.0]])
    assert_both("scale_norm", dtype, as_dtype(x, dtype), eps=eps, scale=scale)


@every_dtype
@pytest.mark.parametrize("eps", [0.0, 1e-320, 1e-300, 1e-30, 1e30, 1e300])
def test_extreme_eps(eps, dtype):
    low, high = smallest_normal(dtype), float(reference.FORMATS[dtype][2]) / 8
    x = np.random.default_rng(9).standard_normal((6, 7)) * np.asarray([[low], [1.0], [high / 4], [1e-3], [0.0], [3.0]])
    for norm in ("layer_norm", "rms_norm"):
        assert_both(norm, dtype, as_dtype(x, dtype), eps=eps)


@every_dtype
def test_a_large_weight_brings_back_what_is_far_below_its_row(dtype):
    low, high = smallest_normal(dtype), float(reference.FORMATS[dtype][2])
    x = as_dtype([[high / 4, 1.2345 * low, 2.0, 1.0], [1.0, low / 4, 3 * low, 1.5], [high, low, -low, 0.0]], dtype)
    for factor in (high / 2, 1 / low / 4, 1e10 if dtype != "float16" else 1e4):
        weight = as_dtype([1.0, min(factor, high), min(factor, high), 1.0], dtype)
        assert_both("rms_norm", dtype, x, weight)
        assert_both("rms_norm", dtype, x, weight, offset=1.0)
        assert_both("layer_norm", dtype, x, weight)
        assert_both("scale_norm", dtype, x, scale=float(factor))


@pytest.mark.parametrize("dtype", thorough_but("float32", "bfloat16", of=ALL))
@pytest.mark.parametrize("norm", ["layer_norm", "rms_norm"])
@pytest.mark.parametrize("layout", thorough_but("rows", of=LAYOUTS))
def test_y_is_the_norm_of_the_total_as_rounded(layout, norm, dtype):
    # Of very different magnitudes, so that nearly every sum is rounded.
    rng = np.random.default_rng(10)
    x, residual = (as_dtype(rng.standard_normal((40, 33)) * size, dtype) for size in (1.0, 300.0))
    weight, bias = (as_dtype(rng.standard_normal(33), dtype) for _ in range(2))
    exact_total = as_dtype(x.astype(np.float64) + residual.astype(np.float64), dtype)
    place = {
        "rows": lambda a: a,
        "columns": np.asfortranarray,
        "scattered": lambda a: np.repeat(a, 2, axis=1)[:, ::2],
    }[layout]
    with anynorm.use_kernel("cpu"):
        y, total = getattr(anynorm, f"add_{norm}")(place(x), place(residual), weight, bias, eps=1e-5)
        again = getattr(anynorm, norm)(total, weight, bias, eps=1e-5)
    assert total.tobytes() == exact_total.tobytes()
    assert y.tobytes() == again.tobytes()
    expected = expected_rows(norm, exact_total, weight, bias)
    assert_exact(y, expected, backend="numpy, cpu", dtype=dtype, norm=norm)
