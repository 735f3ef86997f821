"""The derivative of a convention is that of its formula, without roundings on the way."""

import mpmath
import numpy as np
import pytest

import anynorm
from anynorm import CONVENTIONS, Convention
from tests import reference_conventions as exact
from tests.backends import as_dtype, named, some
from tests.test_conventions import NORMS, eps_of, made

FORMULAS = (
    CONVENTIONS["llama"],
    CONVENTIONS["x_transformers"],
    CONVENTIONS["nemotron"],
    Convention(eps_place="outside", eps=0.5),
    Convention(eps_place="floor", eps=3.0, rounding="each"),
    Convention(eps_place="outside", eps=0.25, portion=0.5),
)
# Of terms as large as 8, in float32 and in JAX's; in float64 there are no more than its own.
LEAST = {"float32": 2.0**-18, "float64": 2.0**-44}


def vjp(norm, convention, x, weight, bias):
    if norm == "scale_norm":
        return anynorm.scale_norm_vjp(x, weight, convention=convention)
    return getattr(anynorm, f"{norm}_vjp")(x, weight, bias, convention=convention)


def cases(norm, dtype):
    """Rows, of which one is short beside an eps of 3, a gradient, a weight and a bias."""
    rng = np.random.default_rng(7)
    x, dy = as_dtype(rng.standard_normal((2, 3, 6)), dtype)
    x[1] = as_dtype(x[1].astype(np.float64) / 16, dtype)
    weight, bias = as_dtype(rng.standard_normal((2, 6)), dtype)
    return x, dy, (1.5 if norm == "scale_norm" else weight), (None if norm == "scale_norm" else bias)


def expected(norm, convention, x, dy, weight):
    offset = 0.0 if norm == "scale_norm" else convention.weight_offset
    eps = eps_of(norm, convention)
    found = [exact.gradient(norm, *row, weight, convention, eps, offset) for row in zip(x, dy, strict=True)]
    dx = np.asarray([[float(one) for one in of_row] for of_row, _ in found])
    shares = np.asarray([[float(one) for one in shares] for _, shares in found])
    return dx, shares.sum() if norm == "scale_norm" else shares.sum(axis=0)


def assert_near(got, want, dtype):
    error = np.abs(np.asarray(got, np.float64) - want)
    bound = LEAST["float64" if dtype == "float64" else "float32"] + (2.0**-8 * np.abs(want) if "16" in dtype else 0)
    assert (error <= bound).all(), (error.max(), got, want)


@pytest.mark.parametrize("dtype", ["bfloat16", "float32", "float64"])
@pytest.mark.parametrize("norm", NORMS)
def test_vjp(norm, dtype):
    x, dy, weight, bias = cases(norm, dtype)
    for backend in some("conventions, vjp", NORMS.index(norm), dtype):
        for convention in FORMULAS[3:5] if backend.name.startswith("jax") else FORMULAS:
            dx, dweight = expected(norm, convention, x, dy, weight)
            with backend.context():
                _, pullback = vjp(norm, convention, *made(backend, x, weight, bias))
                got = [backend.read(one) for one in pullback(backend.make(dy))]
            assert got[0].dtype == x.dtype
            assert_near(got[0], dx, dtype)
            assert_near(got[1], dweight, dtype)
            if bias is not None:
                assert_near(got[2], dy.astype(np.float64).sum(axis=0), dtype)


@pytest.mark.parametrize("convention", FORMULAS, ids=lambda one: one.name or one.eps_place)
def test_of_a_sum(convention):
    x, dy, weight, bias = cases("rms_norm", "float64")
    dtotal = dy[::-1].copy()
    (y, total), pullback = anynorm.add_rms_norm_vjp(x / 2, x / 2, weight, bias, convention=convention)
    assert np.array_equal(total, x)
    assert np.array_equal(y, anynorm.rms_norm(x, weight, bias, convention=convention))
    dx, dresidual, dweight, dbias = pullback(dy, dtotal)
    want, want_weight = expected("rms_norm", convention, x, dy, weight)
    assert_near(dx, want + dtotal, "float64")
    assert dresidual is dx
    assert_near(dweight, want_weight, "float64")
    assert np.array_equal(dbias, dy.sum(axis=0))


