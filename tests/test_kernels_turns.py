"""Rows that take turns with some weights, by the CPU kernels: both sides of each threshold, forward and backward."""

import itertools
from unittest import mock

import numpy as np
import pytest

import anynorm
from anynorm._kernels.cpu.launch import turns, turns_vjp
from tests.backends import ALL, needs_llvmlite, thorough_but
from tests.fast_path import shared_from
from tests.kernel_calls_derivative import streamed_pullback
from tests.kernel_rows import LARGEST, extreme_rows, numbers
from tests.test_kernels_groups import NORMS, bits, one_by_one

pytestmark = needs_llvmlite

EPSILON = {"float16": 2.0**-11, "bfloat16": 2.0**-8, "float32": 2.0**-24, "float64": 2.0**-53}  # of a rounding
# x, weight, bias and the normalized axes. Where there are up to 8 rounds of turns, the rows of a turn are taken in one
# go; elsewhere there are portions of 64 rows of a turn, and groups of 8 of them.
CASES = {
    "8 rounds": ((8, 3, 33), (1, 3, 33), (1, 3, 33), -1),
    "9 rounds": ((9, 3, 33), (1, 3, 33), (1, 3, 33), -1),
    "64 rounds": ((64, 2, 33), (1, 2, 33), None, -1),
    "two portions": ((65, 2, 33), (1, 2, 33), (1, 2, 33), -1),
    "8 rows repeat": ((10, 2, 8, 33), (1, 2, 1, 33), (1, 2, 1, 33), -1),
    "9 rows repeat": ((10, 2, 9, 33), (1, 2, 1, 33), None, -1),
    "3 rows repeat": ((11, 2, 3, 33), (1, 2, 1, 33), (1, 2, 1, 33), -1),
    "samples": ((17, 9, 33), (17, 1, 33), (17, 1, 33), -1),
    "one bias": ((9, 3, 33), (1, 3, 33), (33,), -1),
    "one weight": ((8, 3, 33), (33,), (1, 3, 33), -1),
    "a bias alone": ((20, 33), None, (20, 33), -1),
    "rows of their own": ((20, 33), (20, 33), (20, 33), -1),
    "a weight of their own": ((20, 33), (20, 33), None, -1),
    "rows of their own, and one bias": ((20, 33), (20, 33), (33,), -1),
    "a number for channels": ((9, 3, 5, 8), (1, 3, 1, 1), (1, 3, 1, 1), (2, 3)),
    "a number for rows": ((20, 33), (20, 1), None, -1),
    "a number, and a bias for rows": ((20, 33), (1, 1), (20, 1), -1),
    "a number for the bias alone": ((20, 33), None, (20, 1), -1),
}


def made(case, dtype):
    shape, weight, bias, axis = CASES[case]
    shapes = (shape, shape, weight, bias)
    return *(None if one is None else numbers(one, dtype, i) for i, one in enumerate(shapes)), axis


def vjp(norm, x, weight, bias, dy, **options):
    return getattr(anynorm, f"{norm}_vjp")(x, weight, bias, **options)[1](dy)


def dx_one_by_one(norm, x, dy, weight, bias, axis, **options):
    axes = tuple(one % x.ndim for one in ((axis,) if isinstance(axis, int) else axis))
    free, found = [i for i in range(x.ndim) if i not in axes], np.empty_like(x)
    whole = [None if one is None else np.broadcast_to(one, x.shape) for one in (weight, bias)]
    for places in itertools.product(*(range(x.shape[i]) for i in free)):
        given = [None if one is None else one[places].copy() for one in whole]
        own = tuple(range(len(axes)))
        found[places] = vjp(norm, x[places], *given, dy[places], axis=own, **options)[0]
    return found


