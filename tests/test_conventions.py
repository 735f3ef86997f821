"""Conventions, against exact arithmetic with roundings at the stated places."""

from contextlib import nullcontext

import mpmath
import numpy as np
import pytest

import anynorm
from anynorm import CONVENTIONS, Convention, _by_convention
from anynorm._kernels.cpu import missing
from tests import reference_conventions as exact
from tests.backends import ALL, CPU_BACKENDS, as_dtype, named, some

NORMS = ("layer_norm", "rms_norm", "scale_norm")
# Of those by name, each that differs from the others; and what none of them has.
DIFFERENT = (
    *(
        CONVENTIONS[name]
        for name in ("llama", "nemotron", "onnx", "rmsnorm_paper", "scalenorm_paper", "x_transformers")
    ),
    Convention(name="root of x", statistics="x", weight_offset=0.25),
    Convention(name="all of x, outside", eps_place="outside", rounding="each", statistics="x", eps=0.5),
    Convention(name="x_hat by a portion", rounding="normalized", portion=0.34),
    Convention(name="x_hat of long rows", eps=3.0, eps_place="floor", rounding="normalized"),
)
EPS = {"layer_norm": 1e-5, "rms_norm": 1e-6, "scale_norm": 1e-12}


def eps_of(norm, convention):
    """The eps of a call that passes none."""
    convention = exact.meant(norm, convention)
    if norm == "scale_norm" and convention.eps_place != "floor":
        return EPS[norm]
    found = convention.rms_eps if norm == "rms_norm" and convention.rms_eps is not None else convention.eps
    return EPS[norm] if found is None else found


