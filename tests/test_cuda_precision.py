"""The CUDA kernels, emulated on the CPU, against exact arithmetic: within the bound of each dtype."""

import numpy as np
import pytest
from hypothesis import given, note
from hypothesis import strategies as st

from tests import emulated, reference
from tests.backends import ALL, as_dtype
from tests.strategies import KINDS, cases, examples
from tests.test_kernels_precision import expected_rows
from tests.tolerances import assert_exact, smallest_normal

pytestmark = emulated.needs_compiler
NORMS = ("layer_norm", "rms_norm", "scale_norm")
# dtype, and whether it is computed in pairs of float32: float64 always is in pairs, of float64.
MODES = [pytest.param(dtype, paired, id=dtype + (", pairs" if paired else ""))
         for dtype in ALL for paired in ((False, True) if dtype != "float64" else (False,))]  # fmt: skip
# One thread a row, a part of a warp, all of one, several slots each, rows that do not fill what they begin.
FEATURES = (1, 2, 3, 7, 33, 127)
LONG = (1030, 2600)

every_mode = pytest.mark.parametrize(("dtype", "paired"), MODES)
every_norm = pytest.mark.parametrize("norm", NORMS)


def assert_rows(norm, dtype, paired, x, weight=None, bias=None, eps=1e-5, offset=0.0, scale=None):
    expected = expected_rows(norm, x, weight, bias, eps, offset, 1.0 if scale is None else scale)
    given = (scale,) if norm == "scale_norm" else (weight, bias)
    offset = 0.0 if weight is None or norm == "scale_norm" else offset
    got = emulated.normalize(norm, x, *given, eps=eps, offset=offset, paired=paired)
    name = "cuda, emulated" + (", pairs" if paired else "")
    assert_exact(got, expected, backend=name, dtype=dtype, norm=norm)


@every_mode
@every_norm
@given(data=st.data())
@examples(12)
def test_short_rows(norm, dtype, paired, data):
    case = data.draw(cases(dtype, features=FEATURES))
    note(case.kind)
    assert_rows(norm, dtype, paired, case.x, case.weight, case.bias, case.eps, case.weight_offset, case.scale)


@every_mode
@every_norm
@pytest.mark.parametrize("features", LONG)
def test_long_rows(features, norm, dtype, paired):
    rng = np.random.default_rng(features)
    x = rng.standard_normal((1, features)) + [[30.0]]
    weight, bias = (as_dtype(rng.standard_normal(features), dtype) for _ in range(2))
    assert_rows(norm, dtype, paired, as_dtype(x, dtype), weight, bias)


@every_mode
@every_norm
def test_every_magnitude(norm, dtype, paired):
    low, high = np.log2(smallest_normal(dtype)), np.log2(float(reference.FORMATS[dtype][2]))
    powers = np.linspace(low - 8, high - 2, 24)
    x = as_dtype(np.asarray([[1.0, -2.0, 3.0, -1.5, 0.1]]) * 2.0 ** powers[:, None], dtype)
    for eps in (0.0, 1e-5):
        assert_rows(norm, dtype, paired, x, eps=eps)
    if norm == "scale_norm":  # whose factor need not be extreme where the row is
        for scale in (1e-12, 1e6):
            assert_rows(norm, dtype, paired, x, eps=0.0, scale=scale)


@every_mode
def test_constant_rows_beside_an_eps_of_any_size(dtype, paired):
    # In the unit of its row eps ranges from what is far below any square to what can be divided by.
    x = as_dtype(np.asarray([[1.0], [-4.9e4]]) * np.ones(3), dtype)
    for eps in (*(2.0**-power for power in range(900, 1075, 8)), 0.0):
        assert_rows("layer_norm", dtype, paired, x, eps=eps)


@every_mode
@every_norm
@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_side_by_side(kind, norm, dtype, paired):
    # Along the first axis, where neighbours in memory belong to different rows.
    rng = np.random.default_rng(2)
    largest = float(reference.FORMATS[dtype][2])
    x = as_dtype(np.clip(KINDS[kind](rng, (9, 33), dtype), -largest, largest), dtype)
    weight, bias = (None if norm == "scale_norm" else as_dtype(rng.standard_normal(33), dtype) for _ in range(2))
    got = emulated.normalize(norm, np.ascontiguousarray(x.T), weight, bias, axis=0, paired=paired)
    name = "cuda, emulated" + (", pairs" if paired else "")
    assert_exact(got.T, expected_rows(norm, x, weight, bias), backend=name, dtype=dtype, norm=norm)


@every_mode
@pytest.mark.parametrize("ratio", [1e4, 1e6])
@pytest.mark.parametrize("features", [2, 300])
def test_means_of_up_to_a_million_sigma(features, ratio, dtype, paired):
    rng = np.random.default_rng(3)
    x = as_dtype((rng.standard_normal((2, features)) + ratio) / 128, dtype)
    assert_rows("layer_norm", dtype, paired, x, eps=0.0)


