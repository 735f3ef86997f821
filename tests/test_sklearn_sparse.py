"""Normalizer of SciPy's sparse matrices: the elements of the same dense row, and nothing stored that was not."""

import tracemalloc

import numpy as np
import pytest
import sklearn
from scipy import sparse

from anynorm._kernels import stored
from anynorm.sklearn import Normalizer
from tests import reference
from tests.tolerances import assert_exact

NORMS = {"scale": reference.scale_norm, "rms": reference.rms_norm}
FORMS = ("csr_matrix", "csr_array", "csc_matrix", "csc_array")


def table(dtype):
    """Mostly zeros; a row of none, one that is full, one of zeros that are stored, some of extreme magnitude."""
    rng, limits = np.random.default_rng(1), np.finfo(dtype)
    x = np.where(rng.random((12, 21)) < 0.4, rng.standard_normal((12, 21)), 0)
    x[1] = x[5] = x[11] = 0
    x[2] = 0.1
    x[3] *= float(limits.max) / 8
    x[4] *= float(limits.smallest_subnormal) * 99
    x[6] *= 1e-6
    x[6, 3] = 1
    x[7] *= float(limits.tiny)
    x[7, 3] = float(limits.max) / 2
    return x.astype(dtype)


def stored_as(form, dense):
    """A matrix of that kind with what is not zero stored, and the zeros of row 5."""
    coordinates = sparse.coo_array(dense + (np.arange(len(dense)) == 5)[:, None])
    x = getattr(sparse, form)((coordinates.data, (coordinates.row, coordinates.col)), shape=dense.shape)
    rows = x.tocoo().row
    x.data[rows == 5] = 0
    return x


def assert_as_dense(y, x, norm, **options):
    """The exact results of the dense rows, in the places of x, in its type."""
    dtype, dense = str(x.dtype), x.toarray()
    exact = [NORMS[norm](row, **options) for row in dense]
    assert type(y) is type(x)
    np.testing.assert_array_equal(y.indices, x.indices)
    np.testing.assert_array_equal(y.indptr, x.indptr)
    assert_exact(y.toarray(), exact, backend=f"scikit-learn {x.format}", dtype=dtype, norm=f"{norm}_norm")


@pytest.mark.parametrize("block", [1, 7, 1 << 15])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("norm", NORMS)
def test_elements_are_those_of_the_dense_row(norm, dtype, block, monkeypatch):
    monkeypatch.setattr(stored, "_BLOCK_ELEMENTS", block)
    dense = table(dtype)
    for form in FORMS if block == 7 else FORMS[:1]:
        x = stored_as(form, dense)
        kept = x.copy()
        y = Normalizer(norm).fit_transform(x)
        assert_as_dense(y, kept, norm)
        assert (x != kept).nnz == 0
        assert not any(np.shares_memory(*both) for both in ((y.data, x.data), (y.indices, x.indices)))
        ordinary = x[[0, 1, 2, 6, 8]]  # none that would take the others along
        assert_as_dense(Normalizer(norm, eps=1e-3).fit_transform(ordinary), ordinary, norm, eps=1e-3)
    if norm == "scale":
        assert_as_dense(Normalizer(scale=-3.0, eps=1e3).fit_transform(x), x, norm, scale=-3.0, eps=1e3)


@pytest.mark.parametrize("exponent", [-201, -199, 199, 201, 511])
@pytest.mark.parametrize("norm", NORMS)
def test_rows_on_both_sides_of_the_range_without_units(norm, exponent):
    assert stored._SMALLEST == 2.0**-400
    dense = np.zeros((3, 5))
    dense[0, :3] = 0.7 * 2.0**exponent, 0.3 * 2.0**exponent, 5e-324
    dense[1, 1:3] = 2.0**-600, 2.0**-601
    for rows in (dense[:1], dense):
        x = sparse.csr_array(rows)
        assert_as_dense(Normalizer(norm, eps=0).transform(x), x, norm, eps=0)


@pytest.mark.parametrize("eps", [1e-12, 1.0, 1e-200])
def test_rows_about_as_long_as_eps(eps):
    lengths = [eps * (1 + near) for near in (-(2.0**-41), -(2.0**-52), 0.0, 2.0**-52, 2.0**-41)]
    for rows in (lengths, [*lengths, 0.0]):
        x = sparse.csr_array(([*rows, 0.0], (range(len(rows) + 1), [0] * (len(rows) + 1))), shape=(len(rows) + 1, 2))
        assert_as_dense(Normalizer(eps=eps).transform(x), x, "scale", eps=eps)


def test_an_element_that_loses_digits_in_its_row_s_unit():
    x = sparse.csr_array([[2.0**689, 1.2345 * 2.0**-335, 0, -1.0]])
    assert_as_dense(Normalizer().transform(x), x, "scale")


def test_long_rows_are_added_up_exactly():
    """A hundred thousand squares that each round the same way, of which the sum is known."""
    count, value = 100_000, 0.1
    for form in ("csr_array", "csc_array"):
        x = getattr(sparse, form)(np.full((1, count), value))
        exact = reference.mpmath.mpf(1) / reference.mpmath.sqrt(count)
        for norm, one in (("scale", exact), ("rms", reference.mpmath.mpf(1))):
            y = Normalizer(norm, eps=0).transform(x)
            assert reference.error_in_ulp(y.data[0], reference.Exact(one, one), "float64") < 2
            assert (y.data == y.data[0]).all()


