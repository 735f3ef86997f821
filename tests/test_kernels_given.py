"""Moments by the kernels, and given ones applied by them: exact, and the same bits whatever the layout."""

import numpy as np
import pytest
import torch

import anynorm
from anynorm._moments import statistics_of
from tests import reference
from tests.backends import ALL, TORCH, as_dtype, needs_llvmlite
from tests.tolerances import assert_exact

pytestmark = needs_llvmlite
NORMS = ("layer_norm", "rms_norm", "scale_norm")
X = np.random.default_rng(0).standard_normal((6, 1100)) * 3 + 7
WEIGHT, BIAS = np.random.default_rng(1).standard_normal((2, 1100))


@pytest.fixture(autouse=True)
def through_the_kernels():
    with anynorm.use_kernel("cpu"):
        yield


def bits(moments):
    return list(moments.to_dict().values())


def laid_out(x):
    """The same rows in other places: with gaps, backwards, as columns, and one normalized axis as two."""
    yield np.repeat(np.repeat(x, 2, 0), 2, 1)[::2, ::2], -1
    yield x[::-1, ::-1].copy()[::-1, ::-1], -1
    yield np.asfortranarray(x), 1
    yield x.T.copy(), 0
    yield x.reshape(2, 3, 11, 100).transpose(1, 2, 0, 3), (1, 3)


@pytest.mark.parametrize("dtype", ALL)
def test_the_layout_changes_no_bit(dtype):
    x, weight, bias = (as_dtype(one, dtype) for one in (X, WEIGHT, BIAS))
    found = anynorm.moments(x)
    y = anynorm.layer_norm(x, weight, bias, moments=found)
    for other, axis in laid_out(x):
        moments = anynorm.moments(other, axis=axis)
        rows = np.moveaxis(moments.mean, axis, range(-np.size(axis), 0)).reshape(-1)
        order = [int(np.flatnonzero(found.mean[:, 0] == mean)[0]) for mean in rows]
        for a, b in ((moments.mean, found.mean), (moments.variance, found.variance)):
            assert (np.moveaxis(a, axis, range(-np.size(axis), 0)).reshape(-1) == b[order, 0]).all()
        shape = (11, 100) if isinstance(axis, tuple) else (1100,)
        again = anynorm.layer_norm(other, weight.reshape(shape), bias.reshape(shape), axis=axis, moments=moments)
        again = np.moveaxis(again, axis, range(-np.size(axis), 0)).reshape(x.shape)
        assert (again == y[order]).all()


