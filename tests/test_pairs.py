"""Pairs of floats against exact rationals."""

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from anynorm._definition import pairs

DTYPES = {"float32": 24, "float64": 53}


def exact(*parts):
    return sum((Fraction(float(part)) for part in parts), Fraction(0))


def floats(dtype, top):
    width = int(dtype[5:])
    top = float(np.asarray(top, dtype))
    bottom = float(np.asarray(1 / top, dtype))
    magnitudes = st.floats(bottom, top, width=width)
    return st.one_of(magnitudes, magnitudes.map(lambda value: -value), st.just(0.0))


def assert_product(a, b, digits):
    """The error of a product is exact, and rounded where a significand lies just below a power of two."""
    product, error = pairs.two_product(a, b, digits)
    missed = exact(product, error) - exact(a) * exact(b)
    below = [abs(math.frexp(one)[0]) > 1.0 - 2.0 ** -(digits // 2) for one in (a, b)]
    assert abs(missed) <= (abs(exact(product)) * Fraction(2) ** (1 - 2 * digits) if any(below) else 0)


@pytest.mark.parametrize("dtype", DTYPES)
def test_products_of_numbers_below_a_power_of_two(dtype):
    last = 2.0 ** (30 - DTYPES[dtype])
    steps = [1, 2, 3, 5, 1000] + [round((2.0**30 - near) / last) for near in (1073741817.9999999, 1073741820.9999999)]
    below = [np.asarray(2.0**30 - max(k, 1) * last, dtype) for k in steps]
    for a in below:
        for b in below:
            assert_product(a, b, DTYPES[dtype])


@pytest.mark.parametrize("dtype", DTYPES)
@given(data=st.data())
def test_two_sum_and_two_product_lose_nothing(dtype, data):
    a, b = (np.asarray(data.draw(floats(dtype, 2.0**30)), dtype) for _ in range(2))
    assert exact(*pairs.two_sum(a, b)) == exact(a) + exact(b)
    high, low = pairs.split(a, DTYPES[dtype])
    assert exact(high, low) == exact(a)
    assert exact(high * high) == exact(high) ** 2
    assert_product(a, b, DTYPES[dtype])


@pytest.mark.parametrize("dtype", DTYPES)
@given(data=st.data())
def test_sums_and_products_of_pairs(dtype, data):
    digits = DTYPES[dtype]
    held = []
    for _ in range(2):
        high = np.asarray(data.draw(floats(dtype, 2.0**20)), dtype)
        low = high * np.asarray(data.draw(st.floats(-1, 1, width=32)) * 2.0**-digits, dtype)
        held.append((high, low))
    a, b = (exact(*pair) for pair in held)
    product = exact(*pairs.multiply_pairs(*held, digits))
    assert abs(product - a * b) <= abs(a * b) * Fraction(2) ** (6 - 2 * digits)
    total = exact(*pairs.add_pairs(*held))
    assert abs(total - (a + b)) <= (abs(a) + abs(b)) * Fraction(2) ** (4 - 2 * digits)


@pytest.mark.parametrize(("numerator", "denominator"), [(1, 3), (2, 2), (7, 10**9), (10**12 + 1, 3)])
def test_ratio_pair(numerator, denominator):
    for digits in (24, 53):
        high, low = pairs.ratio_pair(numerator, denominator, digits)
        ratio = Fraction(numerator, denominator)
        assert abs(exact(high, low) - ratio) <= ratio * Fraction(2) ** (1 - min(2 * digits, 100))
        assert high == (np.float32(numerator / denominator) if digits == 24 else numerator / denominator)
