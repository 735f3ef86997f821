"""Conventions through the CPU kernels, against exact arithmetic with roundings at the stated places."""

import mpmath
import numpy as np
import pytest

import anynorm
from anynorm import CONVENTIONS, Convention
from anynorm._by_convention import resolved
from anynorm._definition.norms import LAYER_NORM, RMS_NORM
from tests import reference_conventions as exact
from tests.backends import needs_llvmlite, thorough_but
from tests.fast_path import forced, takes_fast_path
from tests.kernel_rows import DTYPES, extreme_rows, numbers

pytestmark = needs_llvmlite

NARROW = ("float16", "bfloat16", "float32")
# Each place of eps and each rounding, with and without the root's; and an offset that is rounded.
WAYS = (
    CONVENTIONS["llama"],
    CONVENTIONS["onnx"],
    CONVENTIONS["x_transformers"],
    CONVENTIONS["nemotron"],
    Convention(eps_place="outside", eps=0.5, rounding="each"),
    Convention(eps_place="floor", eps=3.0, rounding="normalized", statistics="x"),
)
OUTSIDE = Convention(eps_place="outside", eps=0.5)
# Sums of 16 bits are formed in float32, and so is x_hat; that of float32 in two numbers of it, of which layer_norm has
# one that is rounded: both are within a unit of the last place of float32.
OFF = {"float16": 2.0**-19, "bfloat16": 2.0**-19, "float32": 2.0**-44}


def eps_of(norm, way):
    way = exact.meant(norm, way)
    return {"layer_norm": 1e-5, "rms_norm": 1e-6}[norm] if way.eps is None else way.eps


def assert_right(got, norm, x, weight, bias, way, dtype, eps=None):
    off = mpmath.mpf(OFF[dtype])
    eps = eps_of(norm, way) if eps is None else eps
    for row, found in zip(x, np.asarray(got, np.float64), strict=True):
        expected = exact.row(norm, row, weight, bias, way, eps, dtype, dtype, way.weight_offset, off)
        if dtype == "float32":  # 2 units, of the terms
            sizes = [1.0 + abs(float(weight[i]) + way.weight_offset) * 4 for i in range(len(found))]
            wrong = [
                (y, may)
                for y, may, size in zip(found, expected, sizes, strict=True)
                if min(abs(mpmath.mpf(float(y)) - one) for one in may) > 2 * size * 2.0**-23
            ]
        else:
            wrong = [(y, may) for y, may in zip(found, expected, strict=True) if mpmath.mpf(float(y)) not in may]
        assert not wrong, (way, norm, dtype, wrong[:3])


@pytest.mark.parametrize("dtype", thorough_but("bfloat16", of=NARROW))
@pytest.mark.parametrize("norm", ["layer_norm", "rms_norm"])
def test_what_is_rounded_on_the_way(norm, dtype):
    x, weight, bias = numbers((4, 33), dtype, 1), numbers(33, dtype, 2), numbers(33, dtype, 3)
    x[1] *= x.dtype.type(2.0**-6)
    for way in WAYS:
        got = forced(getattr(anynorm, norm), x, weight, bias, convention=way)
        assert got.dtype == x.dtype
        assert_right(got, norm, x, weight, bias, way, dtype)


@pytest.mark.parametrize("dtype", thorough_but("bfloat16", of=NARROW))
def test_few_rows_add_an_offset_to_weights_where_they_lie(dtype):
    """One that float32 holds; another one, and of more rows, is added beforehand, with the same bits."""
    x, weight, bias = numbers((4, 33), dtype, 1), numbers(33, dtype, 2), numbers(33, dtype, 3)
    weight[:4] = [-1.0, -1.0 + 2.0**-7, 2.0**-13, 2.0**-30]
    for offset in (1.0, -0.75, 0.1, 0.0):
        way = Convention(weight_offset=offset, offset="weight")
        more = forced(anynorm.layer_norm, x, weight, bias, convention=way)
        for rows in (1, 3):
            few = forced(anynorm.layer_norm, x[:rows], weight, bias, convention=way)
            assert few.tobytes() == more[:rows].tobytes()
        assert_right(few, "layer_norm", x[:3], weight, bias, way, dtype)


