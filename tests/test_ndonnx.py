"""ndonnx: graphs with lengths that are not known until ONNX Runtime runs them, compared with exact arithmetic."""

import ml_dtypes
import ndonnx
import numpy as np
import onnxruntime
import pytest

import anynorm
from tests import reference
from tests.backends import as_dtype
from tests.strategies import KINDS
from tests.tolerances import assert_exact, gradient_of_rows

NORMS = ("layer_norm", "rms_norm", "scale_norm")
X = np.random.default_rng(0).standard_normal((4, 33)).astype(np.float32) + 2
WEIGHT, BIAS = np.random.default_rng(1).standard_normal((2, 33)).astype(np.float32)


def argument(shape, dtype):
    return ndonnx.argument(shape=shape, dtype=getattr(ndonnx, dtype))


def run(inputs, outputs, **values):
    """What a model that is made of a graph gives for some values."""
    model = ndonnx.build(inputs, outputs).SerializeToString()
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    return session.run(None, values)


def call(norm, x, weight, bias):
    if norm == "scale_norm":
        return anynorm.scale_norm(x, 1.5)
    return getattr(anynorm, norm)(x, weight, bias, eps=1e-5)


def expected(norm, x):
    if norm == "scale_norm":
        return [reference.scale_norm(row, 1.5) for row in x]
    return [getattr(reference, norm)(row, WEIGHT, BIAS, 1e-5) for row in x]


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
@pytest.mark.parametrize("norm", NORMS)
def test_rows_whose_number_is_not_known(norm, dtype):
    x = argument(("N", 33), dtype)
    y = call(norm, x, ndonnx.asarray(WEIGHT), ndonnx.asarray(BIAS))
    assert isinstance(y, ndonnx.Array)
    assert (y.shape, y.dtype) == (x.shape, x.dtype)
    rows = as_dtype(np.concatenate([X, np.zeros((1, 33)), np.full((1, 33), np.inf)]), dtype)
    (got,) = run({"x": x}, {"y": y}, x=rows)
    assert_exact(got, expected(norm, rows), backend="ndonnx", dtype=dtype, norm=norm)
    assert run({"x": x}, {"y": y}, x=rows[:0])[0].shape == (0, 33)


@pytest.mark.parametrize("dtype", ["float64", ml_dtypes.bfloat16])
def test_numpy_parameters(dtype):
    """Those of functions, of norms that hold them, and of derivatives; bfloat16 too, which ndonnx lacks."""
    weight, bias = WEIGHT.astype(dtype), BIAS.astype(dtype)
    scale = weight[:1].reshape(())
    layer, scaled = anynorm.LayerNorm(33, dtype=dtype), anynorm.ScaleNorm(33, dtype=dtype)
    layer.load_state_dict({"weight": weight, "bias": bias})
    scaled.load_state_dict({"scale": scale})
    x = argument(("N", 33), "float32")
    outputs = {
        "function": anynorm.layer_norm(x, weight, bias), "norm": layer(x), "scaled": scaled(x),
        "dweight": anynorm.rms_norm_vjp(x, weight)[1](x)[1],
    }  # fmt: skip
    of_function, of_norm, of_scaled, dweight = run({"x": x}, outputs, x=X)
    exact = [reference.layer_norm(row, weight, bias) for row in X]
    for y in (of_function, of_norm):
        assert_exact(y, exact, backend="ndonnx", dtype="float32", norm="layer_norm")
    exact = [reference.scale_norm(row, scale) for row in X]
    assert_exact(of_scaled, exact, backend="ndonnx", dtype="float32", norm="scale_norm")
    _, exact_weight = gradient_of_rows("rms_norm", X, X, "float32", weight=weight, eps=1e-6)
    assert dweight.dtype == ("float64" if dtype == "float64" else "float32")
    dweight = dweight.astype(np.float32).reshape(1, -1)
    assert_exact(dweight, exact_weight, backend="ndonnx", dtype="float32", norm="rms_norm dw")