@pytest.mark.parametrize("dtype", ALL)
@pytest.mark.parametrize("norm", NORMS)
def test_torch_batches_threads_and_out_change_no_bit(norm, dtype):
    x = np.tile(as_dtype(X, dtype), (200, 1))  # enough to be shared among threads
    parameters = {} if norm == "scale_norm" else {"weight": as_dtype(WEIGHT, dtype)}
    found = anynorm.moments(x[:6])
    y = getattr(anynorm, norm)(x[:6], **parameters, moments=found)
    expected = [getattr(reference, norm)(row, **parameters) for row in x[:2]]
    assert_exact(y[:2], expected, backend="cpu, given moments", dtype=dtype, norm=norm)
    try:
        for threads in (1, 2):
            anynorm.set_threads(threads)
            whole = anynorm.moments(x)
            assert (whole.mean[-6:] == found.mean).all()
            assert (whole.variance[-6:] == found.variance).all()
            out = x.copy()
            assert getattr(anynorm, norm)(out, **parameters, moments=whole, out=out) is out
            assert (out == np.tile(y, (200, 1))).all()
    finally:
        anynorm.set_threads(None)
    tensor = TORCH.make(x[:6])
    of_tensor = anynorm.moments(tensor)
    assert isinstance(of_tensor.mean, torch.Tensor)
    assert bits(of_tensor) == bits(found)
    given = {name: TORCH.make(one) for name, one in parameters.items()}
    assert (TORCH.read(getattr(anynorm, norm)(tensor, **given, moments=of_tensor)) == y).all()


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("norm", NORMS)
def test_rows_of_any_magnitude_beside_ordinary_ones(norm, dtype):
    largest = {"float32": 1e38, "float64": 1e307}[dtype]
    sizes = [1.0, largest, 1 / largest, 1e-30, 0.0, 1e30]
    x = as_dtype(np.random.default_rng(2).uniform(-1, 1, (6, 50)) * np.asarray(sizes)[:, None], dtype)
    weight = None if norm == "scale_norm" else as_dtype(WEIGHT[:50], dtype)
    parameters = () if weight is None else (weight,)
    found = anynorm.moments(x)
    alone = anynorm.moments(x[:1])
    assert (found.mean[0] == alone.mean[0]).all()
    for eps in (0.0, 1e-5, 1e300):
        y = getattr(anynorm, norm)(x, *parameters, eps=eps, moments=found)
        expected = [getattr(reference, norm)(row, *parameters, eps=eps) for row in x]
        assert_exact(y, expected, backend="cpu, given moments", dtype=dtype, norm=norm)
        assert (y[0] == getattr(anynorm, norm)(x[:1], *parameters, eps=eps, moments=alone)[0]).all()
        out = TORCH.make(x)
        given = [TORCH.make(one) for one in parameters]
        getattr(anynorm, norm)(out, *given, eps=eps, moments=anynorm.moments(out), out=out)
        assert (TORCH.read(out) == y).all()


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_degenerate_rows(dtype):
    x = as_dtype([[3.0, 3.0, 3.0], [0.0, 0.0, 0.0], [np.nan, 1.0, 2.0], [np.inf, 1.0, 2.0], [1.0, 2.0, 4.0]], dtype)
    for norm in NORMS:
        for eps in (0.0, 1e-5):
            y = getattr(anynorm, norm)(x, eps=eps, moments=anynorm.moments(x))
            expected = [getattr(reference, norm)(row, eps=eps) for row in x]
            assert_exact(y, expected, backend="cpu, given moments", dtype=dtype, norm=norm)


@pytest.mark.parametrize("dtype", ALL)
def test_weights_of_any_kind(dtype):
    x = as_dtype(X[:2, :70], dtype)
    found = anynorm.moments(x)
    huge = np.full(70, 1e300)
    for weight, offset in ((WEIGHT[:70].astype(np.float32), 1.0), (WEIGHT[:70], 0.25), (huge, 0.0)):
        with np.errstate(over="ignore"):
            y = anynorm.layer_norm(x, weight, BIAS[:70], weight_offset=offset, moments=found)
        expected = [reference.layer_norm(row, weight, BIAS[:70], 1e-5, offset) for row in x]
        assert_exact(y, expected, backend="cpu, given moments", dtype=dtype, norm="layer_norm")


def test_statistics_of_other_data_and_statistics_alone():
    x = X.astype(np.float32)
    whole = anynorm.moments(x[:, :500]).merge(anynorm.moments(x[:, 500:]))
    y = [anynorm.layer_norm(part, moments=whole) for part in (x[:, :500], x[:, 500:])]
    expected = [reference.layer_norm(row) for row in x]
    joined = np.concatenate(y, axis=1)
    assert_exact(joined, expected, backend="cpu, given moments", dtype="float32", norm="layer_norm")


@pytest.mark.parametrize("kernel", ["cpu", "definition"])
def test_scales_and_lengths_that_are_extreme_where_the_result_is_not(kernel):
    """scale / length is out of range, or nearly; on either side of what the kernel takes and of what pairs hold."""
    rng = np.random.default_rng(3)
    for size, scale in [
        (1e300, 1e-300), (1e200, 1e-200), (1e130, 1e-119), (1e-200, 1e-320), (1e-300, 1e-300), (1e308, 1e-308),
        (1e-300, 1e305), (1.0, 1.7e308), (1.0, 1e-120), (1.0, 1e-121), (1.0, 1e120), (1.0, 1e121), (1e300, 0.0),
    ]:  # fmt: skip
        x = rng.uniform(0.5, 1, (3, 5)) * np.asarray([[size], [1.0], [0.0]])
        expected = [reference.scale_norm(row, scale) for row in x]
        with anynorm.use_kernel(kernel):
            for given in (scale, np.asarray(scale)):
                y = anynorm.scale_norm(x, given, moments=anynorm.moments(x))
                assert_exact(y, expected, backend=f"{kernel}, given", dtype="float64", norm="scale_norm")


