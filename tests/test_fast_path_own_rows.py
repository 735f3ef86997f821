"""Small calls whose weight or bias differs from row to row take the fast path from the second on."""

import threading

import numpy as np
import pytest
import torch

import anynorm
from anynorm._kernels.cpu.fast_path import kept
from tests import reference
from tests.backends import ALL, as_dtype, needs_llvmlite
from tests.fast_path import forced, takes_fast_path
from tests.tolerances import assert_exact

pytestmark = needs_llvmlite

# Shapes of x, weight and bias, and the normalized axes.
CASES = {
    "heads": ((1, 3, 4, 32), (1, 1, 4, 32), (1, 1, 4, 32), -1),
    "samples": ((3, 5, 33), (3, 1, 33), None, -1),
    "a bias alone": ((3, 5, 32), None, (3, 1, 32), 2),
    "one weight, a bias for heads": ((3, 5, 32), (32,), (1, 5, 32), -1),
    "columns": ((3, 7, 40), (3, 7, 1), (3, 7, 1), 1),
    "short rows": ((2, 9, 4, 3), (1, 1, 4, 3), None, -1),
}


def numbers(shape, dtype="float32", seed=0):
    return None if shape is None else as_dtype(np.random.default_rng(seed).standard_normal(shape), dtype)


def made(case, dtype="float32", seed=0):
    return [numbers(shape, dtype, seed + i) for i, shape in enumerate(CASES[case][:3])]


def bits(array):
    return np.ascontiguousarray(array).view(np.uint8)


@pytest.mark.parametrize("dtype", ALL)
@pytest.mark.parametrize("case", CASES)
def test_the_bits_of_the_slow_path(case, dtype):
    axis = CASES[case][3]
    for norm in (anynorm.layer_norm, anynorm.rms_norm):
        for seed in range(2):
            given = made(case, dtype, seed)
            expected = forced(norm, *given, axis=axis)
            norm(*given, axis=axis)
            assert takes_fast_path(norm, *given, axis=axis)
            np.testing.assert_array_equal(bits(norm(*given, axis=axis)), bits(expected))
            out = np.empty_like(given[0])
            norm(*given, axis=axis, out=out)
            out[...] = 0
            assert takes_fast_path(norm, *given, axis=axis, out=out)
            np.testing.assert_array_equal(bits(out), bits(expected))


@pytest.mark.parametrize("case", CASES)
def test_sums_and_tensors(case):
    axis, given = CASES[case][3], made(case)
    residual = numbers(given[0].shape, seed=7)
    expected = forced(anynorm.add_rms_norm, given[0], residual, *given[1:], axis=axis)
    for _ in range(2):
        found = anynorm.add_rms_norm(given[0], residual, *given[1:], axis=axis)
    assert takes_fast_path(anynorm.add_rms_norm, given[0], residual, *given[1:], axis=axis)
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(one, other)
    tensors = [None if one is None else torch.from_numpy(one) for one in given]
    for _ in range(2):
        y = anynorm.layer_norm(*tensors, axis=axis)
    assert takes_fast_path(anynorm.layer_norm, *tensors, axis=axis)
    np.testing.assert_array_equal(y.numpy(), forced(anynorm.layer_norm, *given, axis=axis))


def test_results_are_those_of_exact_arithmetic():
    x, weight, bias = made("heads")
    for eps in (1e-5, 0.5):
        for _ in range(2):
            y = anynorm.layer_norm(x, weight, bias, eps=eps)
        assert takes_fast_path(anynorm.layer_norm, x, weight, bias, eps=eps)
        expected = [
            reference.layer_norm(row, weight.reshape(4, -1)[i % 4], bias.reshape(4, -1)[i % 4], eps)
            for i, row in enumerate(x.reshape(-1, 32))
        ]
        assert_exact(y.reshape(-1, 32), expected, backend="numpy", dtype="float32", norm="layer_norm")


def test_tensors_that_require_a_gradient():
    x, weight, bias = made("heads")
    expected = anynorm.layer_norm_vjp(x, weight, bias)[1](x)
    given = [torch.from_numpy(one).requires_grad_() for one in (x, weight, bias)]
    for _ in range(2):
        anynorm.layer_norm(*given)
    assert takes_fast_path(anynorm.layer_norm, *given)
    anynorm.layer_norm(*given).backward(torch.from_numpy(x))
    for one, gradient in zip(given, expected, strict=True):
        np.testing.assert_array_equal(one.grad.numpy(), gradient)


def test_rows_and_weights_that_float32_cannot_hold():
    """Also where the call that is remembered was such a one."""
    x, weight, bias = made("heads")
    for change in ((0, 0, 0, 0), (0, 2, 3, 31)):
        for at, value in ((x, 1e30), (weight, 1e30)):
            kept.table.clear()
            before, at[change if at is x else (0, 0, 0, 0)] = at.copy(), value
            expected = forced(anynorm.rms_norm, x, weight, bias)
            for _ in range(3):
                np.testing.assert_array_equal(anynorm.rms_norm(x, weight, bias), expected)
            at[...] = before
            expected = forced(anynorm.rms_norm, x, weight, bias)
            for _ in range(3):
                np.testing.assert_array_equal(anynorm.rms_norm(x, weight, bias), expected)


