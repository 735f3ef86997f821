"""Moments as values: made of a mean and a variance, cut, joined, added up, compared; what they show of themselves."""

import copy
import json
import math
import pickle
from fractions import Fraction

import dask.array as da
import jax
import mpmath
import numpy as np
import pytest
import torch

import anynorm
from anynorm import Moments
from tests import reference
from tests.backends import DASK, JAX, JAX_X64, KERNELS, NUMPY, STRICT, TORCH, as_dtype
from tests.tolerances import assert_exact

LIBRARIES = [NUMPY, TORCH, JAX, JAX_X64, DASK, STRICT]
TABLE = np.random.default_rng(0).standard_normal((9, 4)) * [1.0, 3.0, 1e-3, 1e4] + [0.0, 5.0, 1e3, -7.0]
MEAN, VARIANCE = TABLE.mean(0), TABLE.var(0)


def in_mpmath(value):
    value = value if isinstance(value, Fraction) else Fraction(float(value))
    return mpmath.mpf(value.numerator) / value.denominator


def standardized(x, mean, variance, eps):
    """Column after column, (x - mean) / sqrt(variance + eps) in exact arithmetic but for the root."""
    for column, middle, spread in zip(x.T, mean, variance, strict=True):
        root = mpmath.sqrt(in_mpmath(spread) + mpmath.mpf(eps))
        values = [(in_mpmath(value) - in_mpmath(middle)) / root for value in column]
        yield [reference.Exact(value, max(abs(value), 1)) for value in values]


@pytest.mark.parametrize(
    ("backend", "dtype"),
    [(one, dtype) for one in LIBRARIES for dtype in ("float32", "float64") if dtype in one.dtypes],
    ids=str,
)
def test_a_mean_and_a_variance_are_kept(backend, dtype):
    mean, variance = as_dtype(MEAN, dtype), as_dtype(VARIANCE, dtype)
    with backend.context():
        made = Moments.from_mean_variance(backend.make(mean), backend.make(variance), count=9, axis=0)
        assert (made.count, made.shape) == (9, (1, 4))
        shown = [backend.read(one)[0] for one in (made.mean, made.variance, made.std)]
        assert (shown[0] == mean).all()
        assert (np.abs(shown[1] - variance) <= np.spacing(variance.astype(shown[1].dtype))).all()
        assert shown[2] == pytest.approx(
            np.sqrt(variance.astype(np.float64)), rel=2.0 ** (-22 if backend is JAX else -51)
        )
        for other in [one for one in ("float16", "float64") if one in backend.dtypes]:
            x = as_dtype(TABLE, other)
            y = backend.read(anynorm.layer_norm(backend.make(x), axis=0, moments=made))
            expected = list(standardized(x, mean, variance, 1e-5))
            assert_exact(y.T, expected, backend=f"{backend.name}, given", dtype=other, norm="layer_norm")


def test_of_any_magnitude_and_of_nan():
    mean = np.asarray([1e-300, 1e300, 3.0, 0.0, math.nan, math.inf, 0.0, 0.0])
    variance = np.asarray([1e-320, 1e305, 0.0, 5e-324, 1.0, 1.0, math.nan, math.inf])
    made = Moments.from_mean_variance(mean, variance, count=3)
    np.testing.assert_array_equal(made.mean, mean)
    np.testing.assert_array_equal(made.variance[:4], variance[:4])
    for norm in (anynorm.layer_norm, anynorm.rms_norm):
        y = norm(np.ones((8, 2)), moments=Moments.from_mean_variance(mean, variance, count=3, axis=1))
        assert np.isnan(y[4:]).all()
    assert made.std[2] == 0.0
    assert made.std[3] == math.sqrt(5e-324)
    assert anynorm.moments(np.asarray([1e-200, 3e-200])).std == pytest.approx([1e-200], rel=1e-15)


@pytest.mark.parametrize(("axis", "shape"), [(None, (4,)), (0, (1, 4)), (-1, (4, 1)), ((0, 2, 3), (1, 4, 1, 1))])
def test_axes_are_inserted(axis, shape):
    assert Moments.from_mean_variance(MEAN, VARIANCE, count=2, axis=axis).shape == shape