@pytest.mark.parametrize("kernel", ["cpu", "definition"])
@pytest.mark.parametrize(
    ("length", "size", "scale"), [(1e-200, 1e200, 1e-300), (1e200, 1e-200, 1e300), (1e150, 1e-150, 1e10)]
)
def test_rows_far_from_the_moments_that_they_are_given(kernel, length, size, scale):
    whole = np.asarray([[3.0, 4.0]]) * length
    x = np.asarray([[1.0, -2.0, 0.0, 1.7]]) * size
    norm = reference.mpmath.sqrt(sum(reference.mpmath.mpf(float(v)) ** 2 for v in whole[0]))
    exact = [reference.mpmath.mpf(float(v)) * reference.mpmath.mpf(scale) / norm for v in x[0]]
    with anynorm.use_kernel(kernel):
        y = anynorm.scale_norm(x, scale, eps=0.0, moments=anynorm.moments(whole))
    expected = [[reference.Exact(value, abs(value)) for value in exact]]
    assert_exact(y, expected, backend=f"{kernel}, given", dtype="float64", norm="scale_norm")


@pytest.fixture
def no_definition(monkeypatch):
    def refuse(call):
        raise AssertionError("through the definition")

    monkeypatch.setattr("anynorm._kernels.definition.run", refuse)
    monkeypatch.setattr("anynorm._kernels.definition.run_moments", refuse)


def beside(bound):
    return [float(np.nextafter(bound, 0.0)), bound, float(np.nextafter(bound, np.inf))]


# Rows of one magnitude on either side of each bound: what a row without a unit may hold, and units of others.
MAGNITUDES = [
    one for power in (180, -180, 200, -200, 320, -416, 688, -738, 1000, -48) for one in beside(2.0**power)
] + [0.0, 1.0, 5e-324]  # fmt: skip


def test_units_of_moments_are_those_of_the_definition_where_a_row_has_one():
    x = np.asarray(MAGNITUDES)[:, None] * np.linspace(-1.0, 1.0, 9)
    with anynorm.use_kernel("definition"):
        expected = statistics_of(anynorm.moments(x))
    found = statistics_of(anynorm.moments(x))
    size = np.max(np.abs(x), axis=-1, keepdims=True)
    is_without = (size > 2.0**-300) & (size < 2.0**-40)  # while its squares are in range
    assert (found.unit == np.where(is_without, 1.0, expected.unit)).all()
    assert set(found.unit.ravel()) == {1.0, *(2.0**power for power in (368, 690, 855, -368, -704))}


@pytest.mark.parametrize("constant", [False, True])
def test_moments_of_any_magnitude_are_exact_in_one_call(constant, no_definition):
    sizes = np.asarray(MAGNITUDES)[:, None]
    x = (np.ones((1, 9)) if constant else np.random.default_rng(5).uniform(-1, 1, (len(sizes), 9))) * sizes
    found = anynorm.moments(x)
    for row, mean, variance in zip(x, found.mean[:, 0], found.variance[:, 0], strict=True):
        values = [reference.mpmath.mpf(float(one)) for one in row]
        exact = reference.mpmath.fsum(values) / 9
        assert abs(exact - float(mean)) <= np.spacing(abs(mean))
        exact = reference.mpmath.fsum((one - exact) ** 2 for one in values) / 9
        assert abs(exact - float(variance)) <= 4 * np.spacing(variance) or exact > np.finfo(np.float64).max
    for other, axis in laid_out_short(x):
        again = anynorm.moments(other, axis=axis)
        for a, b in zip(statistics_of(again)[1:-1], statistics_of(found)[1:-1], strict=True):
            assert (a is b is None) or a.ravel().tobytes() == b.ravel().tobytes()


