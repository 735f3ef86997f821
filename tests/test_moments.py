"""Moments: exact enough alone, merged, and given to a norm."""

import copy
import json
import pickle
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import anynorm
from benchmarks import merges
from tests import reference
from tests.backends import BACKENDS, DASK, JAX, KERNELS, NUMPY, STRICT, TORCH, as_dtype, thorough_but
from tests.strategies import examples, rows
from tests.tolerances import BOUNDS, assert_exact

NORMS = ("layer_norm", "rms_norm", "scale_norm")


def exact_rows(norm, x, eps):
    return [getattr(reference, norm)(row, eps=eps) for row in x]


def merged(x, cuts, order, axis=-1):
    pieces = [anynorm.moments(piece, axis=axis) for piece in np.split(x, sorted(cuts), axis=axis)]
    whole = pieces[order[0]]
    for index in order[1:]:
        whole = whole.merge(pieces[index])
    return whole


@pytest.mark.parametrize("backend", BACKENDS)
def test_mean_variance_and_mean_square(backend):
    for dtype in backend.dtypes:
        x = as_dtype(np.random.default_rng(1).standard_normal((3, 33)) * 2 + 5, dtype)
        with backend.context():
            found = anynorm.moments(backend.make(x))
            mean, variance, square = (backend.read(v) for v in (found.mean, found.variance, found.mean_square))
        assert found.count == 33
        assert found.shape == mean.shape == variance.shape == square.shape == (3, 1)
        precision = 2.0 ** (2 - 24 if mean.dtype == np.float32 else 2 - 53)
        for row in range(3):
            exact_mean, exact_variance = reference.mean_and_variance(x[row])
            assert float(mean[row, 0]) == pytest.approx(float(exact_mean), rel=precision)
            assert float(variance[row, 0]) == pytest.approx(float(exact_variance), rel=2 * precision)
            assert float(square[row, 0]) == pytest.approx(float(exact_variance + exact_mean**2), rel=2 * precision)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
@pytest.mark.parametrize("norm", NORMS)
@given(data=st.data())
@examples(40)
def test_norms_of_merged_moments_keep_the_precision(norm, dtype, data):
    x, _ = data.draw(rows(dtype, features=(7, 33)))
    cuts = data.draw(st.lists(st.integers(0, x.shape[1]), max_size=5))
    order = data.draw(st.permutations(range(len(cuts) + 1)))
    eps = data.draw(st.sampled_from([0.0, 1e-5, 1e-30]))
    given_moments = merged(x, cuts, order)
    assert given_moments.count == x.shape[1]
    got = getattr(anynorm, norm)(x, eps=eps, moments=given_moments)
    assert_exact(got, exact_rows(norm, x, eps), backend="numpy, merged", dtype=dtype, norm=norm)


@pytest.mark.parametrize("backend", BACKENDS)
def test_given_moments_give_the_norm_of_the_whole(backend):
    x = as_dtype(np.random.default_rng(3).standard_normal((2, 64)) + 3, "float32")
    with backend.context():
        left, right = backend.make(x[:, :20]), backend.make(x[:, 20:])
        both = anynorm.moments(right).merge(anynorm.moments(left))
        for norm in NORMS:
            halves = [backend.read(getattr(anynorm, norm)(part, moments=both)) for part in (left, right)]
            expected = exact_rows(norm, x, 1e-6 if norm == "rms_norm" else 1e-5)
            joined = np.concatenate(halves, axis=1)
            assert_exact(joined, expected, backend=f"{backend.name}, merged", dtype="float32", norm=norm)


def test_many_pieces_in_any_order():
    rng = np.random.default_rng(4)
    x = rng.standard_normal((1, 3000)) * 10.0 ** rng.uniform(-3, 3, 3000) + 1e6
    expected = exact_rows("layer_norm", x, 1e-5)
    for seed in range(3):
        order = np.random.default_rng(seed).permutation(1000)
        whole = merged(x, range(3, 3000, 3), list(order))
        got = anynorm.layer_norm(x, moments=whole)
        assert_exact(got, expected, backend="numpy, merged", dtype="float64", norm="layer_norm")


