"""Moments elsewhere: other libraries, devices and widths, Dask's own calls, pytrees of torch and JAX."""

import pickle
from types import SimpleNamespace

import array_api_strict
import dask
import dask.array as da
import jax
import jax.numpy as jnp
import ndonnx
import numpy as np
import pytest
import torch

import anynorm
from anynorm import Moments
from anynorm._moments import LEAVES
from anynorm._torch import pytrees
from tests import reference
from tests.backends import DASK, JAX, JAX_X64, NUMPY, STRICT, TORCH, as_dtype
from tests.test_moments_value import standardized
from tests.tolerances import assert_exact

LIBRARIES = {"numpy": (np, NUMPY), "torch": (torch, TORCH), "jax": (jnp, JAX), "dask": (da, DASK)}
TABLE = np.random.default_rng(0).standard_normal((9, 4)) * [1.0, 3.0, 1e-3, 1e4] + [0.0, 5.0, 1e3, -7.0]


def exactly(x):
    """Mean and variance of each column."""
    return zip(*(reference.mean_and_variance(column) for column in x.T), strict=True)


@pytest.fixture(autouse=True)
def in_this_thread():
    with dask.config.set(scheduler="synchronous"):
        yield


@pytest.mark.parametrize("there", LIBRARIES)
@pytest.mark.parametrize("here", LIBRARIES)
def test_trained_in_one_library_and_applied_in_another(here, there):
    x = as_dtype(TABLE, "float32")
    (_, trained_in), (xp, applied_in) = LIBRARIES[here], LIBRARIES[there]
    trained = anynorm.moments(trained_in.make(x), axis=0)
    moved = trained.to(xp)
    assert type(moved.mean) is type(applied_in.make(x))
    assert (moved.count, moved.shape) == (9, (1, 4))
    expected = list(standardized(x, *exactly(x), 1e-5))
    y = applied_in.read(anynorm.layer_norm(applied_in.make(x), axis=0, moments=moved))
    assert_exact(y.T, expected, backend="jax, sent", dtype="float32", norm="layer_norm")  # as wide as the narrowest
    twice = moved + anynorm.moments(applied_in.make(x), axis=0)
    assert twice.count == 18
    np.testing.assert_allclose(applied_in.read(twice.mean)[0], x.mean(0, dtype=np.float64), rtol=2.0**-22, atol=1e-9)
    if "jax" not in (here, there):
        assert trained.to(xp).to(trained.namespace).compute() == trained.compute()
        assert trained.to(xp).to(np) == trained.to(np)


@pytest.mark.parametrize("backend", [TORCH, JAX, JAX_X64, DASK, STRICT], ids=str)
@pytest.mark.parametrize("trained_on", ["float32", "float64"])
def test_those_of_numpy_go_with_any_library(backend, trained_on):
    x = as_dtype(TABLE, "float32")
    trained = anynorm.moments(x.astype(trained_on), axis=0)
    wide, expected = x.astype(np.float64), list(standardized(x, *exactly(x), 1e-5))
    with backend.context():
        there = backend.make(x)
        y = backend.read(anynorm.layer_norm(there, axis=0, moments=trained))
        assert_exact(y.T, expected, backend=f"{backend.name}, sent", dtype="float32", norm="layer_norm")
        own = anynorm.moments(there, axis=0)
        for both in (own.merge(trained.astype("float32")), trained.astype("float32").merge(own)):
            assert (type(both.mean), both.count) == (type(own.mean), 18)
        if "float64" in backend.dtypes and trained_on == "float64":
            y = backend.read(anynorm.layer_norm(backend.make(wide), axis=0, moments=trained))
            assert_exact(y.T, expected, backend=f"{backend.name}, sent", dtype="float64", norm="layer_norm")


