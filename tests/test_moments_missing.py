"""Moments that leave NaN out: exact, counted row by row, merged as exactly as others, in each library."""

import functools
import json
import pickle
from fractions import Fraction

import dask.array as da
import jax
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import anynorm
from anynorm import Moments
from anynorm._definition.counting import products_share, share_as_pair
from anynorm._definition.missing import reduce_present
from benchmarks import merges
from tests import reference
from tests.backends import BACKENDS, DASK, JAX, NUMPY, STRICT, TORCH, as_dtype
from tests.strategies import examples, rows
from tests.tolerances import assert_exact

NORMS = ("layer_norm", "rms_norm", "scale_norm")


def with_holes(x, seed=0, share=0.4):
    """The same with NaN in some places, in the last row but one in all but the first, in the last in all."""
    x = x.copy()
    x[np.random.default_rng(seed).random(x.shape) < share] = np.nan
    x[-2], x[-1] = np.nan, np.nan
    x[-2, 0] = 3.0
    return x


def there(row):
    return row[~np.isnan(row.astype(np.float64))]


def assert_norms_of_what_is_there(x, found, make, read, backend):
    """Each norm of the elements that are there is exact; the others are NaN, as is a row of nothing else."""
    dtype = x.dtype.name
    for norm in NORMS:
        y = read(getattr(anynorm, norm)(make(x), eps=1e-5, moments=found))
        for row, got in zip(x, y, strict=True):
            is_there = ~np.isnan(row.astype(np.float64))
            assert np.isnan(got[~is_there].astype(np.float64)).all()
            if is_there.any():
                expected = [getattr(reference, norm)(row[is_there], eps=1e-5)]
                assert_exact(got[is_there][None], expected, backend=backend, dtype=dtype, norm=norm)


@pytest.mark.parametrize("backend", BACKENDS)
def test_what_is_there_is_counted_and_exact(backend):
    for dtype in sorted({"float32", backend.dtypes[-1]}):
        x = with_holes(as_dtype(np.random.default_rng(1).standard_normal((5, 33)) * 2 + 5, dtype))
        with backend.context(), anynorm.use_kernel(None):
            found = anynorm.moments(backend.make(x), skip_nan=True)
            shown = [
                backend.read(one) for one in (found.count, found.mean, found.variance, found.std, found.mean_square)
            ]
            assert shown[0].ravel().tolist() == [len(there(row)) for row in x]
            assert shown[0].dtype.kind == "i"
            assert found.shape == (5, 1)
            for row in range(4):
                mean, variance = reference.mean_and_variance(there(x[row]))
                precision = 2.0 ** (2 - 24 if shown[1].dtype == np.float32 else 2 - 53)
                assert float(shown[1][row, 0]) == pytest.approx(float(mean), rel=precision)
                assert float(shown[2][row, 0]) == pytest.approx(float(variance), rel=2 * precision)
                assert float(shown[4][row, 0]) == pytest.approx(float(variance + mean**2), rel=2 * precision)
            assert all(np.isnan(one[-1, 0]) for one in shown[1:])
            assert shown[3][-2] == 0.0  # of one element
            assert_norms_of_what_is_there(x, found, backend.make, backend.read, f"{backend.name}, some")
            # Of what nothing was seen nothing is known.
            others = backend.make(as_dtype(np.ones(x.shape), dtype))
            y = backend.read(anynorm.rms_norm(others, moments=found)).astype(np.float64)
            assert (np.isnan(y).all(axis=1) == [False] * 4 + [True]).all()


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
@given(data=st.data())
@examples(40)
def test_any_magnitude_in_pieces(dtype, data):
    x, _ = data.draw(rows(dtype, features=(7, 33)))
    holes = data.draw(st.lists(st.integers(0, x.size - 1), max_size=x.size))
    x.reshape(-1)[holes] = np.nan
    cuts = sorted(data.draw(st.lists(st.integers(0, x.shape[1]), max_size=4)))
    pieces = [anynorm.moments(piece, skip_nan=True) for piece in np.split(x, cuts, axis=1)]
    whole = functools.reduce(Moments.merge, data.draw(st.permutations(pieces)))
    assert_norms_of_what_is_there(x, whole, np.asarray, np.asarray, "numpy, merged, some")


@pytest.mark.parametrize("way", merges.WAYS)
def test_merging_row_by_row_does_not_wear_moments_out(way):
    dtype, precision = merges.WAYS[way]
    x = merges.made(dtype, mean=1e6, count=3000)
    x[np.random.default_rng(2).random(x.shape) < 0.4] = np.nan
    x[0] = np.nan
    with np.errstate(all="ignore"):
        whole = Moments(reduce_present(np, x.astype(precision.dtype), (1,), precision), np)
    merged = sum(whole[place : place + 1] for place in range(len(x)))
    values = x[~np.isnan(x)]
    assert merged.count.tolist() == [[values.size]]
    assert merges.error(merged, *reference.mean_and_variance(values), dtype) < 2.0**-5


