"""anynorm's norms as parts of models of Flax NNX, Equinox and Flax Linen."""

import numpy as np
import pytest

import anynorm
from benchmarks.models import jax_modules
from tests.test_imports import fresh
from tests.test_nnx import ROUNDING

X = np.random.default_rng(0).standard_normal((3, 4)).astype(np.float32)


def test_a_norm_is_an_attribute_of_an_nnx_module_as_it_is():
    import jax
    import jax.numpy as jnp
    from flax import nnx

    class Model(nnx.Module):
        def __init__(self, norm, seen):
            self.norm, self.seen = norm, seen

        def __call__(self, x):
            return self.norm(anynorm.layer_norm(x, axis=0, moments=self.seen))

    x = jnp.asarray(X)
    seen = anynorm.moments(x, axis=0)
    for norm in (anynorm.LayerNorm(4, xp=jnp), anynorm.ScaleNorm(4, xp=jnp), anynorm.RMSNorm(4)):
        model = Model(norm, seen)
        paths = {path for path, _ in nnx.to_flat_state(nnx.state(model))}
        assert {path[1] for path in paths if path[0] == "norm"} == set(norm.state_dict())
        assert ("seen", "mean") in paths
    graph, state = nnx.split(model)
    assert nnx.merge(graph, state).norm == norm
    expected = norm(anynorm.layer_norm(x, axis=0, moments=seen))
    np.testing.assert_allclose(nnx.jit(Model.__call__)(model, x), expected, rtol=2.0**-20)
    gradient = jax.grad(lambda state: nnx.merge(graph, state)(x).sum())(state)
    np.testing.assert_allclose(gradient["norm"]["weight"], np.sum(expected, axis=0), rtol=2.0**-20)


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


@pytest.mark.parametrize("imported", ["before", "after"])
def test_flax_may_be_imported_before_a_norm_is_made_or_after_one(imported):
    code = f"""
import sys, anynorm, jax.numpy as jnp
if {imported == "after"}:
    anynorm.RMSNorm(3, xp=jnp)
    print("flax" in sys.modules)
from flax import nnx
module = nnx.Module()
module.norm = anynorm.RMSNorm(3, xp=jnp)
print(*nnx.state(module)["norm"])
"""
    assert fresh(code) == [*["False"] * (imported == "after"), "weight"]


def test_the_example_learns_the_same_in_each_framework():
    losses = jax_modules.train(10)
    assert list(losses) == ["in_nnx", "in_equinox", "in_linen"]
    for values in losses.values():
        assert values[-1] < values[0] / 2
        np.testing.assert_allclose(values, losses["in_nnx"], rtol=ROUNDING)