def test_those_of_numpy_go_with_blocks_of_other_libraries_and_with_graphs():
    x = as_dtype(TABLE, "float32")
    trained = anynorm.moments(x, axis=0)
    tensors = da.from_array(x, chunks=(4, 2)).map_blocks(torch.from_numpy, meta=torch.empty(0, 0))
    y = anynorm.layer_norm(tensors, axis=0, moments=trained)
    whole = anynorm.layer_norm(x, axis=0, moments=trained)
    block = y.blocks[0, 1].compute()
    assert isinstance(block, torch.Tensor)
    np.testing.assert_array_equal(block.numpy(), whole[:4, 2:])
    unknown = da.from_array(x, chunks=(4, 4))
    unknown = unknown[unknown[:, 0] < 9]  # all rows, which Dask cannot know
    np.testing.assert_array_equal(anynorm.layer_norm(unknown, axis=0, moments=trained).compute(), whole)
    graph = anynorm.layer_norm(ndonnx.asarray(x), axis=0, moments=trained)
    np.testing.assert_allclose(graph.unwrap_numpy(), whole, rtol=2.0**-22)


def test_memory_that_cannot_be_written_to():
    with jax.enable_x64(True):
        trained = anynorm.moments(jnp.asarray(TABLE), axis=0)
        moved = trained.to(torch)  # which warns of such
    assert (moved.mean.numpy() == np.asarray(trained.mean)).all()


def test_dask_of_jax():
    x = as_dtype(TABLE, "float32")
    lazy = da.from_array(x, chunks=(3, 4)).map_blocks(jnp.asarray, meta=jnp.empty((0, 0), jnp.float32))
    for trained in (anynorm.moments(lazy, axis=0), anynorm.moments(x, axis=0)):
        block = anynorm.layer_norm(lazy, axis=0, moments=trained).blocks[0, 0].compute()
        assert isinstance(block, jax.Array)
        np.testing.assert_allclose(block, anynorm.layer_norm(x, axis=0)[:3], rtol=2.0**-21)


def test_an_x_that_is_wider_needs_a_word():
    x, trained = TABLE, anynorm.moments(TABLE.astype(np.float32), axis=0)
    for there in (x, torch.from_numpy(x)):
        with pytest.raises(
            ValueError, match=r"x, of .*float64, .* narrower floats; .*call moments.to\(dtype=x.dtype\)"
        ):
            anynorm.layer_norm(there, axis=0, moments=trained)
        y = anynorm.layer_norm(there, axis=0, moments=trained.to(dtype=there.dtype))
        wide = x.astype(np.float32).astype(np.float64)
        # Of a mean of a million deviations some digits are missing, which is why it is to be said.
        np.testing.assert_allclose(y, (x - wide.mean(0)) / np.sqrt(wide.var(0) + 1e-5), rtol=1e-12, atol=1e-9)
    with pytest.raises(
        ValueError, match=r"wide as these, from narrower floats, .* from float64; call .to\(dtype=...\)"
    ):
        trained.merge(anynorm.moments(x, axis=0))


def test_others_are_to_be_moved_by_the_call_that_is_named():
    x = as_dtype(TABLE, "float32")
    tensor, lazy = torch.from_numpy(x), da.from_array(x, chunks=3)
    for there, name, others in (
        (x, "numpy", (tensor, lazy)),
        (tensor, "torch", (lazy,)),
        (lazy, "dask.array", (tensor,)),
    ):
        for other in others:
            trained = anynorm.moments(other, axis=0)
            with pytest.raises(TypeError, match=rf"moments must come from .*; call moments.to\({name}\) first"):
                anynorm.layer_norm(there, axis=0, moments=trained)
    with pytest.raises(
        TypeError, match=r"other must be of one library .*, torch, .* dask.array; call other.to\(torch\)"
    ):
        anynorm.moments(tensor, axis=0) + anynorm.moments(lazy, axis=0)


