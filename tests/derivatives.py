"""Batches in which all kinds of rows are side by side, and their exact derivatives of first and second order."""

import numpy as np

import anynorm
from tests import reference
from tests.backends import as_dtype
from tests.strategies import KINDS
from tests.tolerances import FLUSHED_TERMS, NARROW_GRADIENT_BOUNDS, as_it_is, assert_exact, gradient_of_rows

NORMS = ("layer_norm", "rms_norm", "scale_norm")
FEATURES = 5
EPS = {"layer_norm": 1e-5, "rms_norm": 1e-6, "scale_norm": 1e-12}  # the defaults


def rows(dtype, features):
    """Ordinary rows and hard ones, zeros, constant rows and tiny ones, some beside a mean of ten deviations."""
    rng, largest = np.random.default_rng(0), float(reference.FORMATS[dtype][2])
    sizes = {"float16": (1e-6,), "float64": (1e-12, 1e-18, 1e-200, 1e18, 1e200)}.get(dtype, (1e-12, 1e-18, 1e-30, 1e18))
    kept = [KINDS[kind](rng, (1, features), dtype)[0] for kind in ("normal", "offset", "outlier", "nearly_constant")]
    kept += [np.zeros(features), np.full(features, 3.0), 1e-6 * np.eye(features)[1]]
    for size in sizes:
        kept += [np.full(features, size), (rng.standard_normal(features) + rng.choice([0.0, 10.0])) * size]
    return as_dtype(np.clip(np.stack(kept), -largest, largest), dtype)


def given(norm, dtype, features=FEATURES):
    """Rows, a weight, gradients by y and tangents of x; some of both lie along the rows."""
    x, rng = rows(dtype, features), np.random.default_rng(1)
    weight = as_dtype(1.5 if norm == "scale_norm" else rng.standard_normal(features), dtype)
    wide = x.astype(np.float64)
    along = wide / np.maximum(np.abs(wide).max(1, keepdims=True), 1e-300)
    dy, tangent = (np.where(rng.random((len(x), 1)) < 0.3, along, rng.standard_normal(x.shape)) for _ in range(2))
    return x, weight, as_dtype(dy, dtype), as_dtype(tangent, dtype)


def exactly(norm, eps, x, weight, dy, tangent):
    """The same from the reference."""
    dtype = x.dtype.name
    options = ({"scale": float(weight)} if norm == "scale_norm" else {"weight": weight}) | {"eps": eps}
    dx, dweight = gradient_of_rows(norm, x, dy, dtype, narrow=True, **options)
    jvp = [as_it_is(reference.jvp(norm, *both, **options), dtype) for both in zip(x, tangent, strict=True)]
    second = [reference.second(norm, *three, **options) for three in zip(x, dy, tangent, strict=True)]
    second = [as_it_is(row, dtype, FLUSHED_TERMS) for row in second]
    return {"gradient": dx, "weight": dweight, "jvp": jvp, "second": second}


def matrices(functions, norm, eps, x, weight, dy):
    """By rows: derivatives of each element by each, and of the gradient of the weight; by ``jax`` or ``torch.func``."""
    vmap, grad, jacfwd, jacrev = functions.vmap, functions.grad, functions.jacfwd, functions.jacrev

    def call(x, weight=weight):
        return getattr(anynorm, norm)(x, weight, eps=eps)

    def loss(x, weight, dy):
        return (call(x, weight) * dy).sum()

    def mapped(function):
        return vmap(lambda x, dy: function(x, weight, dy))(x, dy)

    return {
        "jacobian": {"jacfwd": vmap(jacfwd(call))(x), "jacrev": vmap(jacrev(call))(x)},
        "hessian": {"hessian": mapped(functions.hessian(loss))},
        "mixed": {"forward": mapped(jacfwd(grad(loss), 1)), "reverse": mapped(jacrev(grad(loss), 1))},
    }


def exact_matrices(norm, eps, x, weight, dy):
    """The same, a row of each matrix after the other; a Hessian is symmetric."""
    dtype, units = x.dtype.name, np.eye(x.shape[1])
    options = ({"scale": float(weight)} if norm == "scale_norm" else {"weight": weight}) | {"eps": eps}
    found = {"jacobian": [], "hessian": [], "mixed": []}
    for row, upstream in zip(x, dy.astype(np.float64), strict=True):
        columns = [as_it_is(reference.jvp(norm, row, unit, **options), dtype) for unit in units]
        found["jacobian"] += map(list, zip(*columns, strict=True))
        second = [reference.second(norm, row, upstream, unit, **options) for unit in units]
        found["hessian"] += [as_it_is(one, dtype, FLUSHED_TERMS) for one in second]
        by_weight = [upstream] if norm == "scale_norm" else upstream * units
        columns = [as_it_is(reference.gradient(norm, row, one, eps=eps)[0], dtype) for one in by_weight]
        found["mixed"] += columns if norm == "scale_norm" else map(list, zip(*columns, strict=True))
    return found


def check(found, exact, name, norm, dtype):
    """Compare what was found with what is exact, where that is in range."""
    largest = float(reference.FORMATS[dtype][2]) / 2**10
    for kind, by_transform in found.items():
        in_range = [max(one.magnitude for one in row) < largest for row in exact[kind]]
        kept = [row for row, is_kept in zip(exact[kind], in_range, strict=True) if is_kept]
        for transform, got in by_transform.items():
            got = np.asarray(got).reshape(len(exact[kind]), -1)
            said = {"backend": f"{name}, {transform}", "dtype": dtype, "norm": f"{norm} {kind}"}
            assert_exact(got[in_range], kept, flushes=True, bounds=NARROW_GRADIENT_BOUNDS, **said)


def vjp(norm):
    """The function of a norm that returns its pullback too."""
    return getattr(anynorm, f"{norm}_vjp")


def arrays(dtype="float32", shape=(5, 33), seed=0):
    """x, dy and a weight."""
    rng = np.random.default_rng(seed)
    return tuple(as_dtype(rng.standard_normal(size), dtype) for size in (shape, shape, shape[-1:]))
