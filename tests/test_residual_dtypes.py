"""A residual of another dtype than x: the sum has the wider one, y has x's, on every library."""

import itertools
from unittest import mock

import mpmath
import numpy as np
import pytest

import anynorm
from anynorm._kernels.cpu.launch import mixed
from tests import reference
from tests.backends import ALL, BACKENDS, TORCH, as_dtype, needs_llvmlite, thorough_but
from tests.test_errors import refuses
from tests.tolerances import assert_exact, is_narrow

WIDER = {frozenset(("float16", "bfloat16")): "float32"}
PAIRS = list(itertools.permutations(ALL, 2))
SOME = (("bfloat16", "float32"), ("float32", "bfloat16"), ("float16", "bfloat16"), ("float32", "float64"))
ADDS = {"layer_norm": anynorm.add_layer_norm, "rms_norm": anynorm.add_rms_norm}
VJPS = {"layer_norm": anynorm.add_layer_norm_vjp, "rms_norm": anynorm.add_rms_norm_vjp}


def dtype_of_sum(pair):
    return WIDER.get(frozenset(pair)) or max(pair, key=lambda one: int(one.lstrip("bfloat")))


def made(pair, shape=(6, 9)):
    """x, the residual, a weight, and gradients by y and by the sum."""
    rng = np.random.default_rng(len(pair[0]))
    dtypes = (*pair, "float32", pair[0], dtype_of_sum(pair))
    shapes = (shape, shape, shape[-1:], shape, shape)
    return [as_dtype(rng.standard_normal(of) * 3, dtype) for of, dtype in zip(shapes, dtypes, strict=True)]


def knows(backend, pair):
    return {*pair, dtype_of_sum(pair)} <= set(backend.dtypes)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("pair", thorough_but(*SOME, of=PAIRS), ids="+".join)
def test_sum_and_norm(pair, backend):
    if not knows(backend, pair):
        return
    x, residual, weight, *_ = made(pair)
    for norm, add in ADDS.items():
        with backend.context():
            y, total = map(backend.read, add(*map(backend.make, (x, residual, weight)), eps=1e-5))
        assert (y.dtype, total.dtype) == (pair[0], dtype_of_sum(pair))
        with np.errstate(all="ignore"):
            np.testing.assert_array_equal(total, x.astype(total.dtype) + residual.astype(total.dtype))
        exact = [getattr(reference, norm)(row, weight, eps=1e-5) for row in total]
        # Dask and the kernels round to the dtype of the sum first.
        assert_exact(y, exact, backend=backend.name, dtype=pair[0], norm=norm)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("pair", thorough_but(*SOME[:3], of=PAIRS), ids="+".join)
def test_gradients(pair, backend):
    if not knows(backend, pair):
        return
    x, residual, weight, dy, dtotal = made(pair)
    for norm, vjp in VJPS.items():
        with backend.context():
            given = map(backend.make, (x, residual, weight))
            (_, total), pullback = vjp(*given, eps=1e-5)
            total = backend.read(total)
            dx, dresidual, dweight, _ = pullback(backend.make(dy), backend.make(dtotal))
            dx, dresidual, dweight = map(backend.read, (dx, dresidual, dweight))
        assert (dx.dtype, dresidual.dtype, dweight.dtype) == (*pair, "float32")
        # At the dtype of the sum: what comes after is to round to the dtypes of both.
        wide = dtype_of_sum(pair)
        rows = [reference.gradient(norm, row, of_y, weight, 1e-5)[0] for row, of_y in zip(total, dy, strict=True)]
        for got, dtype in ((dx, pair[0]), (dresidual, pair[1])):
            for row, exact, more in zip(got, rows, dtotal, strict=True):
                size = mpmath.sqrt(sum(one.magnitude**2 for one in exact))
                for value, one, added in zip(row, exact, more, strict=True):
                    right = one.value + mpmath.mpf(float(added))
                    bound = 0.51 * reference.ulp(abs(right), dtype) + 8 * reference.ulp(size + abs(right), wide)
                    bound += 8 * reference.ulp(size, "float32") if is_narrow(backend.name) else 0
                    assert abs(float(value) - right) <= bound