@pytest.mark.parametrize("form", FORMS)
def test_duplicates_are_added_up_first(form):
    rows, columns = np.asarray([0, 0, 1, 0, 2, 2]), np.asarray([1, 1, 0, 0, 2, 2])
    values = np.asarray([1.0, 2.0, 5.0, 4.0, 1.0, -1.0])
    order = np.argsort(columns if form.startswith("csc") else rows, kind="stable")
    indices = (rows if form.startswith("csc") else columns)[order]
    starts = np.searchsorted((columns if form.startswith("csc") else rows)[order], range(4))
    for copy in (True, False):
        x = getattr(sparse, form)((values[order], indices.copy(), starts.copy()), shape=(3, 3))
        y = Normalizer(copy=copy).transform(x)
        assert x.nnz == (6 if copy else 4)
        assert y.nnz == 4
        np.testing.assert_array_equal(y.toarray(), [[0.8, 0.6, 0], [1, 0, 0], [0, 0, 0]])


@pytest.mark.parametrize("form", FORMS)
def test_in_place(form):
    x = stored_as(form, table("float32"))
    data, before = x.data, x.copy()
    assert Normalizer("rms", copy=False).transform(x) is x
    assert x.data is data
    assert_as_dense(x, before, "rms")
    x = stored_as(form, table("float32"))
    x.data.flags.writeable = False
    y = Normalizer("rms", copy=False).transform(x)
    assert (x != before).nnz == 0
    assert_as_dense(y, before, "rms")


@pytest.mark.parametrize("form", ["csr_array", "csc_array"])
def test_memory_beside_the_matrix(form):
    """A few blocks; and of CSC, whose rows are brought together, about two copies."""
    rows = np.arange(1_000_000, dtype=np.int32)
    x = getattr(sparse, form)((np.ones(1_000_000, np.float32), (rows, rows % 20)), shape=(1_000_000, 20))
    held_nbytes = x.data.nbytes + x.indices.nbytes + 4 * 1_000_000
    tracemalloc.start()
    try:
        Normalizer(copy=False).transform(x)
        peak_nbytes = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert x.indptr.dtype == np.int32
    assert (x.data == 1).all()
    assert peak_nbytes < (2.2 if form == "csc_array" else 0.4) * held_nbytes


def test_a_matrix_that_shares_its_indices_stays_what_it_is():
    x = sparse.csr_array((np.asarray([4.0, 3.0]), np.asarray([2, 0]), np.asarray([0, 2])), shape=(1, 3))
    other = sparse.csr_array((np.asarray([1.0, 2.0]), x.indices, x.indptr), shape=(1, 3))
    assert np.shares_memory(other.indices, x.indices)
    assert Normalizer(copy=False).transform(x) is x
    np.testing.assert_array_equal(x.toarray(), [[0.6, 0, 0.8]])
    np.testing.assert_array_equal(other.toarray(), [[2, 0, 1]])


def test_blocks_end_where_numbers_of_32_bits_do():
    most = 2**31 - 1
    bounds = np.asarray([0, most - 9, most - 9, most, most], np.int32)
    found = [(part.start, part.stop, rows.lengths.tolist()) for part, rows in stored._blocks(bounds)]
    assert found == [(0, most - 9, [most - 9]), (most - 9, most, [9])]


def test_other_formats_integers_and_long_indices():
    dense = np.asarray([[3, 0, 4], [0, 0, 0]])
    for form in ("coo_array", "lil_matrix", "bsr_array"):
        y = Normalizer().fit_transform(getattr(sparse, form)(dense))
        assert y.format == "csr"
        assert y.dtype == np.float64
        np.testing.assert_array_equal(y.toarray(), [[0.6, 0, 0.8], [0, 0, 0]])
    x = sparse.csr_array(dense.astype(np.float32))
    x.indices, x.indptr = x.indices.astype(np.int64), x.indptr.astype(np.int64)
    y = Normalizer(copy=False).transform(x)
    assert y.indices.dtype == np.int64
    assert_as_dense(y, sparse.csr_array(dense.astype(np.float32)), "scale")
    assert Normalizer().fit_transform(sparse.csr_array((2, 3))).nnz == 0


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_nan_and_inf(form, value, dtype):
    x = stored_as(form, table(dtype))
    x.data[x.tocoo().row == 6] = value
    before = x.copy()
    for copy in (True, False):
        with pytest.raises(ValueError, match="Input X contains"):
            Normalizer(copy=copy).transform(x)
        np.testing.assert_array_equal(x.data, before.data)
    with sklearn.config_context(assume_finite=True):
        y = Normalizer("rms").transform(x)
    assert type(y) is type(x)
    assert y.dtype == dtype
    y = y.toarray()
    assert np.isnan(y[6]).all()  # as that of a dense matrix, and of pydata/sparse
    exact = [reference.rms_norm(row) for row in table(dtype)]
    kept = [i for i in range(12) if i != 6]
    assert_exact(y[kept], [exact[i] for i in kept], backend="scikit-learn NaN", dtype=dtype, norm="rms_norm")
