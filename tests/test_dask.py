"""Dask arrays: lazy, a task for each block, the bits of the kernel for the blocks, and rows that are cut."""

import dask
import dask.array as da
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import anynorm
from anynorm._kernels import blocks
from tests import reference
from tests.backends import ALL, as_dtype, needs_llvmlite
from tests.dask_graphs import dependencies, tasks
from tests.strategies import cases, examples
from tests.tolerances import assert_exact

NORMS = ("layer_norm", "rms_norm", "scale_norm")
X = np.random.default_rng(0).standard_normal((6, 40)).astype(np.float32)
WEIGHT, BIAS = np.random.default_rng(1).standard_normal((2, 40)).astype(np.float32)


@pytest.fixture(autouse=True)
def in_this_thread():
    with dask.config.set(scheduler="synchronous"):
        yield


def call(norm, x, weight=None, bias=None, **options):
    if norm == "scale_norm":
        return anynorm.scale_norm(x, **options)
    return getattr(anynorm, norm)(x, weight, bias, **options)


@pytest.mark.parametrize("dtype", ALL)
@pytest.mark.parametrize("norm", NORMS)
def test_whole_rows_have_the_bits_of_numpy(norm, dtype):
    x, weight, bias = (as_dtype(one, dtype) for one in (X, WEIGHT, BIAS))
    lazy = da.from_array(x, chunks=((1, 3, 2), (40,)))
    y = call(norm, lazy, weight, bias)
    assert (y.chunks, y.dtype, type(y._meta), y._meta.ndim) == (lazy.chunks, x.dtype, np.ndarray, 2)
    assert (y.compute() == call(norm, x, weight, bias)).all()
    assert tasks(y) == {norm: 3}


@pytest.mark.parametrize(
    ("axis", "chunks"), [(0, (4, 2, 3)), (1, (1, 5, 3)), (-1, 3), ((0, 2), (4, 2, 6)), ((1, 2), 6)]
)
@pytest.mark.parametrize("cut", [False, True])
def test_any_axis(axis, chunks, cut):
    x = np.random.default_rng(2).standard_normal((4, 5, 6)).astype(np.float32)
    axes = tuple(one % 3 for one in (axis if isinstance(axis, tuple) else (axis,)))
    weight, bias = np.random.default_rng(3).standard_normal((2, *(x.shape[one] for one in axes)))
    lazy = da.from_array(x, chunks=2 if cut else chunks)
    if not cut:
        lazy = lazy.rechunk(dict.fromkeys(axes, -1))
    y = anynorm.layer_norm(lazy, weight, da.from_array(bias, chunks=3), axis=axis)
    assert anynorm.explain(lazy, weight, axis=axis).kernel == ("pieces" if cut else "blocks")
    assert y.chunks == lazy.chunks
    expected = anynorm.layer_norm(x, weight, bias, axis=axis)
    if cut:
        np.testing.assert_allclose(y.compute(), expected, rtol=1e-6, atol=1e-6)
    else:
        assert (y.compute() == expected).all()


@pytest.mark.parametrize("norm", NORMS)
def test_cut_rows_take_no_rechunk_and_no_more_than_a_block_a_task(norm):
    lazy = da.from_array(X, chunks=(3, 2))  # 2 rows of 20 blocks
    y = call(norm, lazy, da.from_array(WEIGHT, chunks=2), da.from_array(BIAS, chunks=2))
    # 20 blocks to 5, and 4 of those to 1; the fifth goes straight to the last task.
    merges = {f"{norm}-moments-partial": 2 * (5 + 1), f"{norm}-moments-aggregate": 2}
    assert tasks(y) == {norm: 40, f"{norm}-moments": 40, **merges}
    for key, needed in dependencies(y).items():
        if key[0].startswith(f"{norm}-moments"):
            assert len(needed) <= 4
        else:
            # A block, its moments, and what belongs to it of weight and bias.
            assert len([one for one in needed if one[0] == lazy.name]) == 1
            assert len(needed) <= 4


