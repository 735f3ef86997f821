"""Derivatives that JAX makes of the definition, and those that the definition states, with float64 and without.

All is under jit: operation by operation JAX would compile for minutes. test_tracing.py has some of it outside.
"""

import numpy as np
import pytest

import anynorm
from tests import reference
from tests.backends import JAX, JAX_X64, as_dtype, thorough_but
from tests.strategies import KINDS
from tests.tolerances import CANCELLED, assert_exact, gradient_of_rows

NORMS = ("layer_norm", "rms_norm", "scale_norm")
every_norm = pytest.mark.parametrize("norm", NORMS)
TAME = ("normal", "offset", "outlier", "nearly_constant")
EPS = 1e-5

# With float64, what JAX derives adds up in more places than the definition does, each with an error of float64 at terms
# of up to 2**20 times the result: 2**-9 of a unit of float32. Of float64 itself XLA leaves pairs some units.
DOUBLE_BOUNDS = {"float16": 0.51, "bfloat16": 0.51, "float32": 1.0, "float64": 16.0}
# Without float64, JAX differentiates pairs of float32 one float at a time. That leaves an error of a few units of
# float32 at the terms that cancel, 8 at most. Results in float16 and bfloat16 have half a unit of rounding, and another
# half is 8 * 2**-24 at 2**-9 of the terms and less.
SINGLE_BOUNDS = {"float16": 1.0, "bfloat16": 1.0, "float32": 8.0}
SINGLE_CANCELLED = {"float16": 2.0**-9, "bfloat16": 2.0**-9, "float32": 1.0}


def normalize(norm, x, weight=None, eps=EPS):
    return getattr(anynorm, norm)(x, weight, eps=eps)


def pull_by_jax(norm):
    import jax

    return lambda x, weight, dy: jax.vjp(lambda *given: normalize(norm, *given), x, weight)[1](dy)


def pull_by_vjp(norm):
    return lambda x, weight, dy: getattr(anynorm, f"{norm}_vjp")(x, weight, eps=EPS)[1](dy)[:2]


PULLS = {"autodiff": pull_by_jax, "jit": pull_by_vjp}


def cases(norm, dtype):
    """Rows of many kinds, a weight, and gradients by the result that are random, or lie along the rows."""
    rng, largest = np.random.default_rng(0), float(reference.FORMATS[dtype][2])
    for kind in TAME:
        x = as_dtype(np.clip(KINDS[kind](rng, (3, 33), dtype), -largest, largest), dtype)
        weight = as_dtype(1.5 if norm == "scale_norm" else rng.standard_normal(33), dtype)
        wide = x.astype(np.float64)
        for dy in (rng.standard_normal(x.shape), wide / np.abs(wide).max()):
            yield x, weight, as_dtype(dy, dtype)


def check(norm, dtype, backend, pull, bounds, cancelled, name):
    for x, weight, dy in cases(norm, dtype):
        options = {"scale": float(weight)} if norm == "scale_norm" else {"weight": weight}
        dx, dweight = gradient_of_rows(norm, x, dy, dtype, cancelled, eps=EPS, **options)
        with backend.context():
            given = [backend.make(np.asarray(one)) for one in (x, weight, dy)]
            got = [backend.read(one) for one in pull(*given)]
        said = {"backend": f"{backend.name}, {name}", "dtype": dtype, "bounds": bounds}
        assert_exact(got[0], dx, norm=f"{norm} dx", **said)
        assert_exact(got[1].reshape(1, -1), dweight, norm=f"{norm} dw", **said)


every_pull = pytest.mark.parametrize("name", PULLS)  # that JAX derives, and that the definition states


@pytest.mark.parametrize("dtype", thorough_but("float64", of=JAX_X64.dtypes))
@every_pull
@pytest.mark.parametrize("norm", thorough_but("layer_norm", of=NORMS))
def test_with_float64(norm, name, dtype):
    import jax

    check(norm, dtype, JAX_X64, jax.jit(PULLS[name](norm)), DOUBLE_BOUNDS, CANCELLED, name)


@pytest.mark.parametrize("dtype", thorough_but("float32", of=JAX.dtypes))
@every_pull
@pytest.mark.parametrize("norm", thorough_but("layer_norm", "scale_norm", of=NORMS))
def test_without_float64(norm, name, dtype):
    import jax

    check(norm, dtype, JAX, jax.jit(PULLS[name](norm)), SINGLE_BOUNDS, SINGLE_CANCELLED, name)


