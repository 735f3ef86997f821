"""Rows without a norm worth the name: zeros, constants, NaN, Inf, nothing."""

import numpy as np
import pytest

import anynorm
from tests.backends import BACKENDS, NUMPY, as_dtype

every_backend = pytest.mark.parametrize("backend", BACKENDS)
every_eps = pytest.mark.parametrize("eps", [0.0, 1e-5, 5e-324, 1e-160])
NORMS = ("layer_norm", "rms_norm", "scale_norm")
BIAS = [0.5, -1.25, 3.0, 0.0, 2.0]


def run(backend, norm, values, dtype, eps, with_bias=False):
    with backend.context():
        x = backend.make(as_dtype(values, dtype))
        if norm == "scale_norm":
            return backend.read(anynorm.scale_norm(x, eps=eps))
        bias = backend.make(as_dtype(BIAS, dtype)) if with_bias else None
        return backend.read(getattr(anynorm, norm)(x, bias, bias, eps=eps)).astype(np.float64)


@every_backend
@every_eps
def test_zero_rows_give_bias_or_zero(backend, eps):
    for dtype in backend.dtypes:
        zeros = np.zeros((2, 5))
        for norm in NORMS:
            assert (run(backend, norm, zeros, dtype, eps) == 0).all()
        for norm in NORMS[:2]:
            assert (run(backend, norm, zeros, dtype, eps, with_bias=True) == BIAS).all()


@every_backend
@pytest.mark.parametrize("eps", [0.0, 1e-5, 1e-160])
@pytest.mark.parametrize("value", [0.1, -3.0, 1e4])
@pytest.mark.parametrize("features", [1, 3, 1000])
def test_constant_rows_give_exactly_zero_in_layer_norm(backend, eps, value, features):
    for dtype in backend.dtypes:
        y = run(backend, "layer_norm", np.full((2, features), value), dtype, eps)
        assert (y == 0).all()


@every_backend
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("eps", [0.0, 1e-5])
def test_a_row_with_nan_or_inf_is_nan_throughout(backend, norm, value, eps):
    for dtype in backend.dtypes:
        values = np.ones((3, 5)) * np.arange(1, 6)
        values[1, 2] = value
        y = run(backend, norm, values, dtype, eps)
        assert np.isnan(y[1]).all()
        assert np.isfinite(y[[0, 2]]).all()


@every_backend
@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("shape", [(0, 5), (3, 0), (0, 0), (0,), (2, 0, 5)])
def test_empty_arrays_stay_empty(backend, norm, shape):
    for dtype in backend.dtypes:
        with backend.context():
            y = getattr(anynorm, norm)(backend.make(as_dtype(np.zeros(shape), dtype)))
            assert tuple(y.shape) == shape
            assert backend.read(y).dtype == as_dtype([], dtype).dtype


def test_empty_parameters_and_out():
    empty = np.zeros((4, 0), np.float32)
    out = np.zeros((4, 0), np.float32)
    assert anynorm.layer_norm(empty, empty[0], empty[0], out=out) is out
    y, total = anynorm.add_rms_norm(empty, empty)
    assert y.shape == total.shape == (4, 0)


@pytest.mark.parametrize("eps", [0.0, 1e-5])
@pytest.mark.parametrize("norm", NORMS)
def test_gradients_at_degenerate_rows_are_finite_and_as_stated(norm, eps):
    import torch

    for dtype in (torch.float32, torch.float64):
        x = torch.zeros((2, 3), dtype=dtype)
        x[1] = torch.asarray([1.0, 2.0, 4.0])
        x.requires_grad_(True)
        getattr(anynorm, norm)(x, eps=eps).backward(torch.ones((2, 3), dtype=dtype) * torch.asarray([1.0, 2.0, 3.0]))
        slope = {"layer_norm": [-1.0, 0.0, 1.0], "rms_norm": [1.0, 2.0, 3.0], "scale_norm": [1.0, 2.0, 3.0]}[norm]
        size = 0.0 if eps == 0 else 1 / eps if norm == "scale_norm" else eps**-0.5
        expected = torch.asarray(slope, dtype=dtype) * size
        torch.testing.assert_close(x.grad[0], expected, rtol=1e-6, atol=0)
        assert torch.isfinite(x.grad[1]).all()


def test_gradients_of_a_nan_row_stay_in_that_row():
    import jax
    import jax.numpy as jnp

    x = jnp.asarray([[1.0, jnp.nan, 2.0], [1.0, 3.0, 2.0]], dtype=jnp.float32)
    for norm in NORMS:
        gradient = np.asarray(jax.grad(lambda a, norm=norm: getattr(anynorm, norm)(a)[1].sum())(x))
        assert np.isfinite(gradient[1]).all()


def test_an_empty_batch_trains():
    import torch

    x = torch.zeros((0, 4), requires_grad=True)
    weight = torch.ones(4, requires_grad=True)
    anynorm.layer_norm(x, weight).sum().backward()
    assert x.grad.shape == (0, 4)
    assert (weight.grad == 0).all()


def test_no_warning_is_printed_for_nan(recwarn):
    anynorm.layer_norm(NUMPY.make(np.asarray([[np.nan, np.inf]], np.float32)))
    assert not recwarn.list
