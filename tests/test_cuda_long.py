"""The CUDA kernels, emulated on the CPU: rows too long for a block, by the blocks of a cluster, one after the other."""

import numpy as np
import pytest

from anynorm._kernels.cuda.task import NORMALIZE, NORMALIZE_LONG
from tests import emulated
from tests.backends import as_dtype
from tests.test_cuda_precision import assert_rows

pytestmark = emulated.needs_compiler
# One more element than a block of 512 threads holds in four slots each, and than two blocks do.
FEATURES = {"float32": (8192 + 4, 16384 + 4), "bfloat16": (16384 + 8, 32768 + 8), "float16": (16384 + 8,)}
CASES = [(dtype, features) for dtype, several in FEATURES.items() for features in several]


def inputs(features, dtype, rows=5):
    rng = np.random.default_rng(features)
    x = rng.standard_normal((rows, features)) * 10.0 ** rng.integers(-2, 3, (rows, 1)) + 1
    return as_dtype(x, dtype), *(as_dtype(rng.standard_normal(features), dtype) for _ in range(2))


def steps(*given, **how):
    chosen = []
    y = emulated.normalize(*given, chosen=chosen, **how)
    return y, [(choice.step, choice.cluster) for choice in chosen]


@pytest.mark.parametrize(("dtype", "features"), CASES)
@pytest.mark.parametrize("norm", ["layer_norm", "rms_norm"])
def test_bits_are_those_of_one_row_at_a_time(norm, dtype, features):
    x, weight, bias = inputs(features, dtype)
    y, ((step, cluster),) = steps(norm, x, weight, bias)
    assert (step, cluster) == (NORMALIZE_LONG, 2 if features == FEATURES[dtype][0] else 4)
    # Where no room is left for the parameters each cluster takes one row.
    alone, ((step, _),) = steps(norm, x, weight, bias, shared=16 << 10)
    assert step == NORMALIZE
    assert y.tobytes() == alone.tobytes()
    assert emulated.normalize(norm, x, weight, bias, backwards=True).tobytes() == y.tobytes()
    assert emulated.normalize(norm, x[3:4], weight, bias).tobytes() == y[3:4].tobytes()
    in_place = x.copy()
    emulated.normalize(norm, in_place, weight, bias, out=in_place)
    assert in_place.tobytes() == y.tobytes()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_rows_and_weights_for_which_float32_will_not_do(dtype):
    features = FEATURES[dtype][0]
    x, weight, bias = inputs(features, dtype)
    large = 1e30
    x = as_dtype(x.astype(np.float64) * [[1.0], [large], [1 / large], [0.0], [1.0]], dtype)
    x[4, 7] = np.nan
    weight[100:116] = as_dtype(np.full(16, 1e20), dtype)
    for norm in ("layer_norm", "rms_norm"):
        y = emulated.normalize(norm, x, weight, bias, eps=0.0)
        assert y.tobytes() == emulated.normalize(norm, x, weight, bias, eps=0.0, shared=16 << 10).tobytes()
        assert np.isnan(y[4].astype(np.float64)).all()
        assert np.array_equal(y[3], bias)
    assert_rows("rms_norm", dtype, False, x[1:3], weight, bias, 0.0)


def test_a_sum_an_offset_and_a_scale():
    x, weight, bias = inputs(FEATURES["float32"][0], "float32")
    residual = x[::-1].copy()
    given = {"offset": 1.0, "residual": residual}
    y, total = emulated.normalize("rms_norm", x, weight, bias, **given)
    assert total.tobytes() == (x + residual).tobytes()
    assert y.tobytes() == emulated.normalize("rms_norm", x + residual, weight, bias, offset=1.0).tobytes()
    assert y.tobytes() == emulated.normalize("rms_norm", x, weight, bias, **given, shared=16 << 10)[0].tobytes()
    y, ((step, _),) = steps("scale_norm", x, 2.0)
    assert step == NORMALIZE_LONG  # which has no parameters to keep
    assert_rows("scale_norm", "float32", False, x[:1], scale=2.0)


@pytest.mark.parametrize(("shared", "step"), [(108 << 10, NORMALIZE_LONG), ((108 << 10) - 1, NORMALIZE)])
def test_there_is_room_for_what_is_merged_beside_the_parameters(shared, step):
    x, weight, bias = inputs(FEATURES["float32"][1], "float32", rows=1)  # three arrays of 32 kB in each block
    assert steps("rms_norm", x, weight, bias, offset=1.0, shared=shared)[1] == [(step, 4)]


@pytest.mark.parametrize("kind", ["wide parameters", "unaligned", "a row that a block holds"])
def test_what_goes_one_row_at_a_time(kind):
    features = 8192 if kind == "a row that a block holds" else FEATURES["float32"][0]
    x, weight, _ = inputs(features, "float32", rows=2)
    if kind == "wide parameters":
        weight = weight.astype(np.float64)
    if kind == "unaligned":
        x = np.concatenate([x[:, :1], x], axis=1)[:, 1:]
    _, ((step, cluster),) = steps("rms_norm", x, weight)
    assert step == NORMALIZE
    assert cluster == (1 if features == 8192 else 2)


@pytest.mark.parametrize(("dtype", "features"), [("float32", 8192 + 4), ("float64", 4096 + 2), ("float64", 4096 + 1)])
@pytest.mark.parametrize("norm", ["layer_norm", "rms_norm"])
def test_pairs_in_a_cluster(norm, dtype, features):
    x, weight, bias = inputs(features, dtype, rows=2)
    assert_rows(norm, dtype, dtype == "float32", x, weight, bias)
    y, ((step, cluster),) = steps(norm, x, weight, bias, paired=dtype == "float32")
    assert (step, cluster) == (NORMALIZE, 2)
    backwards = emulated.normalize(norm, x, weight, bias, paired=dtype == "float32", backwards=True)
    assert y.tobytes() == backwards.tobytes()