@pytest.mark.parametrize(("digits", "dtype", "most"), [(24, np.float32, 2**30), (53, np.float64, 2**62)])
def test_shares_of_counts_have_twice_the_digits(digits, dtype, most):
    for a, b in np.random.default_rng(9).integers(1, most, (50, 2)).tolist():
        piece, other, whole = ([np.asarray([count], f"int{32 if digits == 24 else 64}")] for count in (a, b, a + b))
        like = np.zeros(1, dtype)
        for found, exact in (
            (share_as_pair(np, *piece, *whole, digits, like), Fraction(a, a + b)),
            (products_share(np, *piece, *other, *whole, digits, like), Fraction(a * b, a + b)),
        ):
            assert abs(sum(Fraction(float(part[0])) for part in found) / exact - 1) < Fraction(1, 2 ** (2 * digits - 3))


def test_counts_are_exact():
    found = anynorm.moments(np.ones((1, 3)), skip_nan=True).to_dict()
    many = Moments.from_dict({**found, "count": [2**60 + 1]})
    assert (many + many + anynorm.moments(np.ones((1, 1)))).count.tolist() == [[2**61 + 3]]
    with pytest.raises(
        ValueError, match=r"moments must have counts that ints of jax\.numpy can hold, up to 2147483647"
    ):
        Moments.from_dict({**found, "count": [2**31]}).to(jax.numpy)
    assert Moments.from_dict({**found, "count": [2**31 - 1]}).to(jax.numpy).count.tolist() == [[2**31 - 1]]


@pytest.mark.parametrize("backend", [NUMPY, TORCH, JAX, DASK, STRICT], ids=str)
def test_rows_of_which_nothing_is_there_change_nothing(backend):
    for dtype in sorted({"float32", backend.dtypes[-1]}):
        x = as_dtype(np.random.default_rng(3).standard_normal((3, 8)) + 1e3, dtype)
        # Merged of two, so that they have more digits than one piece does.
        some = anynorm.moments(backend.make(x[:, :3]), skip_nan=True) + anynorm.moments(backend.make(x[:, 3:]))
        nothing = anynorm.moments(backend.make(x * np.nan), skip_nan=True)
        for both in (some + nothing, nothing + some, nothing + nothing + some):
            assert both.compute() == some.compute()


@pytest.mark.parametrize("axis", [0, (0, 2)])
@pytest.mark.parametrize("chunks", [(2, 4, 2), (6, 2, 3)])
def test_dask_rows_whole_and_cut(axis, chunks):
    x = np.random.default_rng(4).standard_normal((6, 4, 3)).astype(np.float32)
    x[x > 0.8] = np.nan
    x[:, 3] = np.nan
    found, expected = (anynorm.moments(one, axis=axis, skip_nan=True) for one in (da.from_array(x, chunks=chunks), x))
    assert isinstance(found.count, da.Array)
    assert found.count.dtype.kind == "i"
    computed = found.compute(scheduler="synchronous")
    assert (computed.count == expected.count).all()
    np.testing.assert_allclose(computed.mean, expected.mean, rtol=1e-14)
    np.testing.assert_allclose(computed.variance, expected.variance, rtol=1e-13)
    y = anynorm.layer_norm(da.from_array(x, chunks=chunks), axis=axis, moments=found).compute(scheduler="synchronous")
    np.testing.assert_allclose(y, anynorm.layer_norm(x, axis=axis, moments=expected), rtol=1e-6)


@pytest.mark.parametrize("backend", [NUMPY, TORCH, JAX], ids=str)
def test_kept_and_carried(backend):
    x = with_holes(np.random.default_rng(5).standard_normal((4, 6)).astype(np.float32))
    found = anynorm.moments(backend.make(x), skip_nan=True)
    twins = [
        pickle.loads(pickle.dumps(found)),
        Moments.from_dict(json.loads(json.dumps(found.to_dict())), xp=found.namespace),
        Moments.unflatten(found.flatten()[1], found.flatten()[0]),
        Moments.concat([found[:2], found[2:]], axis=0),
    ]  # fmt: skip
    assert all(twin == found for twin in twins)
    both = Moments.concat([found[:2], anynorm.moments(backend.make(x[2:]))], axis=0)
    assert backend.read(both.count).ravel().tolist() == [*backend.read(found.count)[:2, 0], 6, 6]
    assert found.to(np).count.dtype == np.int64
    assert (found.to(np).count == backend.read(found.count)).all()