@pytest.mark.parametrize("way", merges.WAYS)
@pytest.mark.parametrize(
    "order",
    thorough_but(merges.from_left, merges.at_random, of=(merges.from_left, merges.in_a_tree, merges.at_random)),
)
def test_merging_does_not_wear_moments_out(way, order):
    dtype, precision = merges.WAYS[way]
    x = merges.made(dtype, mean=1e6, count=3000)
    merged = order(merges.pieces_of(x, precision))
    assert merged.count == x.size
    # Means of pieces in pairs of float32 are rounded to 2**-48 of a million deviations; merging may not add to that.
    assert merges.error(merged, *reference.mean_and_variance(x.ravel()), dtype) < 2.0**-5


@pytest.mark.parametrize("way", merges.WAYS)
def test_a_mean_drifts_by_nothing_that_its_dtype_could_hold(way):
    dtype, precision = merges.WAYS[way]
    x = (np.random.default_rng(10).integers(-99, 99, (3000, 1)) + 2.0**20).astype(dtype)
    found = merges.from_left(merges.pieces_of(x, precision)).to_dict()
    parts = [found[name] for name in ("mean", "mean_low", "mean_rest")]
    mean = sum(Fraction(part[0]) for part in parts if part is not None) / Fraction((found["unit"] or [1.0])[0])
    exact = Fraction(int(x.sum(dtype=np.int64)), len(x))
    # 3000 roundings of the mean itself to one number, or to two of float32, would come to 10 times as much and more.
    digits = {"float32": 53, "float32 alone": 48, "float64": 106}[way]
    assert abs(mean - exact) < exact * Fraction(1, 2 ** (digits + 1))


def test_counts_are_exact():
    found = anynorm.moments(np.ones(3)).to_dict()
    many = anynorm.Moments.from_dict({**found, "count": 2**60 + 1})
    assert many.merge(many).merge(anynorm.moments(np.ones(1))).count == 2**61 + 3


def test_pieces_of_very_different_magnitude():
    x = np.asarray([[1e-300, 2e-300, 1e300, -1e300, 1.0, 0.0]])
    for cuts in ((2,), (2, 4), (1, 2, 3, 4, 5)):
        for norm in NORMS:
            got = getattr(anynorm, norm)(x, moments=merged(x, cuts, range(len(cuts) + 1)), eps=0.0)
            assert_exact(got, exact_rows(norm, x, 0.0), backend="numpy, merged", dtype="float64", norm=norm)


def test_empty_pieces_are_neutral():
    for dtype in ("float32", "float64"):
        x = np.random.default_rng(5).standard_normal((2, 9)).astype(dtype)
        whole, nothing = anynorm.moments(x), anynorm.moments(x[:, :0])
        assert nothing.count == 0
        for both in (whole.merge(nothing), nothing.merge(whole), nothing.merge(nothing).merge(whole)):
            assert both.count == 9
            assert (both.mean == whole.mean).all()
            assert (both.variance == whole.variance).all()


@pytest.mark.parametrize("axis", [0, 1, (0, 2), (-1, 0), (0, 1, 2)])
def test_moments_over_any_axes(axis):
    x = np.random.default_rng(6).standard_normal((3, 4, 5))
    found = anynorm.moments(x, axis=axis)
    np.testing.assert_allclose(found.mean, x.mean(axis=axis, keepdims=True), rtol=1e-12, atol=1e-15)
    np.testing.assert_allclose(found.variance, x.var(axis=axis, keepdims=True), rtol=1e-12)
    assert anynorm.layer_norm(x, axis=axis, moments=found).shape == x.shape