@pytest.mark.parametrize("shape", [("N", 1), ("N", "M", 1), (None, 2, 1, 1)])
def test_axes_of_length_1_beside_lengths_that_are_not_known(shape):
    axes = tuple(axis for axis, length in enumerate(shape) if length == 1)
    values = np.random.default_rng(2).standard_normal([3 if not isinstance(n, int) else n for n in shape])
    x = argument(shape, "float64")
    outputs = {norm: getattr(anynorm, norm)(x, axis=axes) for norm in NORMS}
    outputs["mean"] = anynorm.moments(x, axis=axes).mean
    dx, _, _ = anynorm.rms_norm_vjp(x, axis=axes)[1](x)
    *got, mean, of_rms = run({"x": x}, {**outputs, "dx": dx}, x=values)
    for norm, y in zip(NORMS, got, strict=True):
        exact = [getattr(reference, norm)(row) for row in values.reshape(-1, 1)]
        if norm == "rms_norm":
            exact = [reference.rms_norm(row, eps=1e-6) for row in values.reshape(-1, 1)]
        assert y.shape == values.shape
        assert_exact(y.reshape(-1, 1), exact, backend="ndonnx", dtype="float64", norm=norm)
    assert np.array_equal(mean, values)
    assert of_rms.shape == values.shape
    if sum(not isinstance(length, int) for length in shape) == 1:  # of two that are not known it forgets the rest
        assert {y.shape for y in outputs.values()} == {x.shape}


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("norm", NORMS)
def test_derivatives_of_a_batch_whose_length_is_not_known(norm, dtype):
    rng = np.random.default_rng(3)
    rows = as_dtype(np.concatenate([KINDS[kind](rng, (2, 33), dtype) for kind in ("normal", "offset", "tiny")]), dtype)
    of_rows = as_dtype(rng.standard_normal(rows.shape), dtype)
    weight = WEIGHT.astype(dtype)
    x, dy = argument((None, 33), dtype), argument((None, 33), dtype)
    if norm == "scale_norm":
        _, pull = anynorm.scale_norm_vjp(x, ndonnx.asarray(np.asarray(1.5, dtype)), eps=1e-5)
        options = {"scale": 1.5, "eps": 1e-5}
    else:
        _, pull = getattr(anynorm, f"{norm}_vjp")(x, ndonnx.asarray(weight), eps=1e-5)
        options = {"weight": weight, "eps": 1e-5}
    dx, dweight, *_ = pull(dy)
    assert dx.shape == x.shape
    assert dweight.shape == (() if norm == "scale_norm" else (33,))
    got, of_weight = run({"x": x, "dy": dy}, {"dx": dx, "dweight": dweight}, x=rows, dy=of_rows)
    exact, exact_weight = gradient_of_rows(norm, rows, of_rows, dtype, **options)
    assert_exact(got, exact, backend="ndonnx", dtype=dtype, norm=f"{norm} dx")
    assert_exact(of_weight.reshape(1, -1), exact_weight, backend="ndonnx", dtype=dtype, norm=f"{norm} dw")


def test_moments_of_pieces_and_of_nothing():
    x = argument(("N", 33), "float64")
    pieces = [anynorm.moments(part) for part in (x[:, :0], x[:, :9], x[:, 9:])]
    assert [piece.count for piece in pieces] == [0, 9, 24]
    assert {piece.shape for piece in pieces} == {(None, 1)}
    whole = pieces[0].merge(pieces[1]).merge(pieces[2])
    y = anynorm.layer_norm(x, moments=whole)
    got, mean, none = run({"x": x}, {"y": y, "mean": whole.mean, "none": pieces[0].mean}, x=X.astype(np.float64))
    exact = [reference.layer_norm(row) for row in X.astype(np.float64)]
    assert_exact(got, exact, backend="ndonnx, merged", dtype="float64", norm="layer_norm")
    assert np.allclose(mean, X.mean(1, dtype=np.float64, keepdims=True), rtol=1e-15)
    assert np.isnan(none).all()


def test_given_moments_over_a_batch_whose_length_is_not_known():
    """Features are standardized by statistics of other rows, as many of which there may be."""
    seen = (X + 1).astype(np.float32)
    found = anynorm.Moments.from_dict(anynorm.moments(seen, axis=0).to_dict(), xp=ndonnx)
    x = argument(("N", 33), "float32")
    y = anynorm.layer_norm(x, axis=0, moments=found)
    (got,) = run({"x": x}, {"y": y}, x=X[:3])
    wide = seen.astype(np.float64)
    exact = (X[:3] - wide.mean(0)) / np.sqrt(wide.var(0) + 1e-5)
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, exact, rtol=2e-7, atol=1e-9)


def test_moments_are_written_where_they_have_values():
    found = anynorm.moments(ndonnx.asarray(X))
    assert found.to_dict() == anynorm.Moments.from_dict(found.to_dict(), xp=np).to_dict()
    words = "moments must have values that the host can read, got those in a float64 ndonnx array"
    with pytest.raises(TypeError, match=words):
        anynorm.moments(argument(("N", 33), "float32")).to_dict()


def test_a_weight_for_each_head_and_rows_whose_number_is_not_known():
    weights = np.stack([WEIGHT, BIAS])
    x = argument(("N", 2, 33), "float32")
    for weight in (ndonnx.asarray(weights[None]), weights[None]):
        y = anynorm.layer_norm(x, weight, weight, eps=1e-5)
        (got,) = run({"x": x}, {"y": y}, x=X.reshape(2, 2, 33))
        exact = [reference.layer_norm(row, weights[i % 2], weights[i % 2], 1e-5) for i, row in enumerate(X)]
        assert_exact(got.reshape(4, 33), exact, backend="ndonnx", dtype="float32", norm="layer_norm")