def assert_sums(found, terms, sizes, dtype):
    """The sum of terms over the axes along which a gradient does not vary, up to what float32 rounds off."""
    shape = (1,) * (terms.ndim - found.ndim) + found.shape
    over = tuple(i for i in range(terms.ndim) if shape[i] == 1)
    exact, size = (one.sum(over).reshape(found.shape) for one in (terms, sizes))
    # Float64 is added up one by one, x_hat a few units beside it; float32 by 8 rows at most.
    of_sum = 2.0**-53 * (4 + terms.size // found.size) if dtype == "float64" else 2.0**-21
    assert (np.abs(found.astype(np.longdouble) - exact) <= 1.01 * EPSILON[dtype] * np.abs(exact) + of_sum * size).all()


@pytest.mark.parametrize("dtype", thorough_but("bfloat16", "float32", of=ALL))
@pytest.mark.parametrize("case", CASES)
def test_derivatives(case, dtype):
    x, dy, weight, bias, axis = made(case, dtype)
    for norm, offset in itertools.product(NORMS, (0.0, 1.0) if weight is not None else (0.0,)):
        with mock.patch.object(turns_vjp, "differentiate", wraps=turns_vjp.differentiate) as in_turns:
            dx, *gradients = vjp(norm, x, weight, bias, dy, axis=axis, weight_offset=offset)
        assert in_turns.called != (case.startswith("a number") and dtype == "float64")
        expected = dx_one_by_one(norm, x, dy, weight, bias, axis, weight_offset=offset)
        np.testing.assert_array_equal(bits(dx), bits(expected))
        wide, terms, centred = x.astype(np.longdouble), dy.astype(np.longdouble), norm == "layer_norm"
        wide = wide - wide.mean(axis, keepdims=True) * centred
        hat = wide / np.sqrt((wide**2).mean(axis, keepdims=True) + (1e-5 if centred else 1e-6))
        # Where x_hat is 0, or next to it, centring leaves an error beside 1.
        both = (terms * hat, np.abs(terms) * np.maximum(np.abs(hat), centred)), (terms, np.abs(terms))
        for found, parameter, of_sum in zip(gradients, (weight, bias), both, strict=True):
            assert (found is None) == (parameter is None)
            if found is not None:
                assert (found.shape, found.dtype) == (parameter.shape, parameter.dtype)
                assert_sums(found, *of_sum, dtype)


@pytest.mark.parametrize("dtype", thorough_but("float32", of=ALL))
@pytest.mark.parametrize("case", ["9 rounds", "samples", "rows of their own", "a number for channels"])
def test_derivatives_at_rows_that_float32_cannot_hold(case, dtype):
    """Among others, and with weights that it cannot hold, and that are 0."""
    x, dy, weight, bias, axis = made(case, dtype)
    extreme = extreme_rows(x[0].size if isinstance(axis, tuple) else x.shape[-1], dtype)
    rows = x.reshape(-1, np.prod([x.shape[i] for i in ((axis,) if isinstance(axis, int) else axis)]))
    if rows.shape[1] == extreme.shape[1]:
        rows[1 : 1 + 2 * len(extreme) : 2] = extreme
    for norm, value, offset in itertools.product(NORMS, (0.5, 0.0, LARGEST[dtype]), (0.0, 1.0)):
        weight.flat[-1] = value
        dx = vjp(norm, x, weight, bias, dy, axis=axis, weight_offset=offset)[0]
        np.testing.assert_array_equal(
            bits(dx), bits(dx_one_by_one(norm, x, dy, weight, bias, axis, weight_offset=offset))
        )


@pytest.mark.parametrize("case", CASES)
def test_derivatives_do_not_depend_on_threads_nor_on_what_is_wanted(case):
    import torch

    x, dy, weight, bias, axis = made(case, "float32")
    expected = vjp("layer_norm", x, weight, bias, dy, axis=axis)
    tensors = [None if one is None else torch.from_numpy(one) for one in (x, weight, bias, dy)]
    found = [vjp("layer_norm", *tensors, axis=axis)]
    total = numbers(x.shape, "float32", 9)
    add_vjp = anynorm.add_layer_norm_vjp(x, np.zeros_like(x), weight, bias, axis=axis)[1]
    of_sum = add_vjp(dy, total)
    try:
        anynorm.set_threads(3)
        with shared_from(1):
            found.append(vjp("layer_norm", x, weight, bias, dy, axis=axis))
    finally:
        anynorm.set_threads(None)
    for one in found:
        for got, like in zip(one, expected, strict=True):
            assert (got is None) == (like is None)
            assert got is None or np.array_equal(np.asarray(got), like)
    np.testing.assert_allclose(of_sum[0], expected[0] + total, rtol=0, atol=1e-5)
    wanted = torch.from_numpy(x).requires_grad_()
    anynorm.layer_norm(wanted, *tensors[1:3], axis=axis).backward(tensors[3])  # of x alone
    np.testing.assert_array_equal(wanted.grad.numpy(), expected[0])


def test_gradients_that_are_not_of_the_dtype_of_x():
    """What each row has for itself, and what is added up, in a dtype of its own."""
    x, dy, weight, bias, _ = made("rows of their own", "float16")
    for dtypes in (("float32", "float16"), ("float64", "float32")):
        given = [one.astype(dtype) for one, dtype in zip((weight, bias), dtypes, strict=True)]
        dx, dweight, dbias = vjp("rms_norm", x, *given, dy)
        assert (dweight.dtype, dbias.dtype) == dtypes
        np.testing.assert_array_equal(dx, dx_one_by_one("rms_norm", x, dy, *given, -1))
        np.testing.assert_array_equal(dbias, dy)


def test_a_gradient_is_rounded_once():
    """By way of float32, as torch casts to float16, this sum would become the middle of two numbers, and 1."""
    import torch

    dy = np.zeros((20, 33), np.float16)
    dy[:3, 0] = 1.0, 2.0**-11, 2.0**-24
    x, weight, bias = numbers(dy.shape, "float16", 1), numbers((20, 1), "float16", 2), numbers((1, 1), "float16", 3)
    for make in (np.asarray, torch.from_numpy):
        _, _, dbias = vjp("layer_norm", *map(make, (x, weight, bias, dy)))
        assert np.asarray(dbias) == 1.0 + 2.0**-10


@pytest.mark.parametrize(
    ("shape", "of_weight", "axis", "dtype", "expected"),
    [
        ((15, 300), (15, 300), -1, "float32", turns.OF_TURN),
        ((4, 31), (4, 31), -1, "float16", None),  # shorter than lanes
        ((4, 32), (4, 32), -1, "float16", turns.OF_TURN),
        ((15, 15), (15, 15), -1, "float32", None),
        ((4, 5, 16), (4, 1, 16), -1, "float32", turns.OF_TURN),
        ((2, 4, 5, 16), (2, 1, 5, 16), -1, "float32", None),  # 4 lies between what varies
        ((2, 1, 5, 16), (2, 1, 5, 16), -1, "float32", turns.OF_TURN),
        ((4, 5, 16), (4, 1, 1), -1, "float32", turns.NUMBERS),
        ((4, 5, 16), (1, 1, 1), -1, "float32", turns.NUMBERS),
        ((4, 4, 4), (4, 4, 1), (1, 2), "float32", None),  # for some features
        ((4, 5, 16), (4, 1, 1), -1, "float64", None),
        ((4, 8), (4, 8), -1, "float64", turns.OF_TURN),
        ((4, 8, 5), (4, 8, 1), 1, "float64", None),  # they do not lie one after the other
    ],
)
def test_which_rows_take_turns(shape, of_weight, axis, dtype, expected):
    x, weight = numbers(shape, dtype, 1), numbers(of_weight, dtype, 2)
    with (
        mock.patch.object(turns, "run", wraps=turns.run) as in_turns,
        mock.patch.object(turns_vjp, "differentiate", wraps=turns_vjp.differentiate) as backward,
    ):
        y, pullback = anynorm.rms_norm_vjp(x, weight, axis=axis)
        pullback(x)
    for calls in (in_turns, backward):
        assert [args.args[-1 if calls is backward else 1].parameters for args in calls.call_args_list] == [expected] * (
            expected is not None
        )
    np.testing.assert_array_equal(bits(y[:4]), bits(one_by_one(anynorm.rms_norm, x[:4], weight[:4], None, axis)))


@pytest.mark.parametrize(("rows", "least_nbytes", "is_direct"), [(16, 1, False), (15, 1, True), (16, 1 << 19, True)])
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_weights_of_16_bits_are_read_as_they_are_or_widened(rows, least_nbytes, is_direct, dtype):
    """As they are where there are less than 16 rows for each, and where the call is a small one."""
    x, weight = numbers((rows, 3, 33), dtype, 1), numbers((1, 3, 33), dtype, 2)
    for norm in NORMS:
        function = getattr(anynorm, norm)
        with (
            shared_from(least_nbytes),
            mock.patch.object(turns, "_pays_to_read_directly", wraps=turns._pays_to_read_directly) as asked,
            mock.patch.object(turns.crew, "launch", wraps=turns.crew.launch) as launched,
            anynorm.use_kernel("cpu"),
        ):
            y = function(x, weight)
        assert asked.called
        assert bool(launched.call_args.args[1].direct) == is_direct
        np.testing.assert_array_equal(bits(y), bits(one_by_one(function, x, weight, None, -1)))


@pytest.mark.parametrize("dtype", thorough_but("float32", "float16", of=ALL))
def test_one_weight_among_rows_of_their_own_that_float32_cannot_hold(dtype):
    x, weight = numbers((20, 33), dtype, 1), numbers((20, 33), dtype, 2)
    for value in (LARGEST[dtype], np.inf, 0.0):
        weight[7, 3] = value
        for norm in NORMS:
            function = getattr(anynorm, norm)
            expected = one_by_one(function, x, weight, None, -1)
            for _ in range(2):  # the second by the fast path
                np.testing.assert_array_equal(bits(function(x, weight)), bits(expected))


@pytest.mark.parametrize("case", ["8 rounds", "9 rounds", "rows of their own", "a number for rows"])
def test_derivatives_that_are_streamed(case):
    x, dy, weight, bias, axis = made(case, "float32")
    pullback = anynorm.layer_norm_vjp(x, weight, bias, axis=axis)[1]
    expected = pullback(dy)
    for at in (0, 1):
        for got, like in zip(streamed_pullback(pullback, dy, at), expected, strict=True):
            assert got is like or np.array_equal(got, like)