@every_mode
@every_norm
@pytest.mark.parametrize("place", [0, 33, -1])
def test_an_outlier_anywhere(place, norm, dtype, paired):
    x = np.random.default_rng(4).standard_normal((1, 300))
    x[0, place] = 6e4
    assert_rows(norm, dtype, paired, as_dtype(x, dtype))


@every_mode
@pytest.mark.parametrize("other", ALL)
@pytest.mark.parametrize("offset", [0.0, 1.0, 0.1])
def test_weight_and_bias_of_another_dtype(offset, other, dtype, paired):
    rng = np.random.default_rng(5)
    x = as_dtype(rng.standard_normal((5, 33)), dtype)
    weight, bias = (as_dtype(rng.standard_normal(33), other) for _ in range(2))
    near = as_dtype(np.full(33, -offset), other)  # with the offset, what is left is the rounding of the weight alone
    for norm in ("layer_norm", "rms_norm"):
        assert_rows(norm, dtype, paired, x, weight, bias, offset=offset)
        assert_rows(norm, dtype, paired, x, near, None, offset=offset)
        assert_rows(norm, dtype, paired, x, None, bias)


@every_mode
@pytest.mark.parametrize("other", ["bfloat16", "float64"])
@pytest.mark.parametrize("power", [-120, -41, 39, 120])
def test_extreme_weights(power, other, dtype, paired):
    rng = np.random.default_rng(7)
    x = as_dtype(rng.standard_normal((3, 33)), dtype)
    weight = as_dtype(rng.standard_normal(33) * 2.0**power, other)
    some = weight.copy()
    some[1:] = 1
    for norm in ("layer_norm", "rms_norm"):
        assert_rows(norm, dtype, paired, x, weight)
        assert_rows(norm, dtype, paired, x, some, weight[::-1].copy())


@every_mode
@pytest.mark.parametrize("eps", [0.0, 1e-300, 1e-5, 1e30, 1e300])
@pytest.mark.parametrize("scale", [0.0, 1e-300, -1e-40, 1e20, 1e300])
def test_extreme_scales_and_eps(scale, eps, dtype, paired):
    low, high = smallest_normal(dtype), float(reference.FORMATS[dtype][2]) / 8
    x = np.random.default_rng(8).uniform(0.5, 2, (6, 7)) * np.asarray([[low], [1.0], [high], [high / 2], [0.0], [3.0]])
    assert_rows("scale_norm", dtype, paired, as_dtype(x, dtype), eps=eps, scale=scale)


@every_mode
@pytest.mark.parametrize("eps", [0.0, 1e-320, 1e-300, 1e-30, 1e30, 1e300])
def test_extreme_eps(eps, dtype, paired):
    low, high = smallest_normal(dtype), float(reference.FORMATS[dtype][2]) / 8
    x = np.random.default_rng(9).standard_normal((6, 7)) * np.asarray([[low], [1.0], [high / 4], [1e-3], [0.0], [3.0]])
    for norm in ("layer_norm", "rms_norm"):
        assert_rows(norm, dtype, paired, as_dtype(x, dtype), eps=eps)


@every_mode
def test_a_large_weight_brings_back_what_is_far_below_its_row(dtype, paired):
    low, high = smallest_normal(dtype), float(reference.FORMATS[dtype][2])
    x = as_dtype([[high / 4, 1.2345 * low, 2.0, 1.0], [1.0, low / 4, 3 * low, 1.5], [high, low, -low, 0.0]], dtype)
    for factor in (high / 2, 1 / low / 4, 1e10 if dtype != "float16" else 1e4):
        weight = as_dtype([1.0, min(factor, high), min(factor, high), 1.0], dtype)
        assert_rows("rms_norm", dtype, paired, x, weight)
        assert_rows("rms_norm", dtype, paired, x, weight, offset=1.0)
        assert_rows("layer_norm", dtype, paired, x, weight)
        assert_rows("scale_norm", dtype, paired, x, scale=float(factor))


@every_mode
@every_norm
def test_rows_that_are_no_rows_of_numbers(norm, dtype, paired):
    x = as_dtype(np.random.default_rng(10).standard_normal((8, 33)), dtype)
    x[0], x[1], x[2, 5], x[3, 32], x[4, 0], x[5, 7] = 0, 3, np.nan, np.inf, -np.inf, np.nan
    weight = None if norm == "scale_norm" else as_dtype(np.linspace(0, 2, 33), dtype)
    for eps in (0.0, 1e-5):
        assert_rows(norm, dtype, paired, x, weight, weight, eps=eps)
