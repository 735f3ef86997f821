"""What the program holds that XLA makes of a norm, beside what it holds of the plain expression."""

import numpy as np
import pytest

import anynorm
from tests.backends import thorough_but

SHAPE = (4096, 256)  # of fewer rows XLA keeps what is known of each apart, in the plain expression too


def plain(norm, x, weight, bias):
    import jax.numpy as jnp

    if norm == "scale_norm":
        return 1.5 * x / jnp.maximum(jnp.sqrt((x * x).sum(-1, keepdims=True)), 1e-12)
    x = x - x.mean(-1, keepdims=True) if norm == "layer_norm" else x
    return x / jnp.sqrt((x * x).mean(-1, keepdims=True) + 1e-5) * weight + bias


def ours(norm, x, weight, bias):
    return anynorm.scale_norm(x, 1.5) if norm == "scale_norm" else getattr(anynorm, norm)(x, weight, bias, eps=1e-5)


def temporaries(function, *given):
    import jax

    return jax.jit(function).lower(*given).compile().memory_analysis().temp_size_in_bytes


@pytest.mark.parametrize("dtype", thorough_but("float32", of=["float32", "bfloat16"]))
@pytest.mark.parametrize("norm", ["layer_norm", "rms_norm", "scale_norm"])
def test_no_copy_of_x_is_held(norm, dtype):
    import jax
    import jax.numpy as jnp

    if jax.default_backend() != "cpu":
        pytest.skip("what is fused is another matter on other devices")
    x, dy = (jnp.asarray(np.random.default_rng(i).standard_normal(SHAPE), dtype) for i in range(2))
    weight = jnp.ones(SHAPE[1], dtype)
    forward = temporaries(lambda *given: ours(norm, *given), x, weight, weight)
    assert forward <= x.nbytes // 10

    def gradient(function):
        return jax.grad(lambda x, weight, bias, dy: (function(norm, x, weight, bias) * dy).sum(), (0, 1, 2))

    held, of_plain = (temporaries(gradient(one), x, weight, weight, dy) for one in (ours, plain))
    assert held <= 3 * max(of_plain, x.nbytes // 10)