@pytest.mark.parametrize("dtype", ALL)
@pytest.mark.parametrize("norm", NORMS)
@given(data=st.data())
@examples(8)
def test_cut_rows_keep_the_precision(norm, dtype, data):
    case = data.draw(cases(dtype, features=(7, 33, 64)))
    cuts = sorted(data.draw(st.lists(st.integers(0, case.x.shape[1]), min_size=1, max_size=9)))
    lengths = tuple(int(n) for n in np.diff([0, *cuts, case.x.shape[1]]))
    lazy = da.from_array(case.x, chunks=((1,) * len(case.x), lengths))
    if norm == "scale_norm":
        exact = [reference.scale_norm(row, 1.0 if case.scale is None else case.scale, case.eps) for row in case.x]
        y = anynorm.scale_norm(lazy, case.scale, eps=case.eps)
    else:
        options = (case.weight, case.bias, case.eps, case.weight_offset)
        exact = [getattr(reference, norm)(row, *options) for row in case.x]
        y = getattr(anynorm, norm)(lazy, *options[:2], eps=case.eps, weight_offset=case.weight_offset)
    assert_exact(y.compute(), exact, backend="dask, cut", dtype=dtype, norm=norm)


def test_nothing_is_computed_or_called_before_its_turn(monkeypatch):
    touched = []
    on_block = blocks._on_block
    monkeypatch.setattr(
        blocks, "_on_block", lambda x, *rest, **more: touched.append(x.shape) or on_block(x, *rest, **more)
    )
    for chunks in ((2, 40), (2, 10)):
        x = da.from_array(X, chunks=chunks).map_blocks(lambda block: touched.append("x") or block, meta=X[:0, :0])
        parameters = (da.from_array(one, chunks=7) for one in (WEIGHT, BIAS))
        lazy = [anynorm.layer_norm(x, *parameters), anynorm.add_rms_norm(x, x)[0], anynorm.moments(x).mean]
        assert not touched
        for one in lazy:
            one.compute()
        assert (0, 0) not in touched  # which Dask would ask of to learn what comes out
        touched.clear()


@pytest.mark.parametrize("chunks", [(2, 40), (2, 13)])
def test_weights_of_numpy_and_of_dask_in_any_chunks(chunks):
    x = da.from_array(X, chunks=chunks)
    expected = anynorm.layer_norm(x, WEIGHT, BIAS, weight_offset=1.0).compute()
    for cut in (40, 7, 13):
        weight, bias = (da.from_array(one, chunks=cut) for one in (WEIGHT, BIAS))
        y = anynorm.layer_norm(x, weight, bias, weight_offset=1.0)
        assert y.chunks == x.chunks
        assert (y.compute() == expected).all()
    wide = anynorm.layer_norm(x, WEIGHT.astype(np.float64), BIAS, weight_offset=1.0)
    np.testing.assert_allclose(wide.compute(), expected, rtol=1e-6, atol=1e-6)
    scaled = anynorm.scale_norm(x, 2.5).compute()
    for scale in (np.asarray(2.5), np.float32(2.5), da.from_array(np.asarray(2.5, np.float32))):
        assert (anynorm.scale_norm(x, scale).compute() == scaled).all()
    with pytest.raises(TypeError, match="residual must be a Dask array like x"):
        anynorm.add_rms_norm(x, X)


@pytest.mark.parametrize("chunks", [(2, 40), (2, 13)])
def test_residuals(chunks):
    x, residual = da.from_array(X, chunks=chunks), da.from_array(X[::-1], chunks=(3, 20))
    y, total = anynorm.add_layer_norm(x, residual, WEIGHT, BIAS)
    assert y.chunks == total.chunks == x.chunks
    assert (total.compute() == X + X[::-1]).all()
    expected = [reference.layer_norm(row, WEIGHT, BIAS) for row in X + X[::-1]]
    assert_exact(y.compute(), expected, backend="dask, blocks", dtype="float32", norm="layer_norm")