@pytest.mark.parametrize("norm", NORMS)
def test_by_given_moments(norm):
    """Of moments of the rows themselves, both ways together are the derivative of the norm."""
    x, dy, weight, bias = cases(norm, "float64")
    for convention in FORMULAS[3:5]:
        want, _ = expected(norm, convention, x, dy, weight)
        for name in ("numpy", "torch", "dask", "jax-x64"):
            backend = named(name)
            with backend.context():
                given, of_moments = anynorm.moments_vjp(backend.make(x))
                arrays = made(backend, x, weight, bias)
                if norm == "scale_norm":
                    _, pullback = anynorm.scale_norm_vjp(*arrays[:2], convention=convention, moments=given)
                else:
                    _, pullback = getattr(anynorm, f"{norm}_vjp")(*arrays, convention=convention, moments=given)
                dx, *_, dmoments = pullback(backend.make(dy))
                dx, own = backend.read(dx), backend.read(of_moments(dmoments))
            assert_near(dx + own, want, "float64")


@pytest.mark.parametrize("norm", NORMS)
def test_torch_and_jax_differentiate_the_formula(norm):
    torch, jax = pytest.importorskip("torch"), pytest.importorskip("jax")
    x, dy, weight, _ = cases(norm, "float32")
    for convention in (FORMULAS[1], FORMULAS[3], FORMULAS[5]):
        want, want_weight = expected(norm, convention, x, dy, weight)
        function = getattr(anynorm, norm)
        given = torch.from_numpy(x).requires_grad_(), torch.tensor(weight).requires_grad_()
        y = function(*given, convention=convention)
        dx, dweight = torch.autograd.grad(y, given, torch.from_numpy(dy))
        assert_near(dx, want, "float32")
        assert_near(dweight, want_weight, "float32")
        run = jax.jit(lambda *given, by=convention, function=function: function(*given, convention=by))
        _, pullback = jax.vjp(run, jax.numpy.asarray(x), jax.numpy.asarray(weight))
        dx, dweight = pullback(jax.numpy.asarray(dy))
        assert_near(dx, want, "float32")
        assert_near(dweight, want_weight, "float32")


def test_of_second_order_with_eps_outside_of_the_root():
    """The derivative of the derivative, by a difference of exact derivatives."""
    jax = pytest.importorskip("jax")
    convention, step = Convention(eps_place="outside", eps=0.5), 2.0**-30
    x, dy, _, _ = cases("rms_norm", "float64")
    x, dy, t = x[0], dy[0], dy[1]

    def dx(row):
        return exact.gradient("rms_norm", row, dy, None, convention, 0.5)[0]

    def moved(by):
        return [mpmath.mpf(float(one)) + by * mpmath.mpf(float(along)) for one, along in zip(x, t, strict=True)]

    want = [(a - b) / (2 * step) for a, b in zip(exact_dx(moved(step), dx), exact_dx(moved(-step), dx), strict=True)]
    with jax.enable_x64(True):
        gradient = jax.grad(lambda row: (anynorm.rms_norm(row, convention=convention) * dy).sum())
        _, got = jax.jvp(gradient, (jax.numpy.asarray(x),), (jax.numpy.asarray(t),))
        assert (np.abs(np.asarray(got) - np.asarray([float(one) for one in want])) < 1e-6).all()


def exact_dx(row, dx):
    return dx([float(one) for one in row])


@pytest.mark.parametrize("norm", NORMS)
def test_at_rows_of_zeros(norm):
    x, dy, weight, bias = cases(norm, "float64")
    x[0] = 0.0
    for convention in FORMULAS[:5]:
        for eps, factor in ((0.0, 0.0), (0.5, 2.0)):
            options = {"convention": convention, "eps": eps}
            if norm == "scale_norm":
                _, pullback = anynorm.scale_norm_vjp(x, weight, **options)
            else:
                _, pullback = getattr(anynorm, f"{norm}_vjp")(x, weight, bias, **options)
            dx = pullback(dy)[0]
            assert np.isfinite(dx).all()
            g = dy[0] * (np.asarray(weight) + (0.0 if norm == "scale_norm" else convention.weight_offset))
            g = g - g.mean() if norm == "layer_norm" else g
            convention = exact.meant(norm, convention)
            if convention.eps_place == "inside" and norm != "scale_norm":
                factor = np.sqrt(factor)
            if convention.eps_place == "floor" and norm != "scale_norm":
                factor = factor * np.sqrt(6)
            assert_near(dx[0], g * factor, "float64")