@pytest.mark.parametrize("dtype", thorough_but("bfloat16", of=NARROW))
@pytest.mark.parametrize("scale", [3.7, -(2.0**59), 2.0**61, 0.0, 2.0**-59, 2.0**-61])
def test_a_scale_is_multiplied_by_what_is_rounded(dtype, scale):
    """On both sides of what float32 holds of products; those of float16 beyond its range are infinite."""
    x = numbers((3, 33), dtype, 1)
    unit = forced(anynorm.scale_norm, x, convention="llama").astype(np.float64)
    with np.errstate(over="ignore", under="ignore"):
        expected = (unit * scale).astype(np.float32).astype(x.dtype)
    got = forced(anynorm.scale_norm, x, scale, convention="llama")
    assert (got == expected).mean() > 0.97  # one rounding, or two
    with np.errstate(invalid="ignore"):
        error = np.abs(got.astype(np.float64) - expected.astype(np.float64))
    assert (error[np.isfinite(error)] <= np.spacing(np.abs(expected[np.isfinite(error)])).astype(np.float64)).all()


@pytest.mark.parametrize("dtype", thorough_but("float32", of=DTYPES))
def test_a_row_has_its_bits_wherever_it_lies(dtype):
    """In a batch with rows that float32 does not hold, along another axis, in place, into an array, of a sum."""
    x, weight, bias = np.concatenate([numbers((6, 33), dtype, 1), extreme_rows(33, dtype)]), *numbers((2, 33), dtype, 2)
    for norm, add, way in (
        (anynorm.layer_norm, anynorm.add_layer_norm, CONVENTIONS["onnx"]),
        (anynorm.rms_norm, anynorm.add_rms_norm, Convention(eps_place="outside", eps=1e-3, rounding="normalized")),
    ):
        whole = forced(norm, x, weight, bias, convention=way)
        for i in range(len(x)):
            assert_same(forced(norm, x[i], weight, bias, convention=way), whole[i])
        assert_same(forced(norm, x.T.copy(), weight, bias, convention=way, axis=0).T, whole)
        assert_same(forced(norm, np.repeat(x, 2, 1)[:, ::2], weight, bias, convention=way), whole)
        into = x.copy()
        forced(norm, into, weight, bias, convention=way, out=into)
        assert_same(into, whole)
        assert_same(forced(add, x, np.zeros_like(x), weight, bias, convention=way)[0], whole)


def assert_same(a, b):
    assert np.array_equal(a.astype(np.float64), b.astype(np.float64), equal_nan=True)


def test_float64_has_eps_where_the_convention_has_it():
    """Of any magnitude, with an eps that counts, that is nothing, and that is all there is."""
    size = np.asarray([1.0, 1e200, 1e-200, 1e-320, 1e3, 1e-9])[:, None]
    x, weight = numbers((6, 33), "float64", 1) * size, numbers(33, "float64", 2)
    for norm in ("layer_norm", "rms_norm"):
        for place in ("outside", "floor") if norm == "rms_norm" else ("outside",):
            for eps in (0.0, 1e-200, 1e-9, 40.0, 1e300):
                way = Convention(eps_place=place, eps=eps)
                got = forced(getattr(anynorm, norm), x, weight, convention=way)
                for row, found in zip(x, got, strict=True):
                    expected = exact.row(norm, row, weight, None, way, eps, "float64", off=mpmath.mpf(0))
                    for i, (y, may) in enumerate(zip(found, expected, strict=True)):
                        (value,) = may
                        least = abs(weight[i]) if norm == "layer_norm" else 0.0  # x_hat counts as 1 at least
                        unit = max(least, abs(float(value))) * 2.0**-52 + 2.0**-1074
                        assert abs(mpmath.mpf(float(y)) - value) <= 4 * unit, (norm, way, i)


