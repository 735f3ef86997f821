"""The derivative in the CUDA kernels, emulated on the CPU, against exact derivatives."""

import numpy as np
import pytest
from hypothesis import given, note
from hypothesis import strategies as st

from tests import emulated
from tests.backends import ALL, as_dtype
from tests.reference import Exact
from tests.strategies import cases, examples
from tests.test_gradients_precision import gradients_like, options_of
from tests.tolerances import (
    CUDA_GRADIENT_BOUNDS,
    assert_exact,
    assert_sums_exact,
    gradient_of_bias,
    gradient_of_rows,
)

pytestmark = emulated.needs_compiler
NORMS = ("layer_norm", "rms_norm", "scale_norm")
FEATURES = (1, 2, 3, 7, 33, 300)
every_dtype = pytest.mark.parametrize("dtype", ALL)
every_norm = pytest.mark.parametrize("norm", NORMS)


def differentiate(norm, case, dy, **options):
    if norm == "scale_norm":
        return emulated.differentiate(norm, case.x, dy, case.scale, eps=case.eps, **options)
    return emulated.differentiate(
        norm, case.x, dy, case.weight, case.bias, eps=case.eps, offset=case.weight_offset, **options
    )


def assert_gradients(norm, dtype, case, dy, got):
    dx, dweight = gradient_of_rows(norm, case.x, dy, dtype, **options_of(norm, case))
    said = {"backend": "cuda, emulated", "dtype": dtype, "bounds": CUDA_GRADIENT_BOUNDS}
    assert_exact(got[0], dx, norm=f"{norm} dx", **said)
    wanted = case.scale if norm == "scale_norm" else case.weight
    assert (got[1] is None) == (wanted is None)
    if wanted is not None:
        assert_sums_exact(got[1], dweight, norm=f"{norm} dw", **said)
    if norm != "scale_norm" and case.bias is not None:
        assert_sums_exact(got[2], gradient_of_bias(dy), norm=f"{norm} db", **said)


@every_dtype
@every_norm
@given(data=st.data())
@examples(25)
def test_gradients(norm, dtype, data):
    case = data.draw(cases(dtype, features=FEATURES).filter(lambda case: case.eps != 1e-300))
    note(case.kind)
    dy = gradients_like(data, case, dtype)
    assert_gradients(norm, dtype, case, dy, differentiate(norm, case, dy))


@pytest.mark.parametrize("place", [0, 150])
def test_an_outlier_wherever_it_is(place):
    # The first element is what deviations are taken from, and most of their squares cancels where that is the outlier.
    x, dy, _, weight, _ = inputs("float64", (3, 300))
    x[:, place] = [1e3, -4e3, 1e4]
    got = emulated.differentiate("layer_norm", x, dy, weight)
    dx, dweight = gradient_of_rows("layer_norm", x, dy, "float64", weight=weight)
    said = {"backend": "cuda, emulated", "dtype": "float64", "bounds": CUDA_GRADIENT_BOUNDS}
    assert_exact(got[0], dx, norm="layer_norm dx", **said)
    assert_sums_exact(got[1], dweight, norm="layer_norm dw", **said)


def inputs(dtype, shape, seed=0):
    rng = np.random.default_rng(seed)
    return [as_dtype(rng.standard_normal(one), dtype) for one in (shape, shape, shape, shape[-1:], shape[-1:])]


@every_dtype
@pytest.mark.parametrize("norm", ["layer_norm", "rms_norm"])
@pytest.mark.parametrize("features", [5, 64, 1200])
def test_bits_depend_on_the_row_alone(features, norm, dtype):
    x, dy, dtotal, weight, bias = inputs(dtype, (4, features))
    dx, dweight, dbias = emulated.differentiate(norm, x, dy, weight, bias, dtotal=dtotal)
    turned = emulated.differentiate(norm, x, dy, weight, bias, dtotal=dtotal, backwards=True)
    again = emulated.differentiate(norm, x, dy, weight, bias, dtotal=dtotal, held=0)
    # In columns, and in memory that is not aligned.
    columns = [np.asfortranarray(one) for one in (x, dy, dtotal)]
    of_columns = emulated.differentiate(norm, columns[0], columns[1], weight, bias, dtotal=columns[2])
    wider = [np.concatenate([one[:, :1], one], axis=1)[:, 1:] for one in (x, dy, dtotal)]
    of_wider = emulated.differentiate(norm, wider[0], wider[1], weight, bias, dtotal=wider[2])
    for others in (turned, again, of_columns, of_wider):
        for one, other in zip((dx, dweight, dbias), others, strict=True):
            assert np.ascontiguousarray(other).tobytes() == one.tobytes()
    (part, _, _) = emulated.differentiate(norm, x[2:3], dy[2:3], weight, bias, dtotal=dtotal[2:3])
    assert part.tobytes() == dx[2:3].tobytes()


