"""CuPy's arrays through check, choose, the definition and the CUDA kernels, by a strict stand-in for CuPy."""

import contextlib
from unittest import mock

import numpy as np
import pytest

import anynorm
from anynorm._kernels import cuda
from tests import strict_cupy
from tests.backends import as_dtype
from tests.derivatives import exactly
from tests.emulated import emulation, needs_compiler
from tests.reference import layer_norm, rms_norm, scale_norm
from tests.tolerances import CUDA_GRADIENT_BOUNDS, assert_exact, smallest_normal

RNG = np.random.default_rng(0)
X, RESIDUAL, DY = (RNG.standard_normal((3, 7)).astype("float32") for _ in range(3))
WEIGHT, BIAS = (RNG.standard_normal(7).astype("float32") for _ in range(2))
by_either = pytest.mark.parametrize("kernel", ["definition", pytest.param("cuda", marks=needs_compiler)])


@pytest.fixture
def cupy():
    with strict_cupy.installed() as found:
        yield found


@contextlib.contextmanager
def forced(kernel):
    """Within it a kernel runs, the CUDA kernels on the emulator."""
    with mock.patch.object(cuda, "_MISSING", None), emulation(), anynorm.use_kernel(kernel):
        yield


def on_second(cupy, *arrays):
    """Copies on a device that is not the current one."""
    with cupy.cuda.Device(1):
        return [cupy.asarray(one) for one in arrays]


def assert_is(got, rows, norm, dtype="float32", device=1):
    assert type(got) is strict_cupy.ndarray
    assert got.device.id == device
    assert_exact(got.get(), rows, backend="cupy, stand-in", dtype=dtype, norm=norm)


@by_either
def test_subnormal_numbers_are_zeros_to_cupy_and_not_to_the_kernels(kernel, cupy):
    tiny = as_dtype([[1e-40, -2e-40, 3e-39, 0.0], [1e-39, 1e-30, -2e-30, 3e-30]], "float32")
    seen = tiny if kernel == "cuda" else np.where(np.abs(tiny) < smallest_normal("float32"), np.float32(0), tiny)
    with forced(kernel):
        for norm in (layer_norm, rms_norm, scale_norm):
            of_cupy = getattr(anynorm, norm.__name__)(cupy.asarray(tiny), eps=0.0)
            assert_is(of_cupy, [norm(row, eps=0.0) for row in seen], norm.__name__, device=0)
        wide = anynorm.rms_norm(cupy.asarray(tiny.astype("float64")), eps=0.0)
        assert_is(wide, [rms_norm(row, eps=0.0) for row in tiny.astype("float64")], "rms_norm", "float64", device=0)


@by_either
def test_norms(kernel, cupy):
    x, residual, weight, bias = on_second(cupy, X, RESIDUAL, WEIGHT, BIAS)
    of_layer = [layer_norm(row, WEIGHT, BIAS) for row in X]
    with forced(kernel):
        assert anynorm.explain(x).kernel == kernel
        assert_is(anynorm.layer_norm(x, weight, bias), of_layer, "layer_norm")
        of_rms = [rms_norm(row, WEIGHT + np.float64(1), eps=1e-6) for row in X]
        assert_is(anynorm.rms_norm(x, weight, weight_offset=1.0), of_rms, "rms_norm")
        assert_is(anynorm.scale_norm(x, 3.0), [scale_norm(row, 3.0) for row in X], "scale_norm")
        assert_is(anynorm.scale_norm(x, weight[0]), [scale_norm(row, WEIGHT[0]) for row in X], "scale_norm")
        half = as_dtype(X, "float16")
        assert_is(anynorm.rms_norm(*on_second(cupy, half)), [rms_norm(row) for row in half], "rms_norm", "float16")
        y, total = anynorm.add_layer_norm(x, residual, weight, bias)
        assert (total.get() == X + RESIDUAL).all()
        assert_is(y, [layer_norm(row, WEIGHT, BIAS) for row in X + RESIDUAL], "layer_norm")
        assert (x.get() == X).all()
    assert anynorm.layer_norm(x[:0], weight, bias).shape == (0, 7)


