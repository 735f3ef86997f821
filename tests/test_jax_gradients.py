"""Derivatives of the definition in JAX: of first and second order, however they are asked for, against exact ones.

All derivatives of a batch come from one function, which is compiled once.
"""

import functools

import numpy as np
import pytest

import anynorm
from tests.backends import JAX, JAX_X64, thorough_but
from tests.derivatives import EPS, FEATURES, NORMS, check, exact_matrices, exactly, given, matrices

every_norm = pytest.mark.parametrize("norm", NORMS)
# With float64, all but float64 itself is computed as without.
every_dtype = pytest.mark.parametrize(
    ("library", "dtype"),  # not a backend: it waits for no turn
    [
        pytest.param(JAX, "float32", id="float32"),
        pytest.param(JAX, "bfloat16", id="bfloat16", marks=pytest.mark.thorough),
        pytest.param(JAX_X64, "float64", id="float64"),
        pytest.param(JAX_X64, "float32", id="float32, x64", marks=pytest.mark.thorough),
        pytest.param(JAX_X64, "float16", id="float16, x64", marks=pytest.mark.thorough),
    ],
)


def derivatives(norm, eps, x, weight, dy, tangent):
    """What reference.py states exactly, by each transform that JAX has for it."""
    import jax

    def call(x, weight=weight):
        return getattr(anynorm, norm)(x, weight, eps=eps)

    def loss(x, weight=weight, dy=dy):
        return (call(x, weight) * dy).sum()

    pull = jax.vjp(call, x, weight)[1]
    stated = getattr(anynorm, f"{norm}_vjp")(x, weight, eps=eps)[1](dy)
    return {
        "gradient": {
            "grad": jax.grad(loss)(x),
            "vjp": pull(dy)[0],
            "stated": stated[0],
            "checkpoint": jax.grad(jax.checkpoint(loss))(x),
            "vmap": jax.vmap(jax.grad(loss), (0, None, 0))(x, weight, dy),
        },
        "weight": {"grad": jax.grad(loss, 1)(x, weight), "vjp": pull(dy)[1], "stated": stated[1]},
        "jvp": {"jvp": jax.jvp(call, (x,), (tangent,))[1]},
        "second": {
            "grad of grad": jax.grad(lambda x: (jax.grad(loss)(x) * tangent).sum())(x),
            "jvp of grad": jax.jvp(jax.grad(loss), (x,), (tangent,))[1],
            "grad of jvp": jax.grad(lambda x: (jax.jvp(call, (x,), (tangent,))[1] * dy).sum())(x),
        },
    }


def compare(norm, eps, backend, dtype, features=FEATURES, jit=True):
    import jax

    values = given(norm, dtype, features)
    with backend.context():
        of_jax = [backend.make(np.asarray(one)) for one in values]
        functions = [functools.partial(derivatives, norm, eps), functools.partial(matrices, jax, norm, eps)]
        functions = [jax.jit(function) if jit else function for function in functions]
        check(functions[0](*of_jax), exactly(norm, eps, *values), backend.name, norm, dtype)
        if features == FEATURES:
            check(functions[1](*of_jax[:3]), exact_matrices(norm, eps, *values[:3]), backend.name, norm, dtype)


@every_dtype
@pytest.mark.parametrize("eps", thorough_but("default", of=["default", 1.0, 0.0]))
@every_norm
def test_every_derivative_of_all_kinds_of_rows(norm, eps, library, dtype):
    compare(norm, EPS[norm] if eps == "default" else eps, library, dtype)


@pytest.mark.parametrize("library", thorough_but(JAX, of=[JAX, JAX_X64]), ids=str)
@every_norm
def test_rows_that_are_added_up_in_blocks(norm, library):
    compare(norm, EPS[norm], library, library.dtypes[-1], features=200)


@pytest.mark.parametrize("norm", thorough_but("layer_norm", of=NORMS))
def test_outside_of_jit(norm):
    compare(norm, EPS[norm], JAX, "float32", jit=False)


@every_norm
def test_rows_that_hold_nan_or_inf(norm):
    """They have derivatives of NaN throughout, and no other row notices."""
    import jax

    clean = given(norm, "float32")
    spoiled = [one.copy() for one in clean]
    spoiled[0][1, 2], spoiled[0][3, 0], spoiled[2][5, 4] = np.nan, np.inf, np.nan  # the last: in dy
    function = jax.jit(functools.partial(derivatives, norm, EPS[norm]))
    expected, got = (function(*values) for values in (clean, spoiled))
    others = [i for i in range(len(clean[0])) if i not in (1, 3, 5)]
    for kind in ("gradient", "jvp", "second"):
        for transform, found in got[kind].items():
            assert np.isnan(found[np.asarray([1, 3])]).all(), transform
            assert kind == "jvp" or np.isnan(found[5]).all(), transform
            same = np.asarray(found)[others], np.asarray(expected[kind][transform])[others]
            np.testing.assert_array_equal(*same, err_msg=transform)


@pytest.mark.parametrize("transform", ["grad", "stated", "jit"])
def test_a_row_of_zeros_keeps_the_mean_term_whatever_eps_is(transform):
    import jax
    import jax.numpy as jnp

    x, dy = jnp.zeros((1, 4)), jnp.asarray([[1.0, 0.0, 0.0, 0.0]])
    for eps in (1.0, 1e-5, 4.0, 1e-12):
        if transform == "stated":
            dx = anynorm.layer_norm_vjp(x, eps=eps)[1](dy)[0]
        else:
            pull = jax.grad(lambda x, eps=eps: (anynorm.layer_norm(x, eps=eps) * dy).sum())
            dx = (jax.jit(pull) if transform == "jit" else pull)(x)
        np.testing.assert_allclose(dx * np.sqrt(eps), [[0.75, -0.25, -0.25, -0.25]], rtol=2.0**-21)
