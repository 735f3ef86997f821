"""pydata/sparse: zeros stay unstored, and every format comes back as what it is."""

import tracemalloc

import numpy as np
import pytest
import sparse

import anynorm
from tests import reference
from tests.tolerances import assert_exact, gradient_of_rows

DENSE = np.where(np.arange(33) % 4 == 0, np.random.default_rng(3).standard_normal((4, 33)), 0)
DENSE[2] = 0
WEIGHT = np.random.default_rng(4).standard_normal(33)


def formats(dense):
    """An array in every format that sparse has, of GCXS with each of its axes compressed."""
    coordinates = sparse.COO(dense)
    compressed = [sparse.GCXS.from_coo(coordinates, compressed_axes=(axis,)) for axis in range(dense.ndim)]
    return [coordinates, *compressed, sparse.DOK.from_coo(coordinates)]


def assert_like(y, x):
    """Of x's type and dtype, with the same axes compressed, and with nothing stored where x is zero."""
    assert type(y) is type(x)
    assert y.dtype == x.dtype
    assert getattr(y, "compressed_axes", None) == getattr(x, "compressed_axes", None)
    assert y.nnz <= x.nnz
    assert y.fill_value == 0
    assert not np.signbit(y.fill_value)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_every_format_comes_back_and_zeros_stay_unstored(dtype):
    dense, weight = DENSE.astype(dtype), sparse.COO(WEIGHT.astype(dtype))
    of_rms = [reference.rms_norm(row, weight.todense(), offset=0.5) for row in dense]
    of_scale = [reference.scale_norm(row, -1.5) for row in dense]
    of_sum = [reference.rms_norm(row, weight.todense()) for row in dense + dense]
    said = {"backend": "sparse", "dtype": dtype}
    for x in formats(dense):
        y = anynorm.rms_norm(x, weight, weight_offset=0.5)
        assert_like(y, x)
        assert_exact(y.todense(), of_rms, norm="rms_norm", **said)
        for scale in (-1.5, sparse.COO(np.asarray(-1.5, dtype))):
            y = anynorm.scale_norm(x, scale)
            assert_like(y, x)
            assert_exact(y.todense(), of_scale, norm="scale_norm", **said)
        y, total = anynorm.add_rms_norm(x, x, weight)
        assert_like(y, x)
        assert_like(total, x)
        assert_exact(y.todense(), of_sum, norm="rms_norm", **said)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_derivatives(dtype):
    dense, weight = DENSE.astype(dtype), sparse.GCXS.from_numpy(WEIGHT.astype(dtype))
    dy = np.where(dense, np.random.default_rng(5).standard_normal(dense.shape), 0).astype(dtype)
    options = {"weight": weight.todense(), "eps": 1e-6}
    exact, _ = gradient_of_rows("rms_norm", dense, dy, dtype, **options)
    for x in formats(dense):
        _, pull = anynorm.rms_norm_vjp(x, weight)
        dx, dweight, _ = pull(sparse.COO(-dy))  # whose zeros are -0.0
        assert_like(dx, x)
        assert_like(dweight, weight)
        assert_exact(-dx.todense(), exact, backend="sparse", dtype=dtype, norm="rms_norm dx")
        dx, dscale = anynorm.scale_norm_vjp(x, 2.0)[1](x)
        assert_like(dx, x)
        assert dscale is not None
    elsewhere = np.ones_like(dense)  # a gradient where x is zero is no zero
    exact, _ = gradient_of_rows("rms_norm", dense, elsewhere, dtype, **options)
    dx = anynorm.rms_norm_vjp(sparse.COO(dense), weight)[1](sparse.COO(elsewhere))[0]
    assert_exact(dx.todense(), exact, backend="sparse", dtype=dtype, norm="rms_norm dx")


def test_other_axes_and_no_rows():
    for x in formats(DENSE.T.copy()):
        y = anynorm.rms_norm(x, sparse.COO(WEIGHT), axis=0)
        assert_like(y, x)
        exact = [reference.rms_norm(row, WEIGHT) for row in DENSE]
        assert_exact(y.todense().T, exact, backend="sparse", dtype="float64", norm="rms_norm")
    assert anynorm.rms_norm(sparse.COO(DENSE[:0]), sparse.COO(WEIGHT)).shape == (0, 33)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_given_moments(dtype):
    rows = DENSE[[0, 1, 3]].astype(dtype)
    found = anynorm.Moments.from_dict(anynorm.moments(rows).to_dict(), xp=sparse)
    for x in formats(rows):
        y = anynorm.rms_norm(x, moments=found)
        assert_like(y, x)
        exact = [reference.rms_norm(row) for row in rows]
        assert_exact(y.todense(), exact, backend="sparse, given", dtype=dtype, norm="rms_norm")


def test_memory_goes_with_what_is_stored():
    """Of 10**8 elements 2000 are stored; a byte for each that is not would be 100 MB."""
    rng = np.random.default_rng(6)
    places = rng.integers(0, 10_000, (2, 2000))
    x = sparse.COO(places, rng.standard_normal(2000), shape=(10_000, 10_000))
    weight = sparse.COO(rng.standard_normal(10_000))
    anynorm.rms_norm(x, weight)  # sparse compiles what it calls first
    tracemalloc.start()
    try:
        y = anynorm.rms_norm(x, weight)
        peak_nbytes = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert_like(y, x)
    assert peak_nbytes < 20e6


def test_weights_that_differ_from_row_to_row():
    weights = np.random.default_rng(6).standard_normal(DENSE.shape)
    for shape in ((4, 33), (4, 1)):
        own = weights[:, : shape[1]]
        exact = [reference.rms_norm(row, np.broadcast_to(own[i], 33)) for i, row in enumerate(DENSE)]
        for x in formats(DENSE):
            y = anynorm.rms_norm(x, sparse.COO(own))
            assert_like(y, x)
            assert_exact(y.todense(), exact, backend="sparse", dtype="float64", norm="rms_norm")