def laid_out_short(x):
    yield x.T.copy(), 0
    yield np.asfortranarray(x), 1
    yield np.repeat(x, 2, 0)[::2], 1


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("features", [5, 40])
def test_given_moments_of_any_magnitude_are_applied_in_one_call(norm, features, no_definition):
    bounds = [one for power in (180, -180, 400, -400) for one in beside(2.0**power)]  # of the shift, of the factor
    sizes = np.asarray([*bounds, *MAGNITUDES, 1e308])[:, None]
    x = np.random.default_rng(6).uniform(0.25, 1, (len(sizes), features)) * sizes
    weight = np.random.default_rng(7).standard_normal(features)
    for parameters in ((), (weight,)) if norm != "scale_norm" else ((), (-3.0,), (1e-300,)):
        for eps in (0.0, 1e-5):
            y = getattr(anynorm, norm)(x, *parameters, eps=eps, moments=anynorm.moments(x))
            expected = [getattr(reference, norm)(row, *parameters, eps=eps) for row in x]
            assert_exact(y, expected, backend="cpu, given moments", dtype="float64", norm=norm)
            for other, axis in laid_out_short(x):
                along = getattr(anynorm, norm)(
                    other, *parameters, axis=axis, eps=eps, moments=anynorm.moments(other, axis=axis)
                )
                assert (along.T if axis == 0 else along).tobytes() == y.tobytes()


@pytest.mark.parametrize("norm", NORMS)
def test_elements_far_above_the_moments_that_are_given_overflow_alone(norm, no_definition):
    found = anynorm.moments(np.asarray([[1.0, -2.0, 1.5]]) * 1e-300)
    y = getattr(anynorm, norm)(np.asarray([[1e300, 1e-300, -np.inf, np.nan]]), eps=0.0, moments=found)
    assert y[0, 0] == np.inf
    assert np.isfinite(y[0, 1])
    assert y[0, 2] == -np.inf
    assert np.isnan(y[0, 3])


@pytest.mark.parametrize(("value", "weight"), [(1e300, 1e-300), (1e-320, 1e300), (1e200, 1e-100)])
def test_weights_bring_back_elements_that_are_far_from_the_moments(value, weight, no_definition):
    x, whole = np.asarray([[1.0, -2.0, 1.5]]) * value, np.asarray([[3.0, 4.0]]) * 1e-200
    y = anynorm.rms_norm(x, np.full(3, weight), eps=0.0, moments=anynorm.moments(whole))
    mpf = reference.mpmath.mpf
    root = reference.mpmath.sqrt(sum(mpf(float(one)) ** 2 for one in whole[0]) / 2)
    exact = [mpf(float(one)) * mpf(weight) / root for one in x[0]]
    expected = [[reference.Exact(one, abs(one)) for one in exact]]
    assert_exact(y, expected, backend="cpu, given moments", dtype="float64", norm="rms_norm")


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("rows", [8191, 8192, 8193, 20000])
def test_step_2_in_pieces_changes_no_bit(rows, dtype):
    x = np.random.default_rng(8).standard_normal((rows, 3)).astype(dtype)
    x[[0, -1]] *= {"float32": 1e30, "float64": 1e300}[dtype]
    for norm in NORMS:
        y = getattr(anynorm, norm)(x, moments=anynorm.moments(x))
        for part in (slice(5), slice(4000, 4100), slice(rows - 5, rows)):
            assert (y[part] == getattr(anynorm, norm)(x[part], moments=anynorm.moments(x[part]))).all()
        several = x[: rows // 4 * 4].reshape(2, -1, 2, 3)
        along = getattr(anynorm, norm)(several, axis=(1, 3), moments=anynorm.moments(several, axis=(1, 3)))
        again = several.transpose(0, 2, 1, 3).reshape(4, -1).copy()
        expected = getattr(anynorm, norm)(again, moments=anynorm.moments(again))
        assert (along.transpose(0, 2, 1, 3).reshape(4, -1) == expected).all()