def test_moments_in_blocks_of_a_large_array():
    x = np.random.default_rng(7).standard_normal((400, 1000)).astype(np.float32)
    with anynorm.use_kernel("definition"):  # which is what takes statistics
        assert (anynorm.layer_norm(x, moments=anynorm.moments(x)) == anynorm.layer_norm(x)).all()
    wide = x.astype(np.float64)
    assert (anynorm.rms_norm(wide, moments=anynorm.moments(wide)).shape) == wide.shape


def test_a_row_with_nan_stays_nan_through_a_merge():
    x = np.asarray([[1.0, np.nan, 3.0, 4.0], [1.0, 2.0, 3.0, 4.0]])
    y = anynorm.layer_norm(x, moments=merged(x, [2], [1, 0]))
    assert np.isnan(y[0]).all()
    assert np.isfinite(y[1]).all()


@pytest.mark.parametrize("backend", [NUMPY, STRICT], ids=str)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_nan_and_inf_are_results_and_no_warnings(backend, dtype):
    x = as_dtype([[1.0, np.inf, -np.inf, 2.0], [np.nan, 1.0, 2.0, 3.0], [3e38, 1.0, 2.0, 5.0]], dtype)
    found = [anynorm.moments(backend.make(part)) for part in (x, x[:, :0], x[:, 1:])]
    for one in (found[0], found[1], found[0].merge(found[2])):
        for values in (one.mean, one.variance, one.mean_square):
            assert np.isnan(backend.read(values)[1, 0]) or not one.count
    for values in (found[1].variance, found[1].mean_square):
        assert np.isnan(backend.read(values)).all()


def test_what_does_not_merge():
    x = np.ones((2, 3), np.float32)
    with pytest.raises(TypeError, match="other must be Moments, got a float32 NumPy array"):
        anynorm.moments(x).merge(x)
    with pytest.raises(ValueError, match=r"of shape \(2, 1\), got shape \(3, 1\);"):
        anynorm.moments(x).merge(anynorm.moments(np.ones((3, 2), np.float32)))
    with pytest.raises(ValueError, match=r"from narrower floats, got shape .* from float64"):
        anynorm.moments(x).merge(anynorm.moments(np.ones((2, 3))))
    torch_moments = anynorm.moments(TORCH.make(x))
    with pytest.raises(TypeError, match=r"other must be of one library .*; call other.to\(jax.numpy\) first"):
        anynorm.moments(JAX.make(x)).merge(torch_moments)


@pytest.mark.parametrize("backend", [NUMPY, TORCH, JAX], ids=str)
def test_copies_and_pickles(backend):
    for dtype in ("float32", backend.dtypes[-1]):
        x = backend.make(as_dtype(np.random.default_rng(8).standard_normal((2, 5)), dtype))
        found = anynorm.moments(x)
        for twin in (copy.deepcopy(found), pickle.loads(pickle.dumps(found))):
            assert twin.count == 5
            assert (backend.read(twin.mean) == backend.read(found.mean)).all()
            assert (backend.read(twin.variance) == backend.read(found.variance)).all()
            assert twin.merge(found).count == 10


@pytest.mark.parametrize("backend", [NUMPY, TORCH, JAX, DASK, STRICT], ids=str)
def test_a_plain_dict_and_back(backend):
    for dtype in ("float32", backend.dtypes[-1]):
        x = as_dtype(np.random.default_rng(11).standard_normal((3, 8)) + 1e3, dtype)
        found = anynorm.moments(backend.make(x[:, :5])).merge(anynorm.moments(backend.make(x[:, 5:])))
        written = json.dumps(found.to_dict())
        twin = anynorm.Moments.from_dict(json.loads(written), xp=found.namespace)
        assert type(twin.mean) is type(found.mean)
        assert json.dumps(twin.to_dict()) == written
        y, again = (backend.read(anynorm.layer_norm(backend.make(x), moments=m)) for m in (found, twin))
        assert (y == again).all()


