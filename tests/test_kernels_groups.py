"""Weights that differ from row to row, by the CPU kernels: each row has the bits that its own weight gives alone."""

import itertools
import math
from unittest import mock

import numpy as np
import pytest

import anynorm
from anynorm._kernels.cpu.launch import groups, turns
from tests.backends import ALL, as_dtype, needs_llvmlite, thorough_but
from tests.fast_path import shared_from
from tests.kernel_rows import LARGEST, extreme_rows, numbers

pytestmark = needs_llvmlite
NORMS = ("layer_norm", "rms_norm")
# x, weight, bias and axis, and whether rows take turns; with a number for each row, those of float64 do not.
SHAPES = {
    "heads": ((2, 9, 4, 33), (1, 1, 4, 33), (1, 1, 4, 33), -1, True),
    "heads, and one bias": ((2, 9, 4, 33), (1, 1, 4, 33), (33,), -1, True),
    "heads, one weight, and no other axis": ((40, 33), (1, 33), (40, 33), -1, True),
    "samples": ((4, 20, 33), (4, 1, 33), None, -1, True),
    "samples and heads": ((3, 17, 2, 33), (3, 1, 2, 33), (3, 1, 2, 33), -1, False),
    "a bias for samples, a weight for heads": ((3, 17, 2, 33), (1, 1, 2, 33), (3, 1, 1, 33), -1, False),
    "short rows": ((2, 9, 4, 3), (1, 1, 4, 3), None, -1, False),
    "columns": ((3, 7, 40), (3, 7, 1), (3, 7, 1), 1, False),
    "rows side by side, a weight each": ((7, 40), (7, 40), (1, 40), 0, False),
    "channels": ((2, 3, 5, 8), (1, 3, 1, 1), (1, 3, 1, 1), (2, 3), True),
    "a weight for channels, a bias for samples too": ((2, 3, 5, 8), (1, 3, 1, 1), (2, 3, 1, 1), (2, 3), False),
    "rows of their own": ((20, 33), (20, 33), (20, 33), -1, True),
    "one number": ((20, 33), (1, 1), None, -1, True),
    "a part of the features": ((5, 3, 16), (5, 3, 1), (5, 1, 16), (1, 2), False),
}


def made(name, dtype):
    shape, of_weight, of_bias, axis, _ = SHAPES[name]
    x, weight, bias = (None if one is None else numbers(one, dtype, 7) for one in (shape, of_weight, of_bias))
    return x, weight, bias, axis


def one_by_one(norm, x, weight, bias, axis, **options):
    """The same, row by row, each with a weight and a bias of the shape of the normalized axes."""
    axes = tuple(one % x.ndim for one in ((axis,) if isinstance(axis, int) else axis))
    free = [i for i in range(x.ndim) if i not in axes]
    y, given = np.empty_like(x), []
    for one in (weight, bias):
        if one is not None and one.ndim < x.ndim:
            one = np.expand_dims(one, free)
        given.append(None if one is None else np.broadcast_to(one, x.shape))
    for places in itertools.product(*(range(x.shape[i]) for i in free)):
        at = tuple(slice(None) if i in axes else places[free.index(i)] for i in range(x.ndim))
        y[at] = norm(
            x[at], *(None if one is None else one[at].copy() for one in given), axis=tuple(range(len(axes))), **options
        )
    return y


def bits(array):
    return np.ascontiguousarray(array).view(np.uint8)


@pytest.mark.parametrize("dtype", thorough_but("bfloat16", "float32", of=ALL))
@pytest.mark.parametrize("name", SHAPES)
def test_each_row_has_the_bits_of_its_own_weight(name, dtype):
    x, weight, bias, axis = made(name, dtype)
    for norm, options in itertools.product(NORMS, ({}, {"weight_offset": 1.0})):
        function = getattr(anynorm, norm)
        with mock.patch.object(turns, "run", wraps=turns.run) as in_turns, anynorm.use_kernel("cpu"):
            y = function(x, weight, bias, axis=axis, **options)
        are_numbers = math.prod(weight.shape) < x.shape[-1]
        assert in_turns.called == (SHAPES[name][4] and not (dtype == "float64" and are_numbers))
        np.testing.assert_array_equal(bits(y), bits(one_by_one(function, x, weight, bias, axis, **options)))
        out = x.copy()
        assert function(out, weight, bias, axis=axis, out=out, **options) is out
        np.testing.assert_array_equal(bits(out), bits(y))


@pytest.mark.parametrize("name", ["heads", "samples and heads", "columns"])
def test_wherever_it_lies_and_however_it_is_cut(name):
    x, weight, bias, axis = made(name, "float32")
    y = anynorm.layer_norm(x, weight, bias, axis=axis)
    wide = np.zeros((*x.shape[:-1], 2 * x.shape[-1]), x.dtype)
    apart, out = wide[..., ::2], np.empty_like(wide)[..., 1::2]
    apart[...] = x
    strided = [np.repeat(one, 2, axis=-1)[..., ::2] for one in (weight, bias)]
    np.testing.assert_array_equal(anynorm.layer_norm(apart, *strided, axis=axis, out=out), y)
    np.testing.assert_array_equal(anynorm.layer_norm(np.asfortranarray(x), weight, bias, axis=axis), y)
    sums = anynorm.add_layer_norm(x, x, weight, bias, axis=axis)
    np.testing.assert_array_equal(sums[1], x + x)
    np.testing.assert_array_equal(sums[0], anynorm.layer_norm(x + x, weight, bias, axis=axis))


