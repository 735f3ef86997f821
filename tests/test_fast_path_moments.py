"""Small calls of `moments` with a NumPy array take the fast path from the second on: the bits of the slow one."""

import threading

import numpy as np
import pytest

import anynorm
from anynorm._check import check
from anynorm._choose import choose
from anynorm._definition.norms import RMS_NORM
from anynorm._kernels.cpu.fast_path import kept
from anynorm._moments import arrays_of
from tests.backends import ALL, as_dtype, needs_llvmlite
from tests.fast_path import forced, takes_fast_path

pytestmark = needs_llvmlite
AXES = [((6, 20), -1), ((6, 20), 0), ((6, 20), np.int64(1)), ((4, 5, 6), (0, 2)), ((4, 5, 6), [-1, 1]), ((20,), 0)]


def numbers(shape, dtype="float32", seed=0):
    return as_dtype(np.random.default_rng(seed).standard_normal(shape), dtype)


def bits(moments):
    return moments.count, [None if one is None else (one.shape, one.tobytes()) for one in arrays_of(moments)]


@pytest.mark.parametrize("dtype", ALL)
@pytest.mark.parametrize(("shape", "axis"), AXES, ids=str)
def test_the_bits_of_the_slow_path(shape, axis, dtype):
    for seed in range(2):
        x = numbers(shape, dtype, seed)
        for held in (x, np.asfortranarray(x), np.repeat(x, 2, axis=0)[::2], x[::-1]):
            expected = bits(forced(anynorm.moments, held, axis=axis))
            first = anynorm.moments(held, axis=axis)
            assert takes_fast_path(anynorm.moments, held, axis=axis)
            assert bits(first) == bits(anynorm.moments(held, axis=axis)) == expected
            anynorm.moments(held * 2, axis=axis)
            assert bits(first) == expected


def test_moments_without_a_mean_are_of_other_calls():
    """Of pieces of rows that rms_norm is to merge; they are formed by the same function."""
    call = check(RMS_NORM, numbers((6, 21)) + 1.0, None, None, -1, 0.0)
    for _ in range(2):
        assert not choose(call).moments(call).mean.any()
    for _ in range(3):
        np.testing.assert_allclose(anynorm.moments(call.x).mean, call.x.mean(1, dtype=np.float64, keepdims=True))


def test_results_are_those_of_exact_arithmetic():
    x = np.float32([[1.0, 2.0, 3.0, 6.0], [-5.0, -5.0, -5.0, -5.0], [2.0**60, -(2.0**60), 0.0, 0.0]])
    for _ in range(3):
        found = anynorm.moments(x)
    assert takes_fast_path(anynorm.moments, x)
    assert (found.count, found.mean.ravel().tolist()) == (4, [3.0, -5.0, 0.0])
    assert found.variance.ravel().tolist() == [3.5, 0.0, 2.0**119]


def test_arguments_are_checked_as_strictly():
    x = numbers((6, 20))
    for axis in (0, 1, (0, 1)):
        anynorm.moments(x, axis=axis)
    for axis in (2, -3, True, 1.0, None, (), (0, 0), (0, -2), (True,)):
        with pytest.raises((TypeError, ValueError), match="axis must"):
            anynorm.moments(x, axis=axis)
    with pytest.raises(TypeError, match="skip_nan must"):
        anynorm.moments(x, axis=0, skip_nan=0)
    for wrong in (x.astype(int), x.tolist(), x.astype(complex)):
        with pytest.raises(TypeError, match="x must"):
            anynorm.moments(wrong, axis=0)


def test_what_is_unlike_takes_the_slow_path():
    x = numbers((7, 23))
    anynorm.moments(x)
    assert takes_fast_path(anynorm.moments, x)
    unlike = (x[1:], x[:, 1:], np.asfortranarray(x), x.astype(">f4"), x.astype(np.float16), x.view(np.memmap), x[None])
    for other in unlike:
        assert not takes_fast_path(anynorm.moments, other)
    assert not takes_fast_path(anynorm.moments, x, skip_nan=True)
    with anynorm.use_kernel("definition"):
        assert not takes_fast_path(anynorm.moments, x)


@pytest.mark.parametrize(("rows", "is_short"), [(127, True), (128, False)])
def test_arrays_that_threads_share_take_the_slow_path(rows, is_short):
    """Those of 512 KB and more."""
    x = numbers((rows, 1024))
    expected = bits(anynorm.moments(x))
    assert takes_fast_path(anynorm.moments, x) == is_short
    assert bits(anynorm.moments(x)) == expected


@pytest.mark.parametrize("axis", [0, 1])
def test_rows_of_float64_of_extreme_magnitude(axis):
    """Among ordinary ones: side by side the slow path takes them up again."""
    x, mixed = numbers((20, 20), "float64"), numbers((20, 20), "float64", 1)
    mixed[3], mixed[:, 7] = mixed[3] * 1e200, mixed[:, 7] * 1e-200
    anynorm.moments(x, axis=axis)
    for held in (mixed, x, mixed):
        expected = bits(forced(anynorm.moments, held, axis=axis))
        for _ in range(2):
            assert bits(anynorm.moments(held, axis=axis)) == expected


def test_no_more_plans_than_there_may_be(monkeypatch):
    kept.table.clear()
    monkeypatch.setattr(kept, "MOST_KEPT", 2)
    for features, count in ((2, 1), (3, 2), (4, 1)):
        x = numbers((3, features))
        anynorm.moments(x)
        assert len(kept.table) == count
        assert takes_fast_path(anynorm.moments, x)


def test_threads_that_drop_the_plans_of_each_other(monkeypatch):
    kept.table.clear()
    monkeypatch.setattr(kept, "MOST_KEPT", 2)
    held = [numbers((columns, 9)).T for columns in range(20, 26)]
    expected, wrong = [bits(forced(anynorm.moments, x)) for x in held], []

    def call(first):
        for turn in range(200):
            place = (first + turn) % len(held)
            if bits(anynorm.moments(held[place])) != expected[place]:
                wrong.append(place)

    threads = [threading.Thread(target=call, args=(first,)) for first in range(4)]
    for one in threads:
        one.start()
    for one in threads:
        one.join()
    assert not wrong