def test_traced():
    x = with_holes(np.random.default_rng(6).standard_normal((4, 6)).astype(np.float32))
    expected = anynorm.layer_norm(x, moments=anynorm.moments(x, skip_nan=True))

    def of_twice_as_many(x):
        found = anynorm.moments(x, skip_nan=True)
        return anynorm.layer_norm(x, moments=found + found), found

    y, found = jax.jit(of_twice_as_many)(x)
    np.testing.assert_allclose(np.asarray(y), expected, rtol=2.0**-21)
    assert found.to(np).count.ravel().tolist() == [len(there(row)) for row in x]
    y, _ = torch.compile(of_twice_as_many, fullgraph=True, backend="eager")(torch.from_numpy(x))
    np.testing.assert_allclose(y.numpy(), expected, rtol=2.0**-23)


def test_carried_through_a_loop_of_jax():
    x = with_holes(np.random.default_rng(6).standard_normal((4, 6)).astype(np.float32))
    start = anynorm.moments(jax.numpy.asarray(x[:0]), axis=0, skip_nan=True)

    def seen(found, row):
        return found + anynorm.moments(row[None], axis=0, skip_nan=True), None

    found, _ = jax.lax.scan(seen, start, x)
    shown = [np.asarray(one)[0] for one in (found.count, found.mean, found.variance)]
    for place, column in enumerate(x.T):
        expected = len(there(column)), *map(float, reference.mean_and_variance(there(column)))
        np.testing.assert_allclose([one[place] for one in shown], expected, rtol=2.0**-21)


def test_the_mean_of_a_constant_row_is_that_constant():
    x = np.tile(np.random.default_rng(0).standard_normal((20, 1)), 12)
    x[:, -1] = np.nan
    written = anynorm.moments(x, skip_nan=True).to_dict()
    assert (np.asarray(written["mean"]) == x[:, 0] * written["unit"]).all()
    assert not np.any(written["mean_low"])
    gradient = anynorm.layer_norm_vjp(x[:, :-1], moments=anynorm.moments(x, skip_nan=True))[1](x[:, :-1])[-1]
    assert (gradient.variance == 0.0).all()


def test_derivatives_at_what_is_there():
    x = with_holes(np.random.default_rng(7).standard_normal((4, 6)))

    def spread(x):
        found = anynorm.moments(x, skip_nan=True)
        return (found.mean + found.variance)[:2].sum()

    tensor = torch.from_numpy(x).requires_grad_()
    (gradient,) = torch.autograd.grad(spread(tensor), tensor)
    with jax.enable_x64(True):
        by_jax = jax.jit(jax.grad(spread))(x)
    is_there = ~np.isnan(x)
    count, mean = is_there.sum(1, keepdims=True), np.nanmean(x[:3], axis=1, keepdims=True)
    expected = np.zeros(x.shape)
    expected[:2] = np.where(is_there[:2], (1 + 2 * (x[:2] - mean[:2])) / count[:2], 0.0)
    for found in (gradient.numpy(), by_jax):
        np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-14)


def test_infinity_is_not_missing():
    x = np.asarray([[np.inf, np.nan, 1.0], [1.0, np.nan, 3.0]])
    for dtype in ("float32", "float64"):
        found = anynorm.moments(x.astype(dtype), skip_nan=True)
        assert found.count.tolist() == [[2], [2]]
        assert np.isnan(found.variance[0, 0])
        assert (found.mean[1, 0], found.variance[1, 0]) == (2.0, 1.0)


def test_nothing_missing_is_as_without():
    x = np.random.default_rng(8).standard_normal((70, 2000)).astype(np.float32)  # in blocks
    found, plain = anynorm.moments(x, skip_nan=True), anynorm.moments(x)
    assert (found.count == 2000).all()
    np.testing.assert_allclose(found.mean, plain.mean, rtol=1e-12)
    np.testing.assert_allclose(found.variance, plain.variance, rtol=1e-12)
    empty = anynorm.moments(x[:0], axis=0, skip_nan=True)
    assert empty.count.tolist() == [[0] * 2000]
    assert (empty + anynorm.moments(x, axis=0)).count.tolist() == [[70] * 2000]
    assert anynorm.moments(da.from_array(x[:0], chunks=(1, 900)), axis=0, skip_nan=True).compute() == empty


def test_who_refuses():
    with anynorm.use_kernel("cpu"), pytest.raises(RuntimeError, match="it does not leave NaN out of moments"):
        anynorm.moments(np.ones(3), skip_nan=True)
    for wrong in (1, "omit", None):
        with pytest.raises(TypeError, match="skip_nan must be a bool, got"):
            anynorm.moments(np.ones(3), skip_nan=wrong)


def test_the_exact_mean_of_a_constant_row():
    for dtype in ("float32", "float64"):
        for there in (3, 334):  # times 0.1, which no dtype holds
            x = np.full((1, 1001), 0.1, dtype)
            x[0, there:] = np.nan
            found = anynorm.moments(x, skip_nan=True)
            assert Fraction(found.mean[0, 0]) == Fraction(float(x[0, 0]))
            assert found.variance[0, 0] == 0.0