@pytest.mark.parametrize("dtype", thorough_but("bfloat16", of=NARROW))
def test_given_moments(dtype):
    """With those of the rows themselves the result is that of own moments, but next to the middle of two numbers."""
    x, weight, bias = numbers((7, 33), dtype, 1), numbers(33, dtype, 2), numbers(33, dtype, 3)
    given = anynorm.moments(x)
    for norm in ("layer_norm", "rms_norm"):
        for way in WAYS:
            if way.name == "x_transformers" and norm == "rms_norm":
                reason = anynorm.explain(x, weight, bias, norm=norm, convention=way, moments=given).refused["cpu"]
                assert "unit vectors" in reason
                continue
            got = forced(getattr(anynorm, norm), x, weight, bias, convention=way, moments=given)
            assert_right(got, norm, x, weight, bias, way, dtype)
    way = Convention(eps_place="outside", rounding="normalized", eps=1e-12)
    own = forced(anynorm.scale_norm, x, 3.0, convention=way)
    got = forced(anynorm.scale_norm, x, 3.0, convention=way, moments=given)
    assert (own == got).mean() > 0.97


def test_small_calls_take_the_fast_path_of_their_own_rule():
    x, weight = numbers((1, 96), "bfloat16", 1), numbers(96, "bfloat16", 2)
    ways = (None, "llama", "onnx", "rmsnorm_paper", "nemotron", "qwen3")
    expected = [forced(anynorm.rms_norm, x, weight, convention=way) for way in ways]
    for way in ways:
        anynorm.rms_norm(x, weight, convention=way)
    for _ in range(2):
        for way, one in zip(ways, expected, strict=True):
            assert takes_fast_path(anynorm.rms_norm, x, weight, convention=way), way
            assert_same(anynorm.rms_norm(x, weight, convention=way), one)
            added = anynorm.add_rms_norm(x, np.zeros_like(x), weight, convention=way)[0]
            assert_same(added, one)


def test_equal_rules_are_one_object():
    rules = [resolved(RMS_NORM, name, 1e-6, 0.0, True)[0] for name in ("llama", "qwen3", "t5")]
    assert rules[0] is rules[1] is rules[2] is not RMS_NORM
    assert resolved(RMS_NORM, "flax", 1e-6, 0.0, True)[0] is RMS_NORM
    twice = [resolved(LAYER_NORM, "nemotron", 1e-5, 0.0, True)[0] for _ in range(2)]
    assert twice[0] is twice[1]
    assert resolved(LAYER_NORM, "nemotron", 1e-5, 0.0, False)[0] is LAYER_NORM  # there is no weight to round


def test_derivatives_by_the_kernels_are_those_of_the_formula():
    x, dy, weight = numbers((5, 33), "float32", 1), numbers((5, 33), "float32", 2), numbers(33, "float32", 3)
    plain = forced(anynorm.rms_norm_vjp, x, weight, eps=1e-6)[1]
    rounded = forced(anynorm.rms_norm_vjp, x, weight, convention="llama")[1]
    with anynorm.use_kernel("cpu"):
        for a, b in zip(plain(dy)[:2], rounded(dy)[:2], strict=True):
            assert np.array_equal(a, b)
        outside = anynorm.rms_norm_vjp(x, weight, convention=OUTSIDE)[1]
        with pytest.raises(RuntimeError, match="eps"):
            outside(dy)


def test_torch_follows_the_kernels():
    torch = pytest.importorskip("torch")
    x, weight = torch.randn(5, 33, requires_grad=True), torch.randn(33, requires_grad=True)
    for way in ("llama", OUTSIDE, "x_transformers"):
        y = anynorm.rms_norm(x, weight, convention=way)
        dx, dweight = torch.autograd.grad(y.sum(), (x, weight))
        of_numpy = anynorm.rms_norm_vjp(x.detach().numpy(), weight.detach().numpy(), convention=way)
        assert np.array_equal(of_numpy[0], y.detach().numpy())
        expected = of_numpy[1](np.ones((5, 33), np.float32))
        assert np.allclose(dx, expected[0], rtol=1e-5, atol=1e-6)
        assert np.allclose(dweight, expected[1], rtol=1e-5, atol=1e-6)
