"""Pairs of floats against exact rationals."""

import math
from fractions import Fraction

import array_api_strict as xp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from anynorm import _pairs

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
    product, error = _pairs.two_product(a, b, digits)
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
    assert exact(*_pairs.two_sum(a, b)) == exact(a) + exact(b)
    high, low = _pairs.split(a, DTYPES[dtype])
    assert exact(high, low) == exact(a)
    assert exact(high * high) == exact(high) ** 2
    assert_product(a, b, DTYPES[dtype])


@pytest.mark.parametrize("dtype", DTYPES)
@given(data=st.data())
def test_sums_and_products_of_pairs(dtype, data):
    digits = DTYPES[dtype]
    pairs = []
    for _ in range(2):
        high = np.asarray(data.draw(floats(dtype, 2.0**20)), dtype)
        low = high * np.asarray(data.draw(st.floats(-1, 1, width=32)) * 2.0**-digits, dtype)
        pairs.append((high, low))
    a, b = (exact(*pair) for pair in pairs)
    product = exact(*_pairs.multiply_pairs(*pairs, digits))
    assert abs(product - a * b) <= abs(a * b) * Fraction(2) ** (6 - 2 * digits)
    total = exact(*_pairs.add_pairs(*pairs))
    assert abs(total - (a + b)) <= (abs(a) + abs(b)) * Fraction(2) ** (4 - 2 * digits)


@pytest.mark.parametrize("terms", [1, 2, 3, 100, 1023, 1024, 1025, 20_000])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", ["alternating", "spread", "positive", "cancelling"])
def test_sum_pair_is_right_to_a_unit_of_the_largest_term(dtype, terms, kind):
    rng = np.random.default_rng(terms)
    values = rng.standard_normal((1, terms))
    if kind == "alternating":
        values = np.abs(values) * (-1.0) ** np.arange(terms) * 1e6
    elif kind == "spread":
        values = values * 10.0 ** rng.uniform(-8, 8, terms)
    elif kind == "positive":
        values = values**2
    else:
        values[:, 1::2] = -values[:, : 2 * (terms // 2) : 2]
    values = values.astype(dtype)
    digits = DTYPES[dtype]
    high, low = _pairs.sum_pair(np, values, (1,), digits)
    expected = sum((Fraction(float(v)) for v in values[0]), Fraction(0))
    # One rounding of the sum, and the remainders that no level took.
    slack = max(abs(expected), Fraction(float(np.abs(values).max()))) * Fraction(2) ** -digits
    assert abs(exact(high[0, 0], low[0, 0]) - expected) <= slack / 8
    assert abs(exact(high[0, 0]) - expected) <= slack


def test_a_sum_longer_than_a_level_can_take_is_cut():
    values = np.full((1, 40_000), 0.1, np.float32)
    high, low = _pairs.sum_pair(np, values, (1,), 24)
    assert exact(high[0, 0], low[0, 0]) == pytest.approx(40_000 * float(np.float32(0.1)), rel=1e-12)
    several = np.full((200, 1, 200), 0.1, np.float32)
    high, low = _pairs.sum_pair(np, several, (0, 2), 24)
    assert float(high[0, 0, 0]) == np.float32(40_000 * float(np.float32(0.1)))


@pytest.mark.parametrize(("numerator", "denominator"), [(1, 3), (2, 2), (7, 10**9), (10**12 + 1, 3)])
def test_ratio_pair(numerator, denominator):
    for digits in (24, 53):
        high, low = _pairs.ratio_pair(numerator, denominator, digits)
        ratio = Fraction(numerator, denominator)
        assert abs(exact(high, low) - ratio) <= ratio * Fraction(2) ** (1 - min(2 * digits, 100))
        assert high == (np.float32(numerator / denominator) if digits == 24 else numerator / denominator)


def test_pairs_stay_on_their_device():
    device = xp.Device("no_float64")
    high, low = _pairs.sum_pair(xp, xp.ones((2, 5), dtype=xp.float32, device=device), (1,), 24)
    assert high.device == low.device == device
    assert high.dtype == low.dtype == xp.float32