def test_devices():
    first, second = (array_api_strict.Device(name) for name in ("CPU_DEVICE", "device2"))
    here = array_api_strict.asarray(as_dtype(TABLE, "float32"), device=first)
    there = array_api_strict.asarray(as_dtype(TABLE, "float32"), device=second)
    trained = anynorm.moments(here, axis=0)
    with pytest.raises(ValueError, match=r"x's device, .*; call moments.to\(device=x.device\) first"):
        anynorm.layer_norm(there, axis=0, moments=trained)
    with pytest.raises(ValueError, match=r"other must be on the device of these.*; call .to\(device=...\)"):
        trained + anynorm.moments(there, axis=0)
    moved = trained.to(device=second)
    assert anynorm.layer_norm(there, axis=0, moments=moved).device == second
    assert moved.to(device=first) == trained
    assert trained.to(dtype="float64").mean.device == first
    no_float64 = trained.to(device=array_api_strict.Device("no_float64"))
    assert no_float64.mean.dtype == array_api_strict.float32
    assert no_float64.to(np).mean == pytest.approx(trained.to(np).mean, rel=1e-14)


@pytest.mark.parametrize("backend", [NUMPY, TORCH, JAX_X64, DASK], ids=str)
def test_widths(backend):
    with backend.context():
        wide = anynorm.moments(backend.make(TABLE), axis=0)
        narrow = wide.astype(backend.make(TABLE.astype(np.float32)).dtype)
        assert narrow.compute() == wide.to(dtype="float16").compute() == wide.to(dtype=np.float32).compute()
        assert wide.to().compute() == wide.to(dtype="float64").compute() == wide.compute()
        again = narrow.to(dtype="float64")
        for one in (narrow, again):
            np.testing.assert_allclose(backend.read(one.mean), backend.read(wide.mean), rtol=2.0**-22)
            np.testing.assert_allclose(backend.read(one.variance), backend.read(wide.variance), rtol=2.0**-22)
        # What is carried on in pairs of float32 has lost next to nothing.
        np.testing.assert_allclose(backend.read(again.mean), backend.read(wide.mean), rtol=2.0**-52)
        np.testing.assert_allclose(backend.read(again.variance), backend.read(wide.variance), rtol=2.0**-46)
        assert anynorm.moments(backend.make(TABLE.astype(np.float32)), axis=0).merge(narrow).count == 18


@pytest.mark.parametrize("size", [1e-44, 1e-30, 1.0, 1e37])
def test_a_row_of_any_size_that_float32_has_is_carried_to_jax_and_back(size):
    x = (np.random.default_rng(1).standard_normal((2, 9)) * size).astype(np.float32)
    trained = anynorm.moments(x)
    back = trained.to(jnp).to(np)
    assert back.mean == pytest.approx(trained.mean, rel=1e-14, abs=0.0)
    assert back.variance == pytest.approx(trained.variance, rel=2.0**-46, abs=0.0)


def test_where_moments_do_not_go():
    found = anynorm.moments(TABLE, axis=0)
    for error, message, given, options in (
        (TypeError, "xp must be an array namespace, got the str 'torch'", ("torch",), {}),
        (TypeError, "dtype must be one of float16, .* got the str 'int32'", (), {"dtype": "int32"}),
        (TypeError, "dtype must be one of float16", (), {"dtype": torch.int64}),
        (TypeError, "dtype must be one of float16", (), {"dtype": complex}),
        (ValueError, "device must be one that torch has, got the str 'nowhere'", (torch,), {"device": "nowhere"}),
        (ValueError, r"dtype must be one that arrays of jax.numpy .*enable_x64", (jnp,), {"dtype": "float64"}),
    ):  # fmt: skip
        with pytest.raises(error, match=message):
            found.to(*given, **options)
    with pytest.raises(TypeError, match="moments must have values that the host can read"):
        jax.jit(lambda x: anynorm.moments(x).to(np).mean)(jnp.ones((2, 3)))