def test_in_place_and_out():
    for pair in PAIRS:
        x, residual, weight, *_ = made(pair)
        y, total = anynorm.add_rms_norm(x, residual, weight)
        outs = np.empty_like(y), np.empty_like(total)
        assert anynorm.add_rms_norm(x, residual, weight, out=outs)[0] is outs[0]
        np.testing.assert_array_equal(outs[0], y)
        np.testing.assert_array_equal(outs[1], total)
        kept = [x, residual if residual.dtype == total.dtype else np.empty_like(total)]
        anynorm.add_rms_norm(x, residual, weight, out=tuple(kept))
        np.testing.assert_array_equal(kept[0], y)
        np.testing.assert_array_equal(kept[1], total)


def test_what_does_not_fit():
    x, residual = np.ones((2, 3), np.float16), np.ones((2, 3), np.float32)
    outs = np.empty_like(x), np.empty_like(x)
    words = (
        "out[1] must have the sum's shape and dtype, (2, 3) of float32, got (2, 3) of float16; pass numpy.empty_like"
    )
    refuses(ValueError, words, anynorm.add_rms_norm, x, residual, out=outs)
    refuses(ValueError, "residual must have x's shape, (2, 3), got (3,)", anynorm.add_rms_norm, x, residual[0])
    refuses(TypeError, "residual must have one of the real floating", anynorm.add_rms_norm, x, residual.astype(int))
    _, pullback = anynorm.add_rms_norm_vjp(x, residual)
    refuses(ValueError, "dy must have y's shape and dtype, (2, 3) of float16", pullback, residual)
    refuses(ValueError, "dtotal must have x's shape and dtype, (2, 3) of float32", pullback, x, x)


def test_a_row_is_the_norm_of_the_sum_as_it_is_returned():
    # What cancels in the sum is gone, whatever its dtype.
    x, residual = as_dtype([[1.0, 2.0, 3.0]], "bfloat16"), as_dtype([[-1.0, -2.0, -3.0]], "float32")
    y, total = anynorm.add_layer_norm(x, residual, None, np.full(3, 0.5, np.float32))
    assert (total == 0).all()
    assert (y == 0.5).all()


def test_autograd():
    import torch

    x, residual, weight, dy, dtotal = made(("bfloat16", "float32"))

    tensors = [TORCH.make(one).requires_grad_() for one in (x, residual, weight)]
    y, total = anynorm.add_rms_norm(*tensors)
    torch.autograd.backward((y, total), (TORCH.make(dy), TORCH.make(dtotal)))
    _, pullback = anynorm.add_rms_norm_vjp(x, residual, weight)
    for tensor, expected in zip(tensors, pullback(dy, dtotal), strict=False):
        got = TORCH.read(tensor.grad)
        assert got.dtype == expected.dtype
        # Both are rounded once: of 16 bits they may differ by a unit, of float32 by 4 units at the largest of a row.
        room = {"rtol": 0, "atol": 2.0**-17} if got.dtype == np.float32 else {"rtol": 2.0**-7}
        np.testing.assert_allclose(got.astype(float), expected.astype(float), **room)


@needs_llvmlite
@pytest.mark.parametrize("pair", PAIRS, ids="+".join)
def test_kernels_give_the_bits_of_the_two_calls(pair):
    x, residual, weight, *_ = made(pair, (4, 5, 33))
    given = np.linspace(0.5, 1.5, 5 * 33, dtype=np.float32).reshape(1, 5, 33)
    for parameter, elements in itertools.product((weight, given), (1 << 18, 40)):
        with anynorm.use_kernel("cpu"), mock.patch.object(mixed, "_BLOCK_ELEMENTS", elements):
            y, total = anynorm.add_layer_norm(x, residual, parameter)
            with np.errstate(all="ignore"):
                expected = anynorm.layer_norm(total, parameter).astype(x.dtype)
        np.testing.assert_array_equal(y, expected)