@every_dtype
def test_the_gradient_of_the_sum_is_added(dtype):
    x, dy, dtotal, weight, _ = inputs(dtype, (3, 33))
    alone = emulated.differentiate("rms_norm", x.astype(np.float64), dy.astype(np.float64), weight)[0]
    both = emulated.differentiate("rms_norm", x, dy, weight, dtotal=dtotal)[0]
    exact = [[Exact(v, max(abs(v), abs(t), abs(v - t))) for v, t in zip(*rows, strict=True)] for rows in
             zip(alone + dtotal.astype(np.float64), dtotal.astype(np.float64), strict=True)]  # fmt: skip
    assert_exact(both, exact, backend="cuda, emulated", dtype=dtype, norm="rms_norm dx", bounds=CUDA_GRADIENT_BOUNDS)


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize("shape", [(3, 8200), (5, 4096), (70, 520)])
def test_bits_depend_on_no_device(shape, dtype):
    """Blocks that share a row or several rows, and a card that has neither clusters nor much shared memory."""
    x, dy, dtotal, weight, bias = inputs(dtype, shape)
    got = emulated.differentiate("layer_norm", x, dy, weight, bias, dtotal=dtotal)
    turned = emulated.differentiate("layer_norm", x, dy, weight, bias, dtotal=dtotal, backwards=True)
    how = {"clusters": False, "shared": 48 << 10}
    older = emulated.differentiate("layer_norm", x, dy, weight, bias, dtotal=dtotal, **how)
    for others in (turned, older):
        assert [one.tobytes() for one in others] == [one.tobytes() for one in got]
    x, dy, dtotal, weight = (one.astype(np.longdouble) for one in (x, dy, dtotal, weight))
    factor, g = 1 / np.sqrt(x.var(1, keepdims=True) + 1e-5), dy * weight
    x_hat = (x - x.mean(1, keepdims=True)) * factor
    dx = factor * (g - g.mean(1, keepdims=True) - x_hat * (g * x_hat).mean(1, keepdims=True)) + dtotal
    half = {"bfloat16": 2.0**-9, "float32": 2.0**-24}[dtype]  # of a unit in the last place, of the largest significand
    for one, exact in zip(got, (dx, (dy * x_hat).sum(0), dy.sum(0)), strict=True):
        np.testing.assert_allclose(one.astype(np.longdouble), exact, rtol=2 * half, atol=half * 1e-3)


@every_norm
def test_sums_over_several_blocks_of_rows(norm):
    x, dy, _, weight, bias = inputs("float32", (2200, 3))
    parameters = (2.0,) if norm == "scale_norm" else (weight, bias)
    _, dweight, dbias = emulated.differentiate(norm, x, dy, *parameters)
    options = {"scale": 2.0} if norm == "scale_norm" else {"weight": weight}
    _, expected = gradient_of_rows(norm, x, dy, "float32", **options)
    assert_exact(dweight.reshape(1, -1), expected, backend="cuda, emulated", dtype="float32", norm=f"{norm} dw")
    if norm != "scale_norm":
        np.testing.assert_allclose(dbias, dy.astype(np.float64).sum(0), rtol=1e-6)


@every_norm
@pytest.mark.parametrize("power", [-900, -300, 300, 900])
def test_float64_gradients_of_any_magnitude(power, norm):
    x, dy, _, weight, _ = inputs("float64", (2, 33))
    dx, _, _ = emulated.differentiate(norm, x, dy, *(() if norm == "scale_norm" else (weight,)), eps=0.0)
    # Powers of two that go in at one place and out at another change no bit.
    for of_x, of_dy, of_weight in (
        (power, 0, power),
        (0, power, -power),
        (power, power, 0),
        (power / 2, -power / 2, power),
    ):
        if norm == "scale_norm":
            of_dy, of_weight = of_dy + of_weight, 0
            if abs(of_dy) > 1000:
                continue
        given = (x * 2.0**of_x, dy * 2.0**of_dy, *(() if norm == "scale_norm" else (weight * 2.0**of_weight,)))
        got, _, _ = emulated.differentiate(norm, *given, eps=0.0)
        expected = np.ldexp(dx, int(of_dy + of_weight - of_x))
        assert got.tobytes() == expected.tobytes()


@every_dtype
@every_norm
def test_rows_that_are_no_rows_of_numbers(norm, dtype):
    x, dy, _, _, _ = inputs(dtype, (7, 33))
    x[0], x[1, 4], x[2, 0], dy[3, 7], dy[4, 32], dy[5, 0] = 0, np.nan, np.inf, np.nan, np.inf, -np.inf
    dx, _, _ = emulated.differentiate(norm, x, dy, eps=0.0)
    assert (dx[0] == 0).all()
    assert np.isnan(dx[1:6].astype(np.float64)).all()
    exact, _ = gradient_of_rows(norm, x[6:], dy[6:], dtype, eps=0.0)
    assert_exact(dx[6:], exact, backend="cuda, emulated", dtype=dtype, norm=f"{norm} dx", bounds=CUDA_GRADIENT_BOUNDS)