def test_parameters_of_other_dtypes():
    x, weight, bias, _ = made("heads", "float32")
    for dtypes in (("float64", "float32"), ("float16", "bfloat16"), ("float32", "float64")):
        given = [as_dtype(one, dtype) for one, dtype in zip((weight, bias), dtypes, strict=True)]
        y = anynorm.rms_norm(x, *given)
        np.testing.assert_array_equal(y, one_by_one(anynorm.rms_norm, x, *given, -1))


@pytest.mark.parametrize("dtype", thorough_but("float32", of=ALL))
@pytest.mark.parametrize("name", ["heads", "samples and heads"])
def test_rows_and_weights_that_the_kernel_cannot_hold(name, dtype):
    x, weight, bias, _ = made(name, dtype)
    rows = extreme_rows(x.shape[-1], dtype)
    x.reshape(-1, x.shape[-1])[3 : 3 + 2 * len(rows) : 2] = rows
    for norm in NORMS:
        function = getattr(anynorm, norm)
        expected = one_by_one(function, x, weight, bias, -1)
        np.testing.assert_array_equal(bits(function(x, weight, bias)), bits(expected))
        out = x.copy()
        np.testing.assert_array_equal(bits(function(out, weight, bias, out=out)), bits(expected))
        large = weight.copy()
        large[..., 0, 1] = LARGEST[dtype]
        expected = one_by_one(function, x, large, bias, -1)
        np.testing.assert_array_equal(bits(function(x, large, bias)), bits(expected))


@pytest.mark.parametrize("name", SHAPES)
def test_tensors_and_threads(name):
    import torch

    x, weight, bias, axis = made(name, "float32")
    expected = anynorm.layer_norm(x, weight, bias, axis=axis)
    given = [None if one is None else torch.from_numpy(one) for one in (x, weight, bias)]
    np.testing.assert_array_equal(anynorm.layer_norm(*given, axis=axis).numpy(), expected)
    # As if it were large, in threads that share the groups or the rows of each.
    try:
        anynorm.set_threads(3)
        for least in (1, x.nbytes):
            with shared_from(least):
                np.testing.assert_array_equal(anynorm.layer_norm(x, weight, bias, axis=axis), expected)
    finally:
        anynorm.set_threads(None)


def test_repeated_weights_take_little_memory():
    x, weight = numbers((1, 12, 8, 6), "float32", 1), numbers((1, 12, 1, 1), "float32", 2)
    y, pullback = anynorm.rms_norm_vjp(x, weight, axis=(2, 3))
    gradients = pullback(x)
    for most in (0, 4 * 48, 5 * 4 * 48):
        with mock.patch.object(groups, "_MOST_REPEATED_NBYTES", most):
            np.testing.assert_array_equal(anynorm.rms_norm(x, weight, axis=(2, 3)), y)
            for got, expected in zip(pullback(x)[:2], gradients[:2], strict=True):
                np.testing.assert_array_equal(got, expected)


@pytest.mark.parametrize("name", SHAPES)
def test_gradients_by_rows(name):
    """dx has the bits of the row with its own weight; gradients of parameters do not depend on the threads."""
    x, weight, bias, axis = made(name, "float32")
    dy = numbers(x.shape, "float32", 9)
    dx, dweight, dbias = anynorm.rms_norm_vjp(x, weight, bias, axis=axis)[1](dy)

    def of_row(x, *given, axis):
        return anynorm.rms_norm_vjp(x[0], *given, axis=axis)[1](x[1])[0]

    axes = (axis,) if isinstance(axis, int) else axis
    free = [i for i in range(x.ndim) if i not in [one % x.ndim for one in axes]]
    for places in itertools.product(*(range(x.shape[i]) for i in free)):
        at = tuple(places[free.index(i)] if i in free else slice(None) for i in range(x.ndim))
        given = []
        for one in (weight, bias):
            one = np.expand_dims(one, free) if one is not None and one.ndim < x.ndim else one
            given.append(None if one is None else np.broadcast_to(one, x.shape)[at].copy())
        row = of_row((x[at], dy[at]), *given, axis=tuple(range(x.ndim - len(free))))
        np.testing.assert_array_equal(row, dx[at])
    try:
        anynorm.set_threads(3)
        with shared_from(1):
            shared = anynorm.rms_norm_vjp(x, weight, bias, axis=axis)[1](dy)
    finally:
        anynorm.set_threads(None)
    for got, expected in zip(shared, (dx, dweight, dbias), strict=True):
        assert got is expected or (got == expected).all()


def test_autograd_goes_through_the_kernels():
    import torch

    for name in SHAPES:
        x, weight, bias, axis = made(name, "float32")
        tensors = [None if one is None else torch.from_numpy(one).requires_grad_() for one in (x, weight, bias)]
        y = anynorm.layer_norm(*tensors, axis=axis)
        assert "Norm" in y.grad_fn.name()
        dy = numbers(x.shape, "float32", 9)
        y.backward(torch.from_numpy(dy))
        for got, expected in zip(tensors, anynorm.layer_norm_vjp(x, weight, bias, axis=axis)[1](dy), strict=True):
            assert got is None or (got.grad.numpy() == expected).all()


def test_as_many_numbers_as_features_are_no_weight_for_all_rows():
    import torch

    x, weight = torch.from_numpy(numbers((8, 3, 8), "float32", 1)), numbers((8, 1, 1), "float32", 2)
    given = torch.from_numpy(weight).requires_grad_()
    anynorm.rms_norm(x, given).backward(x)
    assert given.grad.shape == (8, 1, 1)
    expected = anynorm.rms_norm_vjp(x.numpy(), weight)[1](x.numpy())[1]
    np.testing.assert_array_equal(given.grad.numpy(), expected)
