"""The pullbacks of every backend against exact derivatives, within the bound of each dtype."""

import numpy as np
import pytest
from hypothesis import assume, given, note
from hypothesis import strategies as st

import anynorm
from tests.backends import ALL, GPU_BACKENDS, HAS_LLVMLITE, NUMPY, as_dtype, needs_llvmlite, some
from tests.strategies import Case, cases, examples
from tests.tolerances import (
    assert_exact,
    assert_sums_exact,
    gradient_bounds_of,
    gradient_of_bias,
    gradient_of_rows,
    is_narrow,
)

NORMS = ("layer_norm", "rms_norm", "scale_norm")
# The backends that run the CPU kernels, where llvmlite is there.
BY_KERNEL = ("numpy", "numpy-read-only", "numpy-reversed", "torch")
# Rows whose gradients stay in range, and to which a library that treats subnormal numbers as zeros does nothing.
TAME = ("normal", "offset", "outlier", "nearly_constant")


def vjp(norm):
    return getattr(anynorm, f"{norm}_vjp")


def pull(norm, backend, case, dy):
    """(dx, dweight, dbias) of a case as NumPy arrays; scale_norm has no third."""
    with backend.context():
        x, gradient = backend.make(case.x), backend.make(dy)
        if norm == "scale_norm":
            found = vjp(norm)(x, case.scale, eps=case.eps)[1](gradient)
        else:
            weight, bias = (None if p is None else backend.make(p) for p in (case.weight, case.bias))
            found = vjp(norm)(x, weight, bias, eps=case.eps, weight_offset=case.weight_offset)[1](gradient)
        return tuple(None if one is None else backend.read(one) for one in found)


def options_of(norm, case):
    if norm == "scale_norm":
        return {"scale": 1.0 if case.scale is None else case.scale, "eps": case.eps}
    return {"weight": case.weight, "eps": case.eps, "offset": case.weight_offset}


def check(norm, dtype, case, dy, backends):
    exact = {}
    for backend in backends:
        if dtype not in backend.dtypes:
            continue
        is_whole = backend.name == "dask" and case.x.shape[1] == 1  # longer rows are cut there
        by_kernel = HAS_LLVMLITE and (backend.name in BY_KERNEL or is_whole)
        way = {"by_kernel": by_kernel, "narrow": is_narrow(backend.name)}
        if str(way) not in exact:
            exact[str(way)] = gradient_of_rows(norm, case.x, dy, dtype, **way, **options_of(norm, case))
        dx, dweight = exact[str(way)]
        got = pull(norm, backend, case, dy)
        bounds = gradient_bounds_of(backend.name, way["by_kernel"])
        said = {"backend": backend.name, "dtype": dtype, "bounds": bounds, "flushes": dtype in backend.flushes}
        assert_exact(got[0], dx, norm=f"{norm} dx", **said)
        wanted = case.scale if norm == "scale_norm" else case.weight
        assert (got[1] is None) == (wanted is None)
        if wanted is not None:
            assert_sums_exact(got[1], dweight, norm=f"{norm} dw", **said)
        if norm == "scale_norm":
            continue
        assert (got[2] is None) == (case.bias is None)
        if case.bias is not None:
            assert_sums_exact(got[2], gradient_of_bias(dy), norm=f"{norm} db", **said)


def gradients_like(data, case, dtype):
    """A gradient of the result: random, along x_hat, or 0."""
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    kind = data.draw(st.sampled_from(["random", "along", "zero"]))
    if kind == "zero":
        return as_dtype(np.zeros(case.x.shape), dtype)
    dy = rng.standard_normal(case.x.shape)
    if kind == "along":  # what is left of it is only what eps and rounding leave
        wide = case.x.astype(np.float64)
        dy = wide / (np.abs(wide).max() or 1.0)
    return as_dtype(dy, dtype)


@pytest.mark.parametrize("dtype", ALL)
@pytest.mark.parametrize("norm", NORMS)
@given(data=st.data())
@examples(10)
def test_gradients(norm, dtype, data):
    case = data.draw(cases(dtype))
    assume(case.kind in TAME and case.eps != 1e-300)
    note(case.kind)
    backends = some("gradients", NORMS.index(norm), dtype)
    check(norm, dtype, case, gradients_like(data, case, dtype), backends)


@needs_llvmlite
@pytest.mark.parametrize("features", [4096, 4100])
def test_gradients_of_long_rows(features):
    # Above 4096 features of float32 a group would be a single row, if there were not two at least; one is left over,
    # and another one is not taken in float32.
    rng = np.random.default_rng(0)
    x, dy = (rng.standard_normal((5, features)).astype(np.float32) for _ in range(2))
    weight, bias = (rng.standard_normal(features).astype(np.float32) for _ in range(2))
    dy[1] = x[1] / weight
    case = Case(x, weight, bias, eps=1e-5, weight_offset=0.0, scale=None, kind="normal")
    check("layer_norm", "float32", case, dy, [NUMPY])


@pytest.mark.parametrize("backend", GPU_BACKENDS)
@pytest.mark.parametrize("dtype", ALL)
@pytest.mark.parametrize("norm", NORMS)
@given(data=st.data())
@examples(20)
def test_gradients_on_gpu(norm, dtype, backend, data):
    case = data.draw(cases(dtype))
    assume(case.kind in TAME and case.eps != 1e-300)
    note(case.kind)
    check(norm, dtype, case, gradients_like(data, case, dtype), [backend])
