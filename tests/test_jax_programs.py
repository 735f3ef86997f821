"""The programs that XLA makes of calls on JAX arrays: how many, and under which settings of JAX."""

import numpy as np
import pytest

import anynorm
from tests import reference
from tests.tolerances import assert_exact

X = np.random.default_rng(0).standard_normal((6, 40)).astype(np.float32)
WEIGHT, BIAS = np.random.default_rng(1).standard_normal((2, 40)).astype(np.float32)


def compiled_by(calls):
    """How many programs calls have compiled, each of which JAX keeps."""
    from jax._src import monitoring

    events = []

    def listen(name, *_, **__):
        events.append(name)

    monitoring.register_event_duration_secs_listener(listen)
    try:
        calls()
    finally:
        stop = getattr(monitoring, "unregister_event_duration_listener", None)  # of JAX 0.9; before, by another name
        (stop or monitoring._unregister_event_duration_listener_by_callback)(listen)
    return sum(name.endswith("backend_compile_duration") for name in events)


def test_one_program_for_every_scale():
    """A scale that is learned is another number at each step."""
    import jax.numpy as jnp

    x, eps = jnp.asarray(X), 1.5e-12  # for which no other test has had a program compiled

    def calls(*scales):
        for scale in scales:
            y, pullback = anynorm.scale_norm_vjp(x, scale, eps=eps)
            expected = [reference.scale_norm(row, scale) for row in X]
            assert_exact(y, expected, backend="jax", dtype="float32", norm="scale_norm")
            y = anynorm.scale_norm(x, scale, eps=eps)
            assert_exact(y, expected, backend="jax", dtype="float32", norm="scale_norm")
            pullback(x)

    assert compiled_by(lambda: calls(1.5)) > 0
    assert compiled_by(lambda: calls(2.5, 0.1, -3.0)) == 0


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_the_gradient_of_a_number_has_the_dtype_of_x(dtype):
    import jax.numpy as jnp

    x = jnp.asarray(X, dtype)
    assert anynorm.scale_norm_vjp(x, 1.5)[1](x)[1].dtype == x.dtype


def test_rank_promotion_may_be_forbidden():
    import jax
    import jax.numpy as jnp

    x, weight, bias = map(jnp.asarray, (X, WEIGHT, BIAS))
    with jax.numpy_rank_promotion("raise"):
        y, pullback = anynorm.layer_norm_vjp(x, weight, bias)
        dx, dweight, _ = pullback(x)
        total = jax.grad(lambda x: anynorm.rms_norm(x, weight, bias, weight_offset=1.0).sum())(x)
    expected = [reference.layer_norm(row, WEIGHT, BIAS) for row in X]
    assert_exact(y, expected, backend="jax", dtype="float32", norm="layer_norm")
    assert (dx.shape, dweight.shape, total.shape) == (x.shape, weight.shape, x.shape)


@pytest.mark.parametrize("shape", [(6, 40), (150, 40)])
def test_exported_with_a_batch_of_any_length(shape):
    """Of 4096 elements and more, and of fewer, XLA adds in another order."""
    import jax
    from jax import export

    x = np.resize(X, shape)
    (rows,) = export.symbolic_shape("rows")
    of_any = export.export(jax.jit(lambda x: anynorm.layer_norm(x, WEIGHT, BIAS)))(
        jax.ShapeDtypeStruct((rows, 40), np.float32)
    )
    expected = [reference.layer_norm(row, WEIGHT, BIAS) for row in x]
    assert_exact(of_any.call(x), expected, backend="jax", dtype="float32", norm="layer_norm")


def operations(jaxpr):
    """Each operation of a traced function, those of functions within it too."""
    for equation in jaxpr.eqns:
        yield equation
        for parameter in equation.params.values():
            inner = getattr(parameter, "jaxpr", parameter)
            if hasattr(inner, "eqns"):
                yield from operations(inner)


@pytest.mark.parametrize("norm", ["layer_norm", "rms_norm", "scale_norm"])
def test_statistics_of_many_rows_are_finished_side_by_side(norm):
    """Along axes of length 1 XLA takes one row at a time: twenty times the plain expression for short ones."""
    import jax

    x = jax.ShapeDtypeStruct((5000, 8), np.float32)
    found = list(operations(jax.make_jaxpr(getattr(anynorm, norm))(x).jaxpr))
    arithmetic = {"add", "div", "max", "min", "mul", "sqrt", "sub"}
    shapes = [one.outvars[0].aval.shape for one in found if one.primitive.name in arithmetic]
    assert shapes.count((5000,)) > 5
    assert shapes.count((5000, 1)) <= 4  # of the sums themselves


@pytest.mark.parametrize("norm", ["rms_norm", "scale_norm"])
def test_rows_of_every_magnitude_without_eps(norm):
    """XLA takes constant factors out of products, of which the rest must not leave the range."""
    import jax.numpy as jnp

    for magnitude in (1e-30, 1e30, 1e38):
        x = np.asarray([[1.0, -2.0, 3.0, -1.5]], "float32") * np.float32(magnitude)
        expected = [getattr(reference, norm)(x[0], eps=0.0)]
        y = getattr(anynorm, norm)(jnp.asarray(x), eps=0.0)
        assert_exact(y, expected, backend="jax", dtype="float32", norm=norm)
