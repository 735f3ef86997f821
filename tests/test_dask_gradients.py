"""The derivative of Dask arrays: block by block, or of rows that are cut from merged sums; as exact as NumPy's."""

import dask
import dask.array as da
import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

import anynorm
from anynorm._check import check, check_gradient
from anynorm._choose import choose_vjp
from anynorm._definition.norms import LAYER_NORM
from tests.backends import ALL, as_dtype, thorough_but
from tests.dask_graphs import dependencies, tasks
from tests.strategies import cases, examples
from tests.tolerances import (
    KERNEL_GRADIENT_BOUNDS,
    assert_exact,
    assert_sums_exact,
    gradient_of_bias,
    gradient_of_rows,
)

NORMS = ("layer_norm", "rms_norm", "scale_norm")
X, DY = np.random.default_rng(0).standard_normal((2, 6, 40)).astype(np.float32)
WEIGHT, BIAS = np.random.default_rng(1).standard_normal((2, 40)).astype(np.float32)


@pytest.fixture(autouse=True)
def in_this_thread():
    with dask.config.set(scheduler="synchronous"):
        yield


def pull(norm, x, dy, weight=None, bias=None, **options):
    """(dx, dweight, dbias); scale_norm has no third, and a scale for its weight."""
    parameters = (weight,) if norm == "scale_norm" else (weight, bias)
    return getattr(anynorm, f"{norm}_vjp")(x, *parameters, **options)[1](dy)


@pytest.mark.parametrize("norm", NORMS)
def test_whole_rows_have_the_bits_of_numpy(norm):
    weight = 2.5 if norm == "scale_norm" else WEIGHT
    x, dy = da.from_array(X, chunks=((1, 0, 3, 2), (40,))), da.from_array(DY, chunks=(4, 30))
    found, expected = pull(norm, x, dy, weight, BIAS), pull(norm, X, DY, weight, BIAS)
    assert found[0].chunks == x.chunks
    assert (found[0].compute() == expected[0]).all()
    for got, of_numpy in zip(found[1:], expected[1:], strict=True):
        assert (got.shape, got.dtype) == (of_numpy.shape, of_numpy.dtype)
        np.testing.assert_allclose(got.compute(), of_numpy, rtol=1e-6, atol=1e-6)
    assert tasks(*found)[f"{norm}-gradient"] == 4


@pytest.mark.parametrize("dtype", thorough_but("float16", "float64", of=ALL))
@pytest.mark.parametrize("norm", NORMS)
@given(data=st.data())
@examples(16)
def test_gradients_keep_the_precision(norm, dtype, data):
    case = data.draw(cases(dtype, features=(7, 33)))
    assume(case.kind in ("normal", "offset", "outlier", "nearly_constant") and case.eps != 1e-300)
    cuts = sorted(data.draw(st.lists(st.integers(0, case.x.shape[1]), max_size=5)))
    lengths = tuple(int(n) for n in np.diff([0, *cuts, case.x.shape[1]]))
    dy = as_dtype(np.random.default_rng(data.draw(st.integers(0, 2**32 - 1))).standard_normal(case.x.shape), dtype)
    weight, offset = (case.scale, {}) if norm == "scale_norm" else (case.weight, {"weight_offset": case.weight_offset})
    lazy = (da.from_array(one, chunks=(1, lengths)) for one in (case.x, dy))
    found = pull(norm, *lazy, weight, case.bias, eps=case.eps, **offset)
    exact_of = {"scale": 1.0 if case.scale is None else case.scale}
    if norm != "scale_norm":
        exact_of = {"weight": case.weight, "offset": case.weight_offset}
    dx, dweight = gradient_of_rows(norm, case.x, dy, dtype, by_kernel=True, eps=case.eps, **exact_of)
    said = {"backend": "dask, cut", "dtype": dtype, "bounds": KERNEL_GRADIENT_BOUNDS}
    assert_exact(found[0].compute(), dx, norm=f"{norm} dx", **said)
    assert (found[1] is None) == (weight is None)
    if weight is not None:
        assert_sums_exact(found[1].compute(), dweight, norm=f"{norm} dw", **said)
    if norm != "scale_norm" and case.bias is not None:
        assert_sums_exact(found[2].compute(), gradient_of_bias(dy), norm=f"{norm} db", **said)


@pytest.mark.parametrize("chunks", [(100, 3), (100, 2)])
def test_sums_over_blocks_are_rounded_once(chunks):
    # In float16 a block's sum is 100.125 where 100.098 is exact, which 30 blocks add up to 2 units of the whole sum.
    x = np.tile(np.asarray([1, 0, -1], np.float16), (3000, 1))
    dy, ones = np.full((3000, 3), 1 + 2.0**-10, np.float16), np.ones(3, np.float16)
    lazy = (da.from_array(one, chunks=chunks) for one in (x, dy))
    _, dweight, dbias = pull("rms_norm", *lazy, ones, ones, eps=0.0)
    exact = 3000 * (1 + 2.0**-10)
    np.testing.assert_array_equal(dbias.compute(), np.full(3, exact).astype(np.float16))
    np.testing.assert_array_equal(dweight.compute(), (exact * np.sqrt(1.5) * x[0].astype(float)).astype(np.float16))