def arguments(norm, dtype, weight_dtype=None, features=33, seed=0):
    """A few rows, one of zeros and a short one, a weight and a bias; for scale_norm a scale."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((4, features))
    x[1], x[2] = 0.0, x[2] * 2.0**-5
    if norm == "scale_norm":
        return as_dtype(x, dtype), 1.7, None
    weight, bias = (as_dtype(rng.standard_normal(features), weight_dtype or dtype) for _ in range(2))
    return as_dtype(x, dtype), weight, bias


def call(norm, convention, x, weight, bias, **options):
    options["convention"] = convention
    if norm == "scale_norm":
        return anynorm.scale_norm(x, weight, **options)
    return getattr(anynorm, norm)(x, weight, bias, **options)


def made(backend, *arrays):
    return [one if one is None or isinstance(one, float) else backend.make(one) for one in arrays]


def assert_rounded(got, norm, x, weight, bias, convention, dtype, weight_dtype=None, off=exact.FLOAT64):
    """Each element is one of the numbers that exact arithmetic with these roundings may give."""
    is_once = convention.rounding == "once" and convention.statistics == convention.offset == "wide"
    if is_once and dtype != "float32":
        off = max(off, mpmath.mpf(2) ** -23)  # then libraries may convert to 16 bits by way of float32, as ever
    offset, eps = (0.0 if norm == "scale_norm" else convention.weight_offset), eps_of(norm, convention)
    for row, found in zip(x, np.asarray(got, np.float64), strict=True):
        expected = exact.row(norm, row, weight, bias, convention, eps, dtype, weight_dtype or dtype, offset, off)
        wrong = [
            (i, y, may) for i, (y, may) in enumerate(zip(found, expected, strict=True)) if mpmath.mpf(y) not in may
        ]
        assert not wrong, (convention, norm, dtype, wrong[:3])


def off_of(backend, dtype):
    """How far off what is computed may be: JAX and the CPU kernels compute 16 bits in float32."""
    by_kernel = backend.name in ("numpy", "torch") and missing() is None and dtype != "float32"
    return exact.FLOAT32 if backend.name.startswith("jax") or by_kernel else exact.FLOAT64


def is_wide_enough(backend, dtype):
    """Whether what is computed in has so many more digits than the dtype that results are certain."""
    return dtype != "float64" and not (dtype == "float32" and backend.name in ("jax", "jax-x64", "strict-no-float64"))


@pytest.mark.parametrize("dtype", ALL[:3])
@pytest.mark.parametrize("norm", NORMS)
def test_each_convention(norm, dtype):
    x, weight, bias = arguments(norm, dtype)
    for backend in some("conventions", NORMS.index(norm), dtype):
        if not is_wide_enough(backend, dtype):
            continue
        is_jax = backend.name.startswith("jax")
        for convention in DIFFERENT[2:6:3] if is_jax else DIFFERENT:  # each of which JAX compiles for seconds
            if exact.meant(norm, convention).replace(name="") == Convention():
                continue  # the default, by its own kernels
            # In float32 the CPU kernels may be 2 units off; they have tests of their own.
            is_by_kernels = dtype == "float32" and backend.name.startswith(("numpy", "torch"))
            with backend.context(), anynorm.use_kernel("definition") if is_by_kernels else nullcontext():
                got = backend.read(call(norm, convention, *made(backend, x, weight, bias)))
            off = off_of(backend, dtype)
            assert got.dtype == x.dtype
            assert_rounded(got, norm, x, weight, bias, convention, dtype, off=off)


@pytest.mark.parametrize("name", ["numpy", "torch", "strict", "strict-no-float64", "jax"])
@pytest.mark.parametrize("norm", NORMS)
def test_without_a_wider_dtype_there_is_nothing_to_round(norm, name):
    """Then a convention is its formula, within a few units in the last place."""
    backend = named(name)
    dtype = "float64" if name in ("numpy", "torch", "strict") else "float32"
    x, weight, bias = arguments(norm, dtype)
    for convention in (CONVENTIONS["onnx"], CONVENTIONS["rmsnorm_paper"], CONVENTIONS["x_transformers"]):
        with backend.context():
            got = backend.read(call(norm, convention, *made(backend, x, weight, bias)))
        formula = convention.replace(rounding="once", statistics="wide")
        for row, found in zip(x, got, strict=True):
            eps = eps_of(norm, convention)
            expected = exact.row(norm, row, weight, bias, formula, eps, "float64", off=mpmath.mpf(2) ** -70)
            sizes = 1.0 + np.abs(np.asarray(weight, np.float64)) * 6 + (0 if bias is None else np.abs(bias))
            wrong = [abs(float(min(may)) - y) for may, y in zip(expected, found, strict=True)]
            assert (np.asarray(wrong) <= 4 * sizes * np.finfo(dtype).eps).all(), (convention, norm, max(wrong))


@pytest.mark.parametrize("weight_dtype", ALL)
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_a_weight_of_another_dtype(dtype, weight_dtype):
    x, weight, bias = arguments("layer_norm", dtype, weight_dtype)
    for backend in some("conventions, weight", ALL.index(weight_dtype), dtype, weight_dtype):
        is_jax = backend.name.startswith("jax")
        for convention in (CONVENTIONS["nemotron"],) if is_jax else DIFFERENT[:3]:
            with backend.context():
                got = backend.read(call("layer_norm", convention, *made(backend, x, weight, bias)))
            off = off_of(backend, dtype)
            assert_rounded(got, "layer_norm", x, weight, bias, convention, dtype, weight_dtype, off)


# What each of those by name has that the default has not: in which norm, dtype and with what else it is seen.
OWN_EPS = {
    "torch": (),
    "olmo2": ("layer_norm",),
    "cohere": ("rms_norm",),
    "flax": ("layer_norm",),
    "keras": ("layer_norm",),
    "transformer_engine": ("rms_norm",),
    "scalenorm_paper": ("scale_norm",),
}


@pytest.mark.parametrize("name", CONVENTIONS)
def test_what_each_name_changes(name):
    """With its own eps passed to both, those with an eps alone give the bits of the default, by the same kernels."""
    x = as_dtype(np.random.default_rng(1).standard_normal((8, 64)) * 2.0**-6, "float32")
    weight, bias = as_dtype(np.random.default_rng(2).standard_normal((2, 64)), "float32")
    for norm in NORMS:
        given = (x, 2.0, None) if norm == "scale_norm" else (x, weight, bias)
        default = call(norm, None, *given)
        got = call(norm, name, *given)
        if name in OWN_EPS:
            is_seen = norm in OWN_EPS[name] or (name == "scalenorm_paper" and norm == "rms_norm")
            if name == "scalenorm_paper" and norm == "scale_norm":
                short = x * np.float32(1e-6)
                assert np.abs(anynorm.scale_norm(short, 2.0, convention=name)).max() < 0.2
                continue
            assert np.array_equal(got, default) != is_seen, norm
        elif norm == "rms_norm" or (norm == "layer_norm" and name != "rmsnorm_paper"):
            assert not np.array_equal(got, default), norm
        assert "convention" not in anynorm.explain(*given, norm=norm, convention=name).refused.get("cpu", "")


@pytest.mark.parametrize("dtype", ALL)
@pytest.mark.parametrize("norm", NORMS)
def test_degenerate_rows(norm, dtype):
    x = as_dtype(np.asarray([[0.0] * 4, [2.0] * 4, [1.0, np.nan, 2.0, 3.0], [1.0, np.inf, 2.0, 3.0]]), dtype)
    weight, bias = (2.0, None) if norm == "scale_norm" else as_dtype([[2.0] * 4, [0.5] * 4], dtype)
    nothing = 0.0 if norm == "scale_norm" else 0.5
    for backend in some("conventions, degenerate", NORMS.index(norm), dtype):
        for convention in DIFFERENT[2:3] if backend.name.startswith("jax") else DIFFERENT[1:6]:
            for options in ({}, {"eps": 0.0}):
                with backend.context():
                    got = backend.read(call(norm, convention, *made(backend, x, weight, bias), **options))
                got = got.astype(np.float64)
                assert (got[0] == nothing).all(), (convention, options, got)
                assert norm != "layer_norm" or (got[1] == nothing).all(), (convention, options, got)
                assert np.isnan(got[2:]).all(), (convention, options, got)


@pytest.mark.parametrize("backend", CPU_BACKENDS, ids=str)
def test_along_other_axes_in_place_and_of_a_sum(backend):
    dtype = "float32" if "bfloat16" not in backend.dtypes else "bfloat16"
    if backend.name.startswith("jax") or not is_wide_enough(backend, dtype):
        pytest.skip("in float32 the order of a sum shows in its bits")
    x, weight, bias = arguments("layer_norm", dtype)
    with backend.context():
        for name in ("onnx", "x_transformers"):
            last = backend.read(call("layer_norm", name, *made(backend, x, weight, bias)))
            got = call("layer_norm", name, *made(backend, x.T.copy(), weight, bias), axis=0)
            assert np.array_equal(backend.read(got).T, last)
            given = made(backend, x, np.zeros_like(x), weight, bias)
            y, total = anynorm.add_layer_norm(*given, convention=name)
            assert np.array_equal(backend.read(y), last)
            assert np.array_equal(backend.read(total), x)
            if backend.writable:
                x_in, w_in, b_in = made(backend, x, weight, bias)
                assert call("layer_norm", name, x_in, w_in, b_in, out=x_in) is x_in
                assert np.array_equal(backend.read(x_in), last)


def test_the_zero_of_a_negative_number_is_negative():
    x = as_dtype([[-1e-7, 1e-7, -0.0, 0.0, 4.0, 4.0]], "float16")
    for name in ("numpy", "torch"):
        got = named(name).read(anynorm.rms_norm(named(name).make(x), convention="llama")).astype(np.float64)
        assert (np.signbit(got[0]) == [True, False, True, False, False, False]).all()


@pytest.mark.parametrize("name", ["numpy", "torch", "jax"])
def test_subnormal_numbers_and_those_past_the_largest_of_float16(name):
    backend = named(name)
    x = as_dtype([[3e-5, -5.2e-5, 6e-8, 1.0, 2.0, -1.5]], "float16")
    weight, bias = as_dtype([1.0, 1.0, 1.0, 6e4, 6e4, 6e4], "float16"), as_dtype([0, 0, 0, 0, -6e4, 6e4], "float16")
    convention = CONVENTIONS["onnx"]
    with backend.context():
        got = backend.read(anynorm.rms_norm(*map(backend.make, (x, weight, bias)), convention=convention))
    off = exact.FLOAT32 if name == "jax" else exact.FLOAT64
    assert_rounded(got, "rms_norm", x, weight, bias, convention, "float16", off=off)
    assert np.isinf(got[0, 4])  # the product is past the largest, and no bias brings it back


@pytest.mark.parametrize("norm", NORMS[:2])
@pytest.mark.parametrize("name", ["cohere", "qwen3", "onnx"])
def test_a_weight_for_each_head(name, norm):
    """As Cohere's query-key norms have it; Qwen 3 rounds before it multiplies."""
    dtype, convention = "bfloat16", CONVENTIONS[name]
    x, *_ = arguments(norm, dtype)
    rng = np.random.default_rng(3)
    weight, bias = (as_dtype(rng.standard_normal((1, 2, 33)), dtype) for _ in range(2))
    for backend in CPU_BACKENDS:
        if dtype not in backend.dtypes or backend.name.startswith("jax"):
            continue
        with backend.context():
            got = backend.read(call(norm, name, *made(backend, x.reshape(2, 2, 33), weight, bias)))
        for head in range(2):
            given = x[head::2], weight[0, head], bias[0, head]
            assert_rounded(got[:, head], norm, *given, convention, dtype)


def test_conventions_beyond_those_that_are_kept(monkeypatch):
    kept, without = {name: {} for name in NORMS}, {}
    for name, value in (("_MOST_TOGETHER", 2), ("_together", kept), ("_without_offset", without)):
        monkeypatch.setattr(_by_convention, name, value)
    x, weight = np.asarray([[3.0, 4.0]]), np.ones(2)
    conventions = [Convention(eps=eps, weight_offset=eps) for eps in (1.0, 2.0, 3.0)]
    for convention in conventions * 2:
        expected = x / np.sqrt(12.5 + convention.eps) * (1 + convention.eps)
        np.testing.assert_allclose(anynorm.rms_norm(x, weight, convention=convention), expected, rtol=2.0**-51)
        norm = anynorm.RMSNorm(2, convention=convention, dtype="float64")
        norm.weight[:] = 1.0
        np.testing.assert_allclose(norm(x), expected, rtol=2.0**-51)
    assert list(without) == conventions[:2]
    assert len(kept["rms_norm"]) == 2