def test_what_was_made_merges_as_what_was_measured():
    x = np.concatenate([TABLE, TABLE[:5] * 2])
    made = Moments.from_mean_variance(MEAN, VARIANCE, count=len(TABLE), axis=0)
    both = made.merge(anynorm.moments(TABLE[:5] * 2, axis=0))
    for column in range(4):
        mean, variance = reference.mean_and_variance(x[:, column])
        # The mean that it was made of was rounded once.
        assert abs(Fraction(both.mean[0, column]) - mean) <= abs(mean) * Fraction(1, 2**51) + Fraction(1, 2**56)
        assert both.variance[0, column] == pytest.approx(float(variance), rel=1e-12)


def test_counts_that_the_caller_changes_afterwards_change_nothing():
    mean, variance, count = MEAN.copy(), VARIANCE.copy(), np.full(4, 9)
    made = Moments.from_mean_variance(mean, variance, count=count, axis=0)
    mean[:], variance[:], count[:] = 7.0, 7.0, 3
    assert (made.count == 9).all()
    np.testing.assert_array_equal(made.mean[0], MEAN)
    np.testing.assert_allclose(made.variance[0], VARIANCE, rtol=2.0**-52)


def test_counts_row_by_row_as_scikit_learn_has_them():
    made = Moments.from_mean_variance(
        MEAN, np.where([1, 1, 1, 0], VARIANCE, np.nan), count=np.asarray([9.0, 3.0, 9.0, 0.0]), axis=0
    )
    assert made.count.tolist() == [[9, 3, 9, 0]]
    measured = anynorm.moments(TABLE, axis=0)
    both = made.merge(measured)
    assert both.count.tolist() == [[18, 12, 18, 9]]
    assert both[..., 3:].mean == measured[..., 3:].mean


def test_what_a_mean_and_a_variance_are_mistaken_for():
    with pytest.raises(TypeError, match=r"got a float64 NumPy array of shape \(4,\); call .*from_mean_variance"):
        Moments(MEAN, VARIANCE)
    with pytest.raises(ValueError, match=r"shape \(1, 4\), .* got \(4,\); name the axes that they lack, .*axis=0"):
        anynorm.layer_norm(TABLE, axis=0, moments=Moments.from_mean_variance(MEAN, VARIANCE, count=9))
    trained = anynorm.moments(TABLE, axis=0)
    with pytest.raises(ValueError, match=r"shape \(1,\), .* got \(1, 4\); keep each axis of x, as x\[3:4\]"):
        anynorm.layer_norm(TABLE[3], axis=0, moments=trained)
    with pytest.raises(TypeError, match=r"got a dict; pass .*Moments.from_dict"):
        anynorm.layer_norm(TABLE, axis=0, moments=trained.to_dict())