def test_in_place_takes_the_slow_path():
    x, weight, bias = made("heads")
    expected = anynorm.rms_norm(x, weight, bias)
    for out in (x.copy(), np.concatenate([x, x])):
        given = out[:1]
        anynorm.rms_norm(given.copy(), weight, bias, out=np.empty_like(given))
        assert not takes_fast_path(anynorm.rms_norm, given, weight, bias, out=given)
        np.testing.assert_array_equal(bits(anynorm.rms_norm(x, weight, bias)), bits(expected))
    # Nor may it share memory with a weight.
    with pytest.raises(ValueError, match="share no memory with weight"):
        anynorm.rms_norm(x[:, :1], weight, bias, out=weight)


def test_arguments_are_checked_as_strictly():
    x, weight, bias = made("heads")
    for _ in range(2):
        anynorm.rms_norm(x, weight, bias)
    readonly = np.empty_like(x)
    readonly.flags.writeable = False
    for options in ({"eps": -1.0}, {"eps": float("nan")}, {"eps": float("inf")}, {"out": readonly}, {"axis": 4}):
        with pytest.raises(ValueError, match="must"):
            anynorm.rms_norm(x, weight, bias, **options)
    for wrong in (weight.tolist(), weight.astype(int), torch.from_numpy(weight)):
        with pytest.raises(TypeError, match="weight must"):
            anynorm.rms_norm(x, wrong, bias)


def test_what_is_unlike_takes_the_slow_path():
    x, weight, bias = made("heads")
    anynorm.rms_norm(x, weight, bias)
    assert takes_fast_path(anynorm.rms_norm, x, weight, bias)
    for other in (weight.astype(np.float64), weight[..., :1, :], np.asfortranarray(weight), weight.astype(">f4")):
        assert not takes_fast_path(anynorm.rms_norm, x, other, bias)
    for other in (x[:, :2], np.asfortranarray(x), x.view(np.memmap)):
        assert not takes_fast_path(anynorm.rms_norm, other, weight, bias)
    assert not takes_fast_path(anynorm.rms_norm, x, weight, bias, weight_offset=1.0)
    assert not takes_fast_path(anynorm.rms_norm, x, weight, bias, eps=1)
    with anynorm.use_kernel("definition"):
        assert not takes_fast_path(anynorm.rms_norm, x, weight, bias)


@pytest.mark.parametrize(
    ("shape", "dtype", "threads", "is_known"),
    [
        ((127, 8, 128), "float32", 2, True),
        ((128, 8, 128), "float32", 2, False),  # 512 KB and more are shared among threads
        ((128, 8, 128), "float32", 1, True),
        ((1023, 8, 128), "float32", 1, True),
        ((1024, 8, 128), "float32", 1, False),  # results of 4 MB are made in huge pages
        ((2, 256, 2), "float64", 2, True),
        ((2, 257, 2), "float64", 2, False),  # more groups than the program has memory for
    ],
)
def test_which_sizes_take_it(shape, dtype, threads, is_known):
    x, weight = numbers(shape, dtype), numbers((1, *shape[1:]), dtype, 1)
    expected = forced(anynorm.rms_norm, x, weight)
    try:
        anynorm.set_threads(threads)
        anynorm.rms_norm(x, weight)
        assert takes_fast_path(anynorm.rms_norm, x, weight) == is_known
        np.testing.assert_array_equal(anynorm.rms_norm(x, weight), expected)
    finally:
        anynorm.set_threads(None)


def test_many_plans_and_threads():
    given = made("samples")
    anynorm.rms_norm(*given)
    expected, wrong = anynorm.rms_norm(*given), []

    def work():
        for _ in range(200):
            if not np.array_equal(anynorm.rms_norm(*given), expected):
                wrong.append(True)
            kept.table.clear()

    workers = [threading.Thread(target=work) for _ in range(4)]
    for one in workers:
        one.start()
    for one in workers:
        one.join()
    assert not wrong
    for i in range(1, kept.MOST_KEPT + 3):
        anynorm.rms_norm(np.ones((i, 16), np.float32), np.ones((i, 16), np.float32))
        assert len(kept.table) <= kept.MOST_KEPT


def test_an_axis_that_x_does_not_have_is_refused_after_such_a_call():
    x, weight = numbers((1, 3, 4, 32)), numbers((1, 1, 4, 32))
    for _ in range(2):
        anynorm.rms_norm(x, weight, axis=3)
    for axis in (4, 7, -5):
        with pytest.raises(ValueError, match="axis"):
            anynorm.rms_norm(x, weight, axis=axis)