@by_either
def test_layouts(kernel, cupy):
    x, columns = on_second(cupy, X[:, ::-1].copy(), np.asfortranarray(X))
    expected = [rms_norm(row) for row in X]
    with forced(kernel):
        assert_is(anynorm.rms_norm(x[:, ::-1]), expected, "rms_norm")
        assert_is(anynorm.rms_norm(columns), expected, "rms_norm")
        (tall,) = on_second(cupy, np.ascontiguousarray(X.T))
        assert (anynorm.rms_norm(columns).get() == anynorm.rms_norm(tall, axis=0).get().T).all()


@by_either
def test_out(kernel, cupy):
    x, residual, weight, y = on_second(cupy, X, RESIDUAL, WEIGHT, np.zeros((6, 7), "float32"))
    expected = [rms_norm(row, WEIGHT) for row in X]
    with forced(kernel):
        out = y[::2]
        assert anynorm.rms_norm(x, weight, out=out) is out
        assert_is(out, expected, "rms_norm")
        assert not y.get()[1::2].any()
        for one, name in ((y[:3], "be x itself or share no memory with x"), (on_second(cupy, X)[0][:2], "shape")):
            with pytest.raises(ValueError, match=name):
                anynorm.rms_norm(y[1:4], weight, out=one)
        assert anynorm.rms_norm(x, weight, out=x) is x
        assert_is(x, expected, "rms_norm")
        pair = anynorm.add_rms_norm(x, residual, weight, out=(x, residual))
        assert pair[0] is x
        assert pair[1] is residual


@by_either
def test_derivatives(kernel, cupy):
    x, dy, weight, bias = on_second(cupy, X, DY, WEIGHT, BIAS)
    for norm, scale in (("layer_norm", WEIGHT), ("rms_norm", WEIGHT), ("scale_norm", np.float32(1.5))):
        eps = {"layer_norm": 1e-5, "rms_norm": 1e-6, "scale_norm": 1e-12}[norm]
        exact = exactly(norm, eps, X, scale, DY, X)
        given = (float(scale),) if norm == "scale_norm" else (weight, bias)
        with forced(kernel):
            found = getattr(anynorm, f"{norm}_vjp")(x, *given, eps=eps)[1](dy)
        assert [one.device.id for one in found if one is not None] == [1] * (1 + len(given))
        how = {"backend": "cupy, stand-in", "dtype": "float32", "norm": norm, "bounds": CUDA_GRADIENT_BOUNDS}
        assert_exact(found[0].get(), exact["gradient"], **how)
        assert_exact(found[1].get().reshape(1, -1), exact["weight"], **how)


def test_moments(cupy):
    x, weight, bias, dy = on_second(cupy, X, WEIGHT, BIAS, DY)
    expected = [layer_norm(row, WEIGHT, BIAS) for row in X]
    with forced("definition"):
        found = anynorm.moments(x[:, :3]).merge(anynorm.moments(x[:, 3:]))
        assert_is(anynorm.layer_norm(x, weight, bias, moments=found), expected, "layer_norm")
        of_numpy = found.to(np)
        assert of_numpy == anynorm.moments(X[:, :3]).merge(anynorm.moments(X[:, 3:]))
        assert_is(anynorm.layer_norm(x, weight, bias, moments=of_numpy), expected, "layer_norm")
        there = (
            found,
            found[[2, 0]],
            anynorm.Moments.concat([found, found], axis=0),
            anynorm.moments(x, skip_nan=True),
        )
        assert {one.mean.device.id for one in there} == {found.std.device.id} == {1}
        assert found.to(device=cupy.cuda.Device(0)).mean.device.id == 0
        *_, of_moments = anynorm.layer_norm_vjp(x, weight, bias, moments=found)[1](dy)
        assert of_moments.variance.device.id == anynorm.moments_vjp(x)[1](of_moments).device.id == 1


