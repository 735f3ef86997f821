"""Sums of the definition against exact ones, on either side of where they are formed another way."""

import math
from fractions import Fraction

import numpy as np
import pytest

from anynorm._definition import sums

DIGITS = {"float32": 24, "float64": 53}
# XLA adds in lanes from 4096 elements on, and before that here in blocks of 64, from 128 terms on.
LENGTHS = (1, 2, 3, 63, 127, 128, 129, 1000)


def rows(count, dtype):
    """Rows whose sums round the same way at each step, and others."""
    rng = np.random.default_rng(count)
    one = np.zeros(count)
    one[count // 2] = 1.0
    beside = np.full(count, 1 / count)
    beside[-1] = 1.0
    signs = rng.choice([-1.0, 1.0], count)
    signs[0] = 64.0
    return np.stack([one - 1 / count, beside, signs, rng.standard_normal(count), np.full(count, 0.1)]).astype(dtype)


def squares_of(row):
    return sum((Fraction(float(v)) ** 2 for v in row if v), Fraction(0))


def off_by(found, exact, digits):
    """The error in units of rounding."""
    return float(abs(Fraction(float(found)) - exact) / exact * 2**digits) if exact else float(found != 0.0)


def of_numpy(x, axis, digits):
    # One of float32 stands here for any library that has nothing wider.
    bound = np.abs(x).max(axis=axis, keepdims=True)
    return sums.total_of_squares(np, x, (axis,), bound, digits)


def of_jax(x, axis, digits):
    import jax
    import jax.numpy as jnp

    with jax.enable_x64(digits == 53):
        found = jax.jit(
            lambda x: sums.total_of_squares(jnp, x, (axis,), jnp.max(jnp.abs(x), axis=axis, keepdims=True), digits)
        )(jnp.asarray(x))
        return np.asarray(found)


@pytest.mark.parametrize("dtype", DIGITS)
@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("count", LENGTHS)
def test_squares_of_numpy_arrays(count, axis, dtype):
    x = rows(count, dtype)
    found = of_numpy(x.T.copy() if axis == 0 else x, axis, DIGITS[dtype]).reshape(-1)
    for row, value in zip(x, found, strict=True):
        assert off_by(value, squares_of(row), DIGITS[dtype]) <= 3


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize(
    ("dtype", "count", "batch"),
    [("float32", 64, 1), ("float32", 127, 1), ("float32", 200, 4), ("float32", 1000, 1), ("float64", 200, 4)],
)
def test_squares_of_jax_arrays(dtype, count, batch, axis):
    """Of 5 rows to 5000 elements, which XLA adds one after the other, and in lanes."""
    x = np.tile(rows(count, dtype), (batch, 1))
    found = of_jax(x.T.copy() if axis == 0 else x, axis, DIGITS[dtype]).reshape(-1)
    for row, value in zip(x, found, strict=True):
        assert off_by(value, squares_of(row), DIGITS[dtype]) <= 4


@pytest.mark.parametrize("count", [(1 << 20) - 1, 1 << 20, (1 << 20) + 1])
def test_squares_of_rows_around_the_longest_of_which_leading_bits_are_taken(count):
    x = np.zeros((1, count), "float32")
    x[0, 1], x[0, -1000:] = 1.0, 0.001
    found = sums.total_of_squares(np, x.T.copy(), (0,), np.ones((1, 1), "float32"), 24)
    assert off_by(found[0, 0], squares_of(x[0]), 24) <= (3 if count <= 1 << 20 else 20)


def test_a_row_is_added_alike_whatever_rows_are_beside_it():
    """Of rows that need their leading bits, and of such that do not, alone and together."""
    x = rows(1000, "float64")
    together = of_numpy(x, 1, 53)
    for i in range(len(x)):
        assert of_numpy(x[i : i + 1], 1, 53)[0, 0] == together[i, 0]


@pytest.mark.parametrize("axes", [(0,), (1,), (0, 2), (0, 1, 2)])
def test_totals_over_any_axes(axes):
    x = np.random.default_rng(0).uniform(0.5, 1, (130, 3, 129))
    found = sums.total(np, x, axes)
    exact = np.apply_over_axes(lambda a, axis: np.sum(a, axis=axis), x.astype(np.longdouble), axes)
    assert found.shape == exact.shape
    assert np.abs(found / exact - 1).max() <= 8 * 2.0**-53
    means = sums.mean(np, x, axes)
    assert np.abs(means * math.prod(x.shape[axis] for axis in axes) / exact - 1).max() <= 9 * 2.0**-53


def test_a_total_over_nothing_is_zero():
    assert (sums.mean(np, np.zeros((3, 0)), (1,)) == 0).all()
    assert sums.total(np, np.zeros((0, 3)), (1,)).shape == (0, 1)
    assert (sums.total(np, np.zeros((0, 3)), (0,)) == np.zeros((1, 3))).all()
    one = np.ones((1, 3))
    assert not np.shares_memory(sums.total(np, one, (0,)), one)