def test_blocks_of_another_library():
    # Stands for CuPy, which needs a GPU: nothing is turned into NumPy's arrays.
    import sparse

    dense = np.where(np.arange(40) % 4 == 0, X, 0)
    for chunks in ((2, 40), (3, 8)):
        x = da.from_array(sparse.COO(dense), chunks=chunks)
        y = anynorm.rms_norm(x)
        assert isinstance(y._meta, sparse.COO)
        result = y.compute()
        assert isinstance(result, sparse.COO)
        expected = [reference.rms_norm(row) for row in dense]
        assert_exact(result.todense(), expected, backend="dask of sparse", dtype="float32", norm="rms_norm")
        with pytest.raises(TypeError, match="would make every zero of a sparse array nonzero"):
            anynorm.layer_norm(x)


@pytest.mark.parametrize(
    ("shape", "chunks"),
    [((0, 5), ((0, 0), (2, 3))), ((3, 0), ((1, 2), (0, 0))), ((0, 0), ((0, 0, 0), (0, 0))), ((0,), ((0, 0),))],
)
@pytest.mark.parametrize("kernel", [None, "definition"])
def test_empty_arrays_in_several_blocks(shape, chunks, kernel):
    for dtype in (np.float32, np.float64):
        x, ones = da.zeros(shape, chunks=chunks, dtype=dtype), np.ones(shape[-1:], dtype)
        with anynorm.use_kernel(kernel):
            for y in (call(norm, x, ones, ones) for norm in NORMS):
                assert (y.chunks, y.compute().shape, y.compute().dtype) == (x.chunks, shape, dtype)


def test_blocks_that_are_refused():
    masked = da.ma.masked_array(da.from_array(X, chunks=2), mask=False)
    with pytest.raises(TypeError, match=r"the blocks of x must be an array, .* pass x.filled"):
        anynorm.layer_norm(masked)


def test_names_are_readable_and_say_what_is_computed():
    x = da.from_array(X, chunks=(2, 10))
    names = [anynorm.layer_norm(x, WEIGHT, eps=eps).name for eps in (1e-5, 1e-5, 1e-6)]
    assert names[0].startswith("layer_norm-")
    assert names[0] == names[1] != names[2]
    assert names[0] != anynorm.layer_norm(x, BIAS).name


@needs_llvmlite
def test_kernels_explained_and_forced():
    whole, cut = da.from_array(X, chunks=(2, 40)), da.from_array(X, chunks=(2, 20))
    assert set(anynorm.explain(whole).refused) == {"cpu", "cuda", "xla"}
    explained = anynorm.explain(cut)
    assert explained.kernel == "pieces"
    assert explained.refused["blocks"] == "axis 1, which is normalized, is cut into 2 chunks"
    with anynorm.use_kernel("blocks"), pytest.raises(RuntimeError, match="is cut into 2 chunks"):
        anynorm.layer_norm(cut)
    for kernel in ("pieces", "definition"):
        with anynorm.use_kernel(kernel):
            y = anynorm.layer_norm(whole).compute()
        np.testing.assert_allclose(y, anynorm.layer_norm(X), rtol=1e-6, atol=1e-6)
    with anynorm.use_kernel("cpu"), pytest.raises(RuntimeError, match="x is an array of dask"):
        anynorm.layer_norm(whole)
    assert "x is an array of numpy" in anynorm.explain(X).refused["pieces"]


def test_a_task_uses_no_thread_but_its_own(monkeypatch):
    seen = []
    choose = blocks.check
    monkeypatch.setattr(
        blocks, "check", lambda *given, **more: seen.append(anynorm.get_threads()) or choose(*given, **more)
    )
    anynorm.set_threads(8)
    try:
        for chunks in ((3, 40), (3, 20)):
            anynorm.layer_norm(da.from_array(X, chunks=chunks)).compute(scheduler="threads", num_workers=3)
        assert seen == [1] * (2 + 2 * 4)
        assert anynorm.get_threads() == 8
    finally:
        anynorm.set_threads(None)