def test_what_moments_are_not_made_of():
    make = Moments.from_mean_variance
    for error, message, given, options in (
        (TypeError, "mean must be an array, got the list", ([1.0], VARIANCE), {}),
        (TypeError, "variance must be an array of the library of mean, got a float32 torch", (MEAN, torch.ones(4)), {}),
        (TypeError, "real floating", (MEAN, np.ones(4, int)), {}),
        (TypeError, "count must be an int, got the float 3.0", (MEAN, VARIANCE), {"count": 3.0}),
        (ValueError, "count must be 1 or more", (MEAN, VARIANCE), {"count": 0}),
        (TypeError, "count must be an int, got a float64 NumPy", (MEAN, VARIANCE), {"count": np.asarray(2.5)}),
        (ValueError, r"ints of the shape of mean, \(4,\), got an", (MEAN, VARIANCE), {"count": np.ones(3, int)}),
        (ValueError, r"shape of mean, \(4,\), got \(3,\)", (MEAN, VARIANCE[:3]), {}),
        (ValueError, "variance must be 0 or more, got a negative one; pass", (MEAN, -VARIANCE), {}),
        (ValueError, r"axis must name each axis once, in \[-2, 2\)", (MEAN, VARIANCE), {"axis": 2}),
        (ValueError, "axis must name each axis once", (MEAN, VARIANCE), {"axis": (0, -3)}),
    ):  # fmt: skip
        with pytest.raises(error, match=message):
            make(*given, **{"count": 9, **options})
    with pytest.raises(TypeError, match="count"):
        make(MEAN, VARIANCE)
    assert np.isnan(make(MEAN, np.full(4, np.nan), count=1).variance).all()


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_feature_that_was_constant_in_training(kernel, dtype):
    x = as_dtype([[5.0], [6.0], [-1e3], [np.nan]], dtype)
    trained = anynorm.moments(as_dtype(np.full((3, 1), 5.0), dtype), axis=0)
    made = Moments.from_mean_variance(np.asarray([5.0]), np.asarray([0.0]), count=3, axis=0)
    for constant in (trained, made):
        assert constant.std == 0.0
        with anynorm.use_kernel(kernel):
            for eps in (1e-5, 1e-30, 0.0):
                y = anynorm.layer_norm(x, axis=0, eps=eps, moments=constant)
                expected = [np.zeros(3)] if eps == 0.0 else [(x[:3, 0].astype(float) - 5.0) / math.sqrt(eps)]
                np.testing.assert_allclose(y[:3].T, expected, rtol=2.0**-22)
                assert np.isnan(y[3])
            y = anynorm.layer_norm(x, None, np.full(4, 2.0), axis=0, eps=0.0, moments=constant)
            assert y[:3].ravel().tolist() == [2.0] * 3


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("norm", ["layer_norm", "rms_norm", "scale_norm"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_an_element_that_is_not_finite_leaves_the_others_alone(norm, kernel, dtype):
    x = as_dtype(TABLE, dtype)
    trained = anynorm.moments(x, axis=0)
    with anynorm.use_kernel(kernel):
        y = getattr(anynorm, norm)(x, axis=0, moments=trained)
        x[2, 1], x[3, 1] = np.nan, -np.inf
        holed = getattr(anynorm, norm)(x, axis=0, moments=trained)
    assert np.isnan(holed[2, 1])
    assert (np.isfinite(holed) == np.isfinite(x)).all()
    assert (holed[np.isfinite(x)] == y[np.isfinite(x)]).all()


@pytest.mark.parametrize("backend", LIBRARIES, ids=str)
def test_features_are_chosen_and_joined(backend):
    dtype = backend.dtypes[-1]
    with backend.context():
        x = backend.make(as_dtype(TABLE, dtype))
        whole = anynorm.moments(x, axis=0)
        chosen = anynorm.moments(backend.make(as_dtype(TABLE, dtype)[:, [1, 3]]), axis=0)
        assert (
            whole[..., [1, -1]].compute()
            == whole[:, np.asarray([False, True, False, True])].compute()
            == chosen.compute()
        )
        assert (whole[:, 1::2].compute(), whole[...].shape, whole[:, 4:].shape) == (chosen.compute(), (1, 4), (1, 0))
        again = Moments.concat([whole[:, :1], whole[..., 1:3], whole[:1, 3:]])
        assert again.compute() == whole.compute()
        y, parts = (backend.read(anynorm.layer_norm(x, axis=0, moments=one)) for one in (whole, again))
        assert (y == parts).all()


def test_what_is_not_chosen():
    found = anynorm.moments(TABLE, axis=0)
    for index in (0, (0, 1), None, (slice(None), [[0]]), "mean", 1.5, [0.5]):
        with pytest.raises(TypeError, match=r"the index must keep each axis, got .*; write 3:4 for"):
            found[index]
    for index in (([0], [4]), ([0], [-5]), ([0], [True] * 3), (..., ...), (0, 0, 0)):
        with pytest.raises(IndexError, match="the index must"):
            found[index]
    with pytest.raises(TypeError, match="keep each axis"):
        list(found)


def test_what_is_not_joined():
    found = anynorm.moments(TABLE, axis=0)
    both, narrow, tensor = [found, found[:, :2]], anynorm.moments(TABLE.astype(np.float32), axis=0), found.to(torch)
    for error, message, given, axis in (
        (TypeError, "moments must be a list of Moments, one or more, got the list", [], -1),
        (TypeError, "moments must be a list of Moments", found, -1),
        (TypeError, r"moments\[1\] must be of one library .* numpy, .*; call .to\(numpy\)", [found, tensor], -1),
        (ValueError, r"moments\[1\] must be of data as wide .*; call .to\(dtype=...\)", [found, narrow], -1),
        (ValueError, r"moments\[1\] must have the count of the first, 9, got 18", [found, found + found], -1),
        (ValueError, r"axis must be an axis along which shapes may be joined, \(1, 4\) and \(1, 2\)", both, 0),
        (ValueError, "axis must be an axis along", [found, found], 2),
    ):  # fmt: skip
        with pytest.raises(error, match=message):
            Moments.concat(given, axis=axis)


def test_sums():
    pieces = [anynorm.moments(TABLE[start : start + 3], axis=0) for start in (0, 3, 6)]
    whole = pieces[0].merge(pieces[1]).merge(pieces[2])
    assert sum(pieces) == pieces[0] + pieces[1] + pieces[2] == whole
    assert sum(pieces[:1]) is pieces[0]
    for wrong in (1, 0.0, None, TABLE, "0"):
        with pytest.raises(TypeError):
            pieces[0] + wrong
    with pytest.raises(TypeError):
        1 + pieces[0]


@pytest.mark.parametrize("backend", LIBRARIES, ids=str)
def test_equal_after_a_round_trip(backend):
    for dtype in {"float32", backend.dtypes[-1]}:
        with backend.context():
            x = as_dtype(TABLE, dtype)
            x[0, 1] = np.nan
            found = anynorm.moments(backend.make(x), axis=0)
            other = anynorm.moments(backend.make(x[::-1] * 2), axis=0)
            assert found == found
            if backend is DASK:
                assert found == anynorm.moments(found.namespace.asarray(DASK.make(x)), axis=0)
                with pytest.raises(TypeError, match=r"compare a.compute\(\) == b.compute\(\)"):
                    assert found != other
            found, other = found.compute(), other.compute()
            twins = [
                copy.copy(found), copy.deepcopy(found), pickle.loads(pickle.dumps(found)),
                Moments.from_dict(json.loads(json.dumps(found.to_dict())), xp=found.namespace),
            ]  # fmt: skip
            assert all(found == twin for twin in twins)
            assert found != other
            assert found != found.merge(other)
            assert found[:, :3] != found


def test_what_is_never_equal():
    found = anynorm.moments(TABLE, axis=0)
    assert found != found.to(torch)
    assert found != found.to(dtype="float32")
    assert found != "moments"
    assert found != anynorm.moments(TABLE, axis=0, skip_nan=True)
    with pytest.raises(TypeError, match="unhashable"):
        hash(found)


def test_nothing_large_is_printed_or_computed():
    large = repr(anynorm.moments(np.ones((100_000, 2))))
    assert len(large) < 1000
    reads = []
    lazy = da.from_array(TABLE, chunks=3).map_blocks(lambda block: reads.append(1) or block, meta=TABLE[:0])
    assert "dask.array" in repr(anynorm.moments(lazy, axis=0, skip_nan=True))
    assert not reads
    shown = []
    jax.jit(lambda x: shown.append(repr(anynorm.moments(x))) or x)(jax.numpy.ones((2, 3)))
    assert "Trace" in shown[0]


def test_made_while_a_program_is_traced():
    def standardize(x, mean, variance):
        made = Moments.from_mean_variance(mean, variance, count=9, axis=0)
        return anynorm.layer_norm(x, axis=0, moments=made)

    given = [as_dtype(one, "float32") for one in (TABLE, MEAN, VARIANCE)]
    expected = list(standardized(*given, 1e-5))
    y = jax.jit(standardize)(*given)
    assert_exact(np.asarray(y).T, expected, backend="jax, traced", dtype="float32", norm="layer_norm")
    compiled = torch.compile(standardize, fullgraph=True, backend="eager")
    y = compiled(*map(torch.from_numpy, given)).numpy()
    assert_exact(y.T, expected, backend="torch, compiled", dtype="float32", norm="layer_norm")
