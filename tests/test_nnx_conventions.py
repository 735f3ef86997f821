"""anynorm.nnx by conventions: the eps, the offset and the results of the functions by the same."""

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import anynorm.nnx
from tests.test_nnx import NORMS, X


@pytest.mark.parametrize("convention", ["llama", "gemma", "keras", "torch", "rmsnorm_paper", "x_transformers"])
@pytest.mark.parametrize("name", [*NORMS, "ScaleNorm"])
def test_conventions(name, convention):
    norm = getattr(anynorm.nnx, name)(5, convention=convention, param_dtype=jnp.bfloat16, rngs=nnx.Rngs(0))
    assert norm.convention == anynorm.CONVENTIONS[convention]
    given, function = anynorm.CONVENTIONS[convention], getattr(anynorm, NORMS.get(name, "scale_norm"))
    plain = getattr(anynorm.nnx, name)(5, rngs=nnx.Rngs(0))
    by_name = dict(zip(("eps", "offset"), (given.eps, given.weight_offset), strict=True))
    if name == "RMSNorm" and given.rms_eps is not None:
        by_name["eps"] = given.rms_eps
    if name == "ScaleNorm":
        assert norm.epsilon == (given.eps if given.eps_place == "floor" else plain.epsilon)
    elif not (name == "LayerNorm" and given.eps_place == "floor"):
        assert norm.epsilon == (plain.epsilon if by_name["eps"] is None else by_name["eps"])
        assert norm.weight_offset == by_name["offset"]
        assert (norm.scale[...] == 1.0 - by_name["offset"]).all()
    x = jnp.asarray(X, jnp.bfloat16)
    scale = np.float32(norm.scale[...]) if name == "ScaleNorm" else norm.scale[...]
    expected = function(x, scale, eps=norm.epsilon, convention=convention)
    np.testing.assert_array_equal(norm(x), expected)
    assert type(norm)(5, epsilon=0.5, convention=convention, rngs=nnx.Rngs(0)).epsilon == 0.5
    graph, state = nnx.split(norm)
    np.testing.assert_array_equal(nnx.jit(lambda state, x: nnx.merge(graph, state)(x))(state, x), expected)
