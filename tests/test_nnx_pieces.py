"""anynorm.nnx where rows are cut over a mapped axis: moments of pieces are merged, within the promised precision."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

import anynorm.nnx
from tests import reference
from tests.backends import thorough_but
from tests.tolerances import assert_exact, gradient_bounds_of, gradient_of_rows

FUNCTIONS = {"LayerNorm": "layer_norm", "RMSNorm": "rms_norm"}
EPS = 1e-6


def cut(norm, features, rngs=0):
    """A norm of pieces of that many features, along the axis i."""
    return getattr(anynorm.nnx, norm)(features, axis_name="i", rngs=nnx.Rngs(rngs))


def of_pieces(norm, x, pieces):
    """A norm over rows that are cut in pieces."""
    split = x.reshape(x.shape[0], pieces, -1)
    return jax.vmap(norm, in_axes=1, out_axes=1, axis_name="i")(split).reshape(x.shape)


@pytest.mark.parametrize(
    ("name", "pieces"),
    [
        ("LayerNorm", 1),
        ("LayerNorm", 6),  # halves, of which one is odd
        pytest.param("RMSNorm", 1, marks=pytest.mark.thorough),
        pytest.param("RMSNorm", 6, marks=pytest.mark.thorough),
    ],
)
def test_pieces_by_vmap(name, pieces):
    rows = np.random.default_rng(0).standard_normal((4, 24)).astype(np.float32)
    rows[1] += 10_000
    rows[2] *= np.repeat(np.asarray([1e-20, 1, 1e15, 1, 1, 1e-3], np.float32), 4)
    norm = FUNCTIONS[name]
    expected = [getattr(reference, norm)(row, eps=EPS) for row in rows]
    got = jax.jit(lambda x: of_pieces(cut(name, 24 // pieces), x, pieces))(rows)
    assert_exact(got, expected, backend="jax", dtype="float32", norm=norm)


@pytest.mark.parametrize("name", thorough_but("LayerNorm", of=FUNCTIONS))
def test_gradients_of_pieces(name):
    x, dy = np.random.default_rng(1).standard_normal((2, 4, 24)).astype(np.float32)
    x[1] += 100
    got = jax.jit(jax.grad(lambda x: (of_pieces(cut(name, 12), x, 2) * dy).sum()))(jnp.asarray(x))
    norm = FUNCTIONS[name]
    expected, _ = gradient_of_rows(norm, x, dy, "float32", narrow=True, eps=EPS, weight=np.ones(24))
    assert_exact(got, expected, backend="jax", dtype="float32", norm=f"{norm} dx", bounds=gradient_bounds_of("jax"))


def test_pieces_on_several_devices_in_groups():
    x = jax.random.normal(jax.random.key(0), (5, 24))
    mesh = Mesh(np.array(jax.devices("cpu")[:4]), ("i",))
    norm = anynorm.nnx.LayerNorm(6, axis_name="i", axis_index_groups=[[0, 1], [2, 3]], rngs=nnx.Rngs(0))
    y = jax.jit(jax.shard_map(norm, mesh=mesh, in_specs=P(None, "i"), out_specs=P(None, "i")))(x)
    assert len(y.sharding.device_set) == 4
    expected = [reference.layer_norm(row, eps=EPS) for row in np.asarray(x).reshape(10, 12)]
    assert_exact(np.asarray(y).reshape(10, 12), expected, backend="jax", dtype="float32", norm="layer_norm")