@pytest.mark.parametrize("axis", [1, (0, 2), (0, 1, 2)])
@pytest.mark.parametrize("chunks", [-1, 2])
def test_any_axis_with_a_residual(axis, chunks):
    x, residual, dy, dtotal = np.random.default_rng(2).standard_normal((4, 4, 5, 6))
    axes = axis if isinstance(axis, tuple) else (axis,)
    weight, bias = np.random.default_rng(3).standard_normal((2, *(x.shape[one] for one in axes)))
    expected = anynorm.add_layer_norm_vjp(x, residual, weight, bias, axis=axis)[1](dy, dtotal)
    lazy = [da.from_array(one, chunks=chunks) for one in (x, residual, weight, bias)]
    found = anynorm.add_layer_norm_vjp(*lazy, axis=axis)[1](da.from_array(dy, chunks=3), da.from_array(dtotal))
    for got, exact in zip(found, expected, strict=True):
        np.testing.assert_allclose(got.compute(), exact, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("norm", NORMS)
def test_rows_of_many_magnitudes_that_are_cut(norm):
    """Powers of two, beyond which squares and products would leave the range, differ from block to block."""
    powers = np.asarray([[0, 900, -900, 500, -500, 1000]]).T
    x, weight = X.astype(np.float64) * 2.0**powers, WEIGHT.astype(np.float64) * 1e100
    dy = DY.astype(np.float64) * 2.0 ** np.asarray([[0, 300, -600, 200, -900, 0]]).T
    dy[:, :13] *= 1e-20
    parameters = (2.5e100, None) if norm == "scale_norm" else (weight, BIAS.astype(np.float64))
    lazy = (da.from_array(one, chunks=(6, 13)) for one in (x, dy))
    found, expected = pull(norm, *lazy, *parameters, eps=0.0), pull(norm, x, dy, *parameters, eps=0.0)
    for got, exact in zip(found, expected, strict=True):
        size = np.abs(exact).max(-1, keepdims=True) if exact.ndim == 2 else np.abs(exact).max()
        assert np.isfinite(size).all()
        assert (np.abs(got.compute() - exact) <= 1e-12 * size).all()


@pytest.mark.parametrize("chunks", [(2, 40), (2, 13)])
@pytest.mark.parametrize("norm", NORMS)
def test_the_number_of_rows_may_be_unknown(norm, chunks):
    weight = 2.5 if norm == "scale_norm" else WEIGHT
    keep = X[:, 0] > np.sort(X[:, 0])[2]
    some, dy = (da.from_array(one, chunks=chunks)[da.from_array(keep, chunks=2)] for one in (X, DY))
    for got, exact in zip(pull(norm, some, dy, weight), pull(norm, X[keep], DY[keep], weight), strict=True):
        assert (got is None) == (exact is None)
        if got is not None:
            np.testing.assert_allclose(got.compute(), exact, rtol=2e-6, atol=2e-6)
    with pytest.raises(ValueError, match=r"dy must have as many blocks as x along axis 0 of x, 3, .* got 6"):
        pull(norm, some, da.from_array(DY, chunks=1)[da.from_array(keep, chunks=1)], weight)


@pytest.mark.parametrize("shape", [(0, 4), (4, 0), (0, 0)])
@pytest.mark.parametrize("kernel", [None, "definition"])
def test_empty_arrays_in_several_blocks(shape, kernel):
    chunks = tuple((length // 2, length - length // 2) for length in shape)
    x, ones = da.zeros(shape, chunks=chunks), np.ones(shape[1])
    with anynorm.use_kernel(kernel):
        for norm in NORMS:
            found = pull(norm, x, x, 2.0 if norm == "scale_norm" else ones, ones)
            assert (
                [one.shape for one in found] == [shape, ()] if norm == "scale_norm" else [shape, shape[1:], shape[1:]]
            )
            assert all(one.compute().shape == one.shape and not one.compute().any() for one in found)


def test_lazy_with_tasks_for_one_block_each():
    reads = []
    x = da.from_array(X, chunks=(3, 10)).map_blocks(lambda block: reads.append(1) or block, meta=X[:0, :0])
    found = pull("layer_norm", x, da.from_array(DY, chunks=(3, 10)), WEIGHT, BIAS)
    assert not reads
    for key, needed in dependencies(*found).items():
        if key[0].startswith(("layer_norm-gradient-sums-partial", "layer_norm-gradient-sums-aggregate")):
            assert len(needed) <= 4
        elif key[0].startswith("layer_norm-gradient-"):
            assert len([one for one in needed if one[0] == x.name]) <= 1
    dask.compute(*found)
    assert len(reads) == 8  # once for each block, for all three


def test_kernels_are_chosen_and_forced():
    def chosen(x):
        return choose_vjp(check_gradient(check(LAYER_NORM, x, None, None, -1, 1e-5), x)).name

    whole, cut = da.from_array(X, chunks=(2, 40)), da.from_array(X, chunks=(2, 20))
    assert (chosen(whole), chosen(cut)) == ("blocks", "pieces")
    with anynorm.use_kernel("blocks"), pytest.raises(RuntimeError, match="axis 1, which is normalized, is cut into 2"):
        chosen(cut)
    with anynorm.use_kernel("pieces"), pytest.raises(RuntimeError, match="x is an array of numpy"):
        chosen(X)
    expected = pull("layer_norm", X, DY, WEIGHT)
    for kernel in ("pieces", "definition"):
        with anynorm.use_kernel(kernel):
            found = pull("layer_norm", whole, da.from_array(DY), WEIGHT)
        for got, exact in zip(found[:2], expected[:2], strict=True):
            np.testing.assert_allclose(got.compute(), exact, rtol=2e-6, atol=2e-6)