def test_dask_computes_them_all_at_once():
    reads = []
    lazy = da.from_array(TABLE, chunks=(3, 4)).map_blocks(lambda block: reads.append(1) or block, meta=TABLE[:0])
    found, counted = anynorm.moments(lazy, axis=0), anynorm.moments(lazy, axis=0, skip_nan=True)
    assert dask.is_dask_collection(found)
    expected = anynorm.moments(TABLE, axis=0)
    for compute in (lambda: found.compute(), lambda: dask.compute(found)[0], lambda: dask.compute([found])[0][0]):
        computed = compute()
        assert isinstance(computed.mean, np.ndarray)
        np.testing.assert_allclose(computed.variance, expected.variance, rtol=1e-14)
        assert len(reads) == 3
        reads.clear()
    kept, also = dask.persist(found, counted)
    assert len(reads) == 3
    assert isinstance(kept.mean, da.Array)
    assert kept.compute() == computed
    assert (also.compute().count == 9).all()
    assert found.persist().compute() == computed
    assert len(reads) == 6
    (simpler,) = dask.optimize(found)
    assert simpler.compute() == computed
    assert dask.base.tokenize(found) == dask.base.tokenize(anynorm.moments(lazy, axis=0))
    assert dask.base.tokenize(found) != dask.base.tokenize(counted)
    sent = pickle.loads(pickle.dumps(anynorm.moments(da.from_array(TABLE, chunks=(3, 4)), axis=0)))
    assert sent.compute() == computed


def test_what_is_not_lazy_is_computed_already():
    for found in (anynorm.moments(TABLE), anynorm.moments(torch.from_numpy(TABLE))):
        assert found.compute() is found.persist() is found
        assert not dask.is_dask_collection(found)
        assert dask.compute(found)[0] is found
    twin = Moments.from_dict(anynorm.moments(TABLE).to_dict())
    assert dask.base.tokenize(twin) == dask.base.tokenize(anynorm.moments(TABLE))


class Standardize(torch.nn.Module):
    def forward(self, x, moments):
        return anynorm.layer_norm(x, axis=0, moments=moments), moments + moments


@pytest.mark.parametrize("skip_nan", [False, True])
def test_torch_takes_them_apart(skip_nan):
    x = torch.from_numpy(as_dtype(TABLE, "float32"))
    found = anynorm.moments(x, axis=0, skip_nan=skip_nan)
    expected = anynorm.layer_norm(x, axis=0, moments=found)
    exported = torch.export.export(Standardize(), (x, found)).module()
    y, twice = exported(x, found)
    torch.testing.assert_close(y, expected)
    assert twice == found + found
    batch = torch.stack([x, x + 1])
    several = torch.func.vmap(lambda x: anynorm.moments(x, axis=0, skip_nan=skip_nan))(batch)
    assert several.shape == (2, 1, 4)
    y = torch.func.vmap(lambda x, moments: anynorm.layer_norm(x, axis=0, moments=moments))(batch, several)
    torch.testing.assert_close(y[0], expected)
    torch.testing.assert_close(y[1], expected, rtol=1e-4, atol=1e-4)
    if not skip_nan:  # torch takes no derivative by the ints that counts are
        slope = torch.func.grad(lambda moments: anynorm.layer_norm(x, axis=0, moments=moments)[0].sum())(found)
        assert isinstance(slope, Moments)


def test_jax_takes_them_apart():
    found = anynorm.moments(jnp.asarray(TABLE, jnp.float32), axis=0)
    assert jax.tree.map(lambda one: one, found) == found
    counted = anynorm.moments(jnp.asarray(TABLE, jnp.float32), axis=0, skip_nan=True)
    assert (len(jax.tree.leaves(found)), len(jax.tree.leaves(counted))) == (4, len(LEAVES))  # which merging adds to
    assert jax.tree.map(lambda one: one, counted) == counted
    batch = jnp.asarray([TABLE, TABLE + 1], jnp.float32)
    several = jax.vmap(lambda x: anynorm.moments(x, axis=0, skip_nan=True))(batch)
    assert several.count.tolist() == [[[9] * 4]] * 2


def test_torch_without_what_classes_are_registered_by(monkeypatch):
    """The function has no public module, and may go."""
    monkeypatch.setattr(pytrees, "_waiting", [(Moments, (), Moments.flatten, Moments.unflatten)])
    pytrees.register_with_torch(SimpleNamespace(utils=SimpleNamespace(_pytree=SimpleNamespace())))
    assert pytrees._waiting == []