def test_a_variance_below_zero_is_seen(cupy):
    mean, variance, below = on_second(cupy, np.zeros((1, 2)), np.asarray([[1.0, 0.0]]), np.asarray([[1.0, -1.0]]))
    with mock.patch.object(strict_cupy.ndarray, "__bool__", lambda array: bool(array.get())):
        made = anynorm.Moments.from_mean_variance(mean, variance, count=3)
        assert made.variance.device.id == 1
        with pytest.raises(ValueError, match="variance must be 0 or more"):
            anynorm.Moments.from_mean_variance(mean, below, count=3)


def test_what_goes_not_together(cupy):
    (x,), weight = on_second(cupy, X), cupy.asarray(WEIGHT)
    with pytest.raises(TypeError, match=r"weight must be a CuPy array like x, got .*; pass cupy\.asarray\(weight\)"):
        anynorm.layer_norm(x, WEIGHT)
    with pytest.raises(ValueError, match=r"weight must be on x's device, <CUDA Device 1>, got one on <CUDA Device 0>"):
        anynorm.layer_norm(x, weight)
    with pytest.raises(TypeError, match=r"x must .* real floating dtype"):
        anynorm.layer_norm(cupy.asarray([1, 2]))


def test_the_stand_in_refuses_what_cupy_refuses(cupy):
    here, (there,) = cupy.asarray(X), on_second(cupy, X)
    refused = (
        (TypeError, "subok is not supported", lambda: cupy.empty_like(here, subok=False)),
        (TypeError, "Implicit conversion", lambda: np.asarray(here)),
        (TypeError, "Unsupported type", lambda: here + X),
        (TypeError, "Unsupported type", lambda: cupy.add(here, X)),
        (TypeError, "Unsupported type", lambda: X + here),
        (TypeError, "waits", lambda: float(here[0, 0])),
        (ValueError, "same as the current device", lambda: here + there),
        (ValueError, "same as the current device", lambda: cupy.sqrt(there)),
        (AttributeError, "errstate", lambda: cupy.errstate),
    )
    for error, said, call in refused:
        with pytest.raises(error, match=said):
            call()
    assert cupy.sum(here).shape == here[0, 0].shape == ()
    assert here[0, 0].data.ptr == here.data.ptr


def test_weights_that_differ_from_row_to_row(cupy):
    """By the definition: the CUDA kernels leave them to it."""
    weights, biases = RNG.standard_normal((3, 7)).astype("float32"), BIAS[:3, None]
    x, dy, weight, bias = on_second(cupy, X, DY, weights, biases)
    expected = [layer_norm(row, weights[i], np.full(7, biases[i, 0])) for i, row in enumerate(X)]
    with mock.patch.object(cuda, "_MISSING", None), emulation():
        assert anynorm.explain(x, weight=weight, bias=bias).kernel == "definition"
        assert_is(anynorm.layer_norm(x, weight, bias), expected, "layer_norm")
        dx, dweight, dbias = anynorm.layer_norm_vjp(x, weight, bias)[1](dy)
    assert (dweight.shape, dbias.shape) == ((3, 7), (3, 1))
    exact = [exactly("layer_norm", 1e-5, X[i : i + 1], weights[i], DY[i : i + 1], X[i : i + 1]) for i in range(3)]
    how = {"backend": "cupy, stand-in", "dtype": "float32", "norm": "layer_norm", "bounds": CUDA_GRADIENT_BOUNDS}
    for found, name in ((dx, "gradient"), (dweight, "weight")):
        for row, of_row in zip(found.get(), exact, strict=True):
            assert_exact(row[None], of_row[name], **how)
    np.testing.assert_allclose(dbias.get(), DY.astype("float64").sum(1, keepdims=True), rtol=0, atol=1e-6)