@pytest.mark.parametrize("norm", thorough_but(of=NORMS))  # a gradient under jit is compared with the exact one above
def test_transforms_agree(norm):
    """The gradient of a sum is that of its rows, however JAX is asked for it."""
    import jax
    import jax.numpy as jnp

    rng = np.random.default_rng(1)
    x, dy = (jnp.asarray(rng.standard_normal((4, 33)), jnp.float32) for _ in range(2))
    weight = jnp.float32(1.5) if norm == "scale_norm" else jnp.asarray(rng.standard_normal(33), jnp.float32)

    def loss(x, dy):
        return (normalize(norm, x, weight) * dy).sum()

    options = {"scale": 1.5} if norm == "scale_norm" else {"weight": np.asarray(weight)}
    exact, _ = gradient_of_rows(norm, np.asarray(x), np.asarray(dy), "float32", SINGLE_CANCELLED, eps=EPS, **options)
    of_rows = jax.vmap(jax.grad(loss))
    for gradient in (jax.jit(of_rows), jax.jit(jax.grad(jax.checkpoint(loss)))):
        assert_exact(
            np.asarray(gradient(x, dy)), exact, backend="jax, autodiff", dtype="float32", norm=f"{norm} dx",
            bounds=SINGLE_BOUNDS,
        )  # fmt: skip


def formula(norm, x, weight):
    import jax.numpy as jnp

    if norm == "scale_norm":
        return weight * x / jnp.maximum(jnp.sqrt((x * x).sum()), EPS)
    x = x - x.mean() if norm == "layer_norm" else x
    return x / jnp.sqrt((x * x).mean() + EPS) * weight


def hessian(loss, given):
    import jax

    return jax.jit(jax.hessian(loss))(*given)


def gradient_of_gradient(loss, given):
    import jax

    return jax.jit(jax.grad(lambda *given: (jax.grad(loss)(*given) ** 2).sum()))(*given)


ORDERS = {order.__name__: order for order in (hessian, gradient_of_gradient)}


@pytest.mark.parametrize("order", thorough_but("gradient_of_gradient", of=ORDERS))
@pytest.mark.parametrize("norm", thorough_but("rms_norm", of=NORMS))
def test_second_order(norm, order):
    import jax
    import jax.numpy as jnp

    rng = np.random.default_rng(2)
    values, weights = rng.standard_normal(5), np.asarray(1.5) if norm == "scale_norm" else rng.standard_normal(5)
    values, weights = (as_dtype(one, "float32").astype(np.float64) for one in (values, weights))

    def derivative(function, *given):
        return ORDERS[order](lambda *given: (function(norm, *given) ** 3).sum(), given)

    with jax.enable_x64(True):
        given = jnp.asarray(values), jnp.asarray(weights)
        exact, wide = derivative(formula, *given), derivative(normalize, *given)
    narrow = derivative(normalize, *[jnp.asarray(one, jnp.float32) for one in (values, weights)])
    for got, unit in ((wide, 2.0**-52), (narrow, 2.0**-23)):
        # Derivatives of products of a dozen factors, each of which adds a unit or two, at the scale of the terms.
        scale = float(np.abs(exact).max())
        np.testing.assert_allclose(np.asarray(got, np.float64), exact, rtol=0, atol=64 * unit * scale)


@pytest.mark.parametrize(
    ("backend", "dtypes"),
    [
        pytest.param(JAX, ["float32"], id="jax"),
        pytest.param(JAX, ["bfloat16"], id="jax, short", marks=pytest.mark.thorough),
        pytest.param(JAX_X64, ["float16", "float64"], id="jax-x64"),
    ],
)
@pytest.mark.parametrize("eps", [0.0, EPS])
@every_norm
def test_odd_rows(norm, eps, backend, dtypes):
    import jax
    import jax.numpy as jnp

    rows = np.asarray([[0.0] * 4, [3.0] * 4, [1.0, np.nan, 2.0, 3.0], [1.0, -2.0, 4.0, 0.5], [1.0, np.inf, 0.0, 1.0]])
    upstream = np.asarray([1.0, -2.0, 0.5, 4.0])
    for dtype in dtypes:
        with backend.context():
            x, dy = backend.make(as_dtype(rows, dtype)), backend.make(as_dtype(upstream, dtype))
            loss = lambda x, dy=dy: (normalize(norm, x, eps=eps) * dy).sum()  # noqa: E731
            pull = jax.jit(jax.grad(loss))
            # The last but one, alone: among others that are like it.
            got, alone = (backend.read(pull(rows)).astype(np.float64) for rows in (x, x[jnp.asarray([3] * 5)]))
        # Where nothing but eps is left of a row, it divides: its square root, or scale_norm's own.
        divided = 0.0 if eps == 0 else 1 / eps if norm == "scale_norm" else eps**-0.5
        zero = divided * (upstream - upstream.mean() if norm == "layer_norm" else upstream)
        assert np.isnan(got[[2, 4]]).all()
        assert np.isfinite(got[[1, 3]]).all()
        expected = as_dtype(zero, dtype).astype(np.float64)  # 4e5 is past the range of float16, and Inf there
        np.testing.assert_allclose(got[0], expected, rtol=2.0 ** (4 - reference.FORMATS[dtype][0]))
        if norm == "layer_norm":
            np.testing.assert_allclose(got[1], expected, rtol=2.0 ** (4 - reference.FORMATS[dtype][0]))
        tolerance = 2.0 ** (3 - reference.FORMATS[dtype][0])
        np.testing.assert_allclose(got[3], alone[0], rtol=tolerance, atol=tolerance)
