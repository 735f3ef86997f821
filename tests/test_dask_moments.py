"""Moments of Dask arrays: lazy, all read once, no key for two tasks; and nothing said of NaN, Inf and overflow."""

import itertools
import json

import dask
import dask.array as da
import numpy as np
import pytest

import anynorm
from tests import reference
from tests.backends import thorough_but
from tests.dask_graphs import graph_of
from tests.tolerances import assert_exact

NORMS = ("layer_norm", "rms_norm", "scale_norm")
X = np.random.default_rng(0).standard_normal((6, 40)).astype(np.float32)


@pytest.fixture(autouse=True)
def in_this_thread():
    with dask.config.set(scheduler="synchronous"):
        yield


@pytest.mark.parametrize("chunks", [(2, 40), (2, 13), ((0, 6), (40, 0))])
@pytest.mark.parametrize("dtype", thorough_but("float32", of=["float16", "float32", "float64"]))
def test_moments(chunks, dtype):
    x = X.astype(dtype)
    lazy = da.from_array(x, chunks=chunks)
    found = anynorm.moments(lazy)
    assert (found.count, found.shape) == (40, (6, 1))
    assert isinstance(found.mean, da.Array)
    assert found.mean.dtype == np.float64
    halves = anynorm.moments(lazy[:, :20]).merge(anynorm.moments(lazy[:, 20:]))
    for statistics in (found, halves, anynorm.Moments.from_dict(found.to_dict(), xp=da)):
        for norm in NORMS:
            expected = [getattr(reference, norm)(row) for row in x]
            y = getattr(anynorm, norm)(lazy, moments=statistics)
            assert_exact(y.compute(), expected, backend="dask, given moments", dtype=dtype, norm=norm)
    assert anynorm.explain(lazy, moments=found).kernel == "blocks"


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_one_computation_writes_all_parts(dtype):
    reads = []
    x = X.astype(dtype)
    lazy = da.from_array(x, chunks=(3, 10)).map_blocks(lambda block: reads.append(1) or block, meta=x[:0, :0])
    found = anynorm.moments(lazy)
    halves = anynorm.moments(lazy[:, :20]).merge(anynorm.moments(lazy[:, 20:]))
    assert "dask.array" in repr(found)
    assert not reads
    for statistics in (found, halves):
        written = json.loads(json.dumps(statistics.to_dict()))
        assert len(reads) == 8  # once for each block
        reads.clear()
        mean = anynorm.Moments.from_dict(written).mean
        np.testing.assert_allclose(mean, x.mean(1, keepdims=True, dtype=np.float64), rtol=0, atol=1e-7)


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_key_means_the_same_task_in_any_graph(axis, dtype):
    """Dask makes one task of several, and calls it by the last, where nothing else in a graph needs the others."""
    x = da.from_array(X.astype(dtype), chunks=(2, 10))
    found = anynorm.moments(x, axis=axis)
    merged = found.merge(found)
    several = [
        (found.mean,),
        (found.variance, merged.variance),
        (anynorm.layer_norm(x, axis=axis),),
        (anynorm.rms_norm(x, axis=axis, moments=merged),),
        (found.mean_square, anynorm.layer_norm(x, axis=axis, moments=found), anynorm.layer_norm(x, axis=axis)),
        anynorm.layer_norm_vjp(x, axis=axis)[1](x)[:1],
        tuple(part for part in found.flatten()[0] if part is not None),
    ]
    graphs = [graph_of(*arrays) for arrays in several]
    assert graphs[0].keys() & graphs[-2].keys()
    for a, b in itertools.combinations(graphs, 2):
        assert [key for key in a.keys() & b.keys() if a[key].dependencies != b[key].dependencies] == []


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("chunks", [(2, 40), (2, 13)])
@pytest.mark.parametrize("kernel", [None, "definition"])
def test_nothing_is_said_of_nan_inf_and_overflow(chunks, dtype, kernel):
    x, largest = X.astype(dtype), np.finfo(dtype).max
    x[0, 1], x[1, 1], x[2, :2], x[3], x[4] = np.inf, np.nan, [np.inf, -np.inf], largest, 0
    x[5, ::2] = -largest
    lazy, weight = da.from_array(x, chunks=chunks), np.full(40, largest / 4)
    statistics = anynorm.moments(lazy)
    lazily = [statistics.mean, statistics.variance, statistics.mean_square]
    with anynorm.use_kernel(kernel):
        for norm in NORMS:
            parameters = (2.0,) if norm == "scale_norm" else (weight, weight)
            y, pullback = getattr(anynorm, f"{norm}_vjp")(lazy, *parameters)
            of_merged = getattr(anynorm, norm)(lazy, *parameters, moments=statistics.merge(statistics))
            lazily += [y, of_merged, *pullback(lazy)]
        (y, total), pullback = anynorm.add_rms_norm_vjp(lazy, lazy, weight)
        lazily += [y, total, *pullback(lazy, lazy)[:3]]
    for one in lazily:
        if one is not None:
            one.compute()  # where warnings are errors, as in all tests
