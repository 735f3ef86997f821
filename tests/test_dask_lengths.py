"""Dask arrays whose lengths are not known before they are computed, as after a filter or of a data frame."""

import dask
import dask.array as da
import numpy as np
import pytest

import anynorm
from tests import reference
from tests.tolerances import assert_exact

X = np.random.default_rng(0).standard_normal((9, 6)).astype(np.float32)
KEPT = X[:, 0] > np.sort(X[:, 0])[2]


@pytest.fixture(autouse=True)
def in_this_thread():
    with dask.config.set(scheduler="synchronous"):
        yield


def filtered(values, chunks):
    """The rows that are kept, whose number Dask does not know."""
    return da.from_array(values, chunks=chunks)[da.from_array(KEPT, chunks=chunks[0])]


def given_moments(values, axis):
    return anynorm.Moments.from_dict(anynorm.moments(values, axis=axis).to_dict(), xp=da)


@pytest.mark.parametrize("kernel", [None, "definition"])
def test_with_moments_the_length_of_the_normalized_axis_may_be_unknown(kernel):
    kept = X[KEPT]
    weight = np.arange(1.0, 10.0, dtype=np.float32)
    some, weights = filtered(X, (2, 3)), filtered(weight, (2,))
    statistics = given_moments(kept, 0)
    with anynorm.use_kernel(kernel):
        plain, weighted = (anynorm.layer_norm(some, w, axis=0, moments=statistics) for w in (None, weights))
    assert plain.chunks[1] == weighted.chunks[1] == some.chunks[1]
    for got, w in ((plain, None), (weighted, weight[KEPT])):
        exact = [reference.layer_norm(column, w) for column in kept.T]
        assert_exact(got.compute().T, exact, backend="dask, given moments", dtype="float32", norm="layer_norm")
    with pytest.raises(ValueError, match=r"a known length along the normalized axis 0, .* or pass moments"):
        anynorm.layer_norm(some, axis=0)


def test_parameters_must_fit_as_far_as_lengths_are_known():
    some = filtered(X, (2, 6))
    statistics = given_moments(X[KEPT], (0, 1))
    with pytest.raises(ValueError, match=r"weight must have the shape of the normalized axes, \(nan, 6\)"):
        anynorm.layer_norm(some, da.ones((9, 5), chunks=(2, 5)), axis=(0, 1), moments=statistics)
    with pytest.raises(ValueError, match=r"as many blocks as x along axis 0 of x, 5, .* got 1; call compute_chunk_s"):
        anynorm.layer_norm(some, np.ones((6, 6)), axis=(0, 1), moments=statistics)
    with pytest.raises(ValueError, match=r"shape \(6, 6\)|\(2, 6\)"):
        anynorm.layer_norm(some, da.ones((10, 6), chunks=2), axis=(0, 1), moments=statistics).compute()


def test_moments_of_rows_of_unknown_number_are_cut_as_far_as_lengths_are_known():
    three = np.stack([X, X + 1, X + 2], axis=1)
    some, other = filtered(three, (2, 1, 6)), filtered(three, (2, 3, 6))
    expected = anynorm.layer_norm(three[KEPT])
    np.testing.assert_allclose(
        anynorm.layer_norm(some, moments=anynorm.moments(other)).compute(), expected, rtol=1e-6, atol=1e-6
    )
    with pytest.raises(ValueError, match=r"moments must have as many blocks as x along axis 0 of x, 5, .* got 3"):
        anynorm.layer_norm(some, moments=anynorm.moments(filtered(three, (3, 3, 6))))