def test_a_plain_dict_goes_to_another_library():
    x = np.random.default_rng(12).standard_normal((3, 8)).astype(np.float32)
    import torch

    written = anynorm.moments(x).to_dict()
    moved = anynorm.Moments.from_dict(written, xp=torch)
    got = anynorm.layer_norm(torch.from_numpy(x), moments=moved).numpy()
    assert_exact(got, exact_rows("layer_norm", x, 1e-5), backend="torch, sent", dtype="float32", norm="layer_norm")
    followed = anynorm.moments(torch.from_numpy(x).requires_grad_()).to_dict()
    assert followed["mean"] == pytest.approx(written["mean"], rel=1e-15)


def test_rows_of_nan_and_no_rows_go_through_a_dict():
    for x in (np.asarray([[np.nan, 1.0], [2.0, 4.0]]), np.ones((0, 3)), np.ones((2, 0))):
        found = anynorm.moments(x)
        twin = anynorm.Moments.from_dict(json.loads(json.dumps(found.to_dict())))
        assert (twin.count, twin.shape) == (found.count, found.shape)
        np.testing.assert_array_equal(twin.mean, found.mean)


def test_dicts_that_are_no_moments():
    written = anynorm.moments(np.ones((2, 3))).to_dict()
    for wrong, message in (
        ({"count": -1}, "count must be 0 or more"),
        ({"mean": [1.0]}, r"mean must be a list of 2 numbers, as shape \(2, 1\)"),
        ({"dtype": "int64"}, "float32 or float64, got the str 'int64'"),
        ({"squares": None}, "squares"),
    ):
        with pytest.raises(ValueError, match=message):
            anynorm.Moments.from_dict({**written, **wrong})
    del written["squares_low"]
    with pytest.raises(ValueError, match=r"values must hold .*, got none named squares_low"):
        anynorm.Moments.from_dict(written)


def test_moments_pass_through_jit():
    import jax

    x = JAX.make(np.random.default_rng(9).standard_normal((2, 5)).astype(np.float32))
    found = jax.jit(anynorm.moments)(x)
    assert found.count == 5
    y = jax.jit(lambda x, found: anynorm.layer_norm(x, moments=found))(x, found)
    assert_exact(
        y, exact_rows("layer_norm", np.asarray(x), 1e-5), backend="jax, traced", dtype="float32", norm="layer_norm"
    )


def test_repr_shows_the_numbers():
    assert repr(anynorm.moments(np.asarray([1.0, 3.0]))) == "Moments(count=2, mean=array([2.]), variance=array([1.]))"


def test_variance_is_right_where_its_square_root_is_extreme():
    x = np.asarray([[1e-200, 3e-200], [1e150, 3e150]])
    found = anynorm.moments(x)
    exact = [reference.mean_and_variance(row) for row in x]
    assert found.mean[:, 0].tolist() == pytest.approx(
        [float(mean) for mean, _ in exact], rel=BOUNDS["float64"] * 2**-52
    )
    assert found.variance[1, 0] == pytest.approx(float(exact[1][1]), rel=1e-15)
    assert exact[0][1] < Fraction(1, 10**390)
    assert found.variance[0, 0] == 0.0


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("backend", [NUMPY, TORCH], ids=str)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_what_is_handed_out_may_be_written_to(backend, kernel, dtype):
    """Moments share no memory with what they show, came from or were merged of; rows of one element neither."""
    for features in (1, 4):
        values = as_dtype(np.random.default_rng(13).standard_normal((3, features)) + 2, dtype)
        with anynorm.use_kernel(kernel):
            x = backend.make(values)
            found, nothing = anynorm.moments(x), anynorm.moments(x[:, :0]) if kernel == "definition" else None
            written = found.to_dict()
            merges = [] if nothing is None else [found.merge(nothing), nothing.merge(found)]
            merges += [anynorm.Moments.from_dict(written, xp=found.namespace)]
            for one in (found, *merges):
                for handed_out in (one.mean, one.variance, one.mean_square):
                    handed_out[...] = 99.0
                one.to_dict()["mean"][0] = 99.0
            x[...] = 99.0
            assert found.to_dict() == written
            assert all({**one.to_dict(), "count": features} == written for one in merges)
