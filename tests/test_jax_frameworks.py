"""anynorm's norms as parts of models of Flax NNX, Equinox and Flax Linen."""

import numpy as np
import pytest

import anynorm
from benchmarks.models import jax_modules
from tests.processes import fresh
from tests.test_nnx import ROUNDING

X = np.random.default_rng(0).standard_normal((3, 4)).astype(np.float32)


def test_a_norm_is_an_attribute_of_an_nnx_module_as_it_is():
    import jax
    import jax.numpy as jnp
    from flax import nnx

    class Model(nnx.Module):
        def __init__(self, norm):
            self.norm, self.seen = norm, anynorm.moments(jnp.ones((2, 4)), axis=0)

        def __call__(self, x):
            return self.norm(x)

    x = jnp.asarray(X)
    for norm in (anynorm.LayerNorm(4, xp=jnp), anynorm.ScaleNorm(4, xp=jnp), anynorm.RMSNorm(4)):
        model = Model(norm)
        paths = {path for path, _ in nnx.to_flat_state(nnx.state(model))}
        assert {path[1] for path in paths if path[0] == "norm"} == set(norm.state_dict())
        assert ("seen", "mean") in paths
    graph, state = nnx.split(model)
    assert nnx.merge(graph, state).norm == norm
    np.testing.assert_allclose(nnx.jit(Model.__call__)(model, x), norm(x), rtol=2.0**-20)
    gradient = jax.jit(jax.grad(lambda state: nnx.merge(graph, state)(x).sum()))(state)
    np.testing.assert_allclose(gradient["norm"]["weight"], np.sum(norm(x), axis=0), rtol=2.0**-20)


def test_a_variable_of_flax_is_no_array():
    import jax.numpy as jnp
    from flax import nnx

    x, weight = jnp.asarray(X), nnx.Param(jnp.arange(4.0))
    norm = anynorm.RMSNorm(4)
    norm.weight = weight
    for call, do in (
        (
            lambda: anynorm.rms_norm(x, weight),
            r"weight must be a JAX array like x, got a flax Param; pass .*weight\[...\]",
        ),
        (lambda: norm(x), r"weight must be a JAX array like x, got a flax Param; pass .*weight\[...\]"),
        (lambda: anynorm.rms_norm(weight), r"x must be an array, got a flax Param; pass x\[...\]"),
    ):
        with pytest.raises(TypeError, match=do):
            call()
    assert anynorm.rms_norm(x, weight[...]).shape == x.shape


IMPORTED_LATER = """
import sys, anynorm, jax.numpy as jnp
anynorm.RMSNorm(3, xp=jnp), anynorm.moments(jnp.ones(3))
print("flax" in sys.modules)
from flax import nnx
class Model(nnx.Module):
    pass
for made in (anynorm.moments(jnp.ones(3)), anynorm.RMSNorm(3)):
    model = Model()
    model.held = made
    print(*nnx.state(model)["held"])
"""


def test_flax_may_be_imported_after_the_first_ones_are_made():
    assert fresh(IMPORTED_LATER) == ["False", "mean", "mean_low", "squares", "unit", "weight"]


def test_the_example_learns_the_same_in_each_framework():
    losses = jax_modules.train(10)
    assert list(losses) == ["in_nnx", "in_equinox", "in_linen"]
    for values in losses.values():
        assert values[-1] < values[0] / 2
        np.testing.assert_allclose(values, losses["in_nnx"], rtol=ROUNDING)
