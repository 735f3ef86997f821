"""The powers of two that rows are multiplied by: exact, on either side of each bound, and eps in them."""

import math
from fractions import Fraction

import array_api_strict
import numpy as np
import pytest

from anynorm._definition import scaling

DTYPES = {24: "float32", 53: "float64"}
LONG = {24: (1000, 1 << 14, (1 << 14) + 1), 53: (1000,)}
EPS = (0.0, 1e-300, 1e-40, 1e-24, 1e-12, 1e-5, 1.0, 1e30, 1e76)


def magnitudes(digits):
    """Powers of two, the numbers beside each, and odd ones."""
    info = np.finfo(DTYPES[digits])
    powers = np.exp2(np.arange(info.minexp, info.maxexp, dtype="float64")).astype(DTYPES[digits])
    return np.concatenate([powers, np.nextafter(powers, 0), np.nextafter(powers, info.max), [0.0, info.max]]).astype(
        DTYPES[digits]
    )


def is_power_of_two(value):
    return math.frexp(float(value))[0] == 0.5


@pytest.mark.parametrize("digits", DTYPES)
@pytest.mark.parametrize("squared", [True, False])
def test_a_unit_brings_rows_into_range(digits, squared):
    largest = magnitudes(digits)
    room = {24: 127, 53: 1023}[digits]
    for count in LONG[digits]:
        for eps in EPS if squared or digits == 53 else EPS[:-1]:
            with np.errstate(all="ignore"):
                units = scaling.unit_of(np, largest, digits, count, eps, squared)
            assert all(map(is_power_of_two, np.unique(units)))
            for size, unit in zip(largest, units, strict=True):
                scaled = Fraction(float(size)) * Fraction(float(unit))
                # Deviations are up to twice as large, and count of them are squared and added.
                assert scaled == 0 or 2 * (math.log2(scaled) + 1) + math.log2(count) + 2 < room


def test_units_change_where_the_table_says():
    for digits in DTYPES:
        for bound, unit in (*scaling._SMALL[digits], *scaling._ORDINARY_AND_LARGE[digits][:-1]):
            below = np.nextafter(np.asarray(bound, DTYPES[digits]), np.asarray(0, DTYPES[digits]))
            with np.errstate(all="ignore"):
                at, under = scaling.unit_of(np, np.asarray([bound, below], DTYPES[digits]), digits, 1000, 0.0)
            assert under == unit
            assert at < unit


@pytest.mark.parametrize("digits", DTYPES)
@pytest.mark.parametrize("eps", [0.0, 1e-5])
def test_a_unit_is_that_of_the_row_alone(digits, eps):
    """Where all rows have one unit it is found by the least and the largest, on either side of each bound too."""
    levels = (*scaling._SMALL[digits], *scaling._ORDINARY_AND_LARGE[digits][:-1])
    bounds = np.asarray([bound for bound, _ in levels], DTYPES[digits])
    sizes = np.concatenate([bounds, np.nextafter(bounds, np.asarray(0, DTYPES[digits])), [0.0]]).astype(DTYPES[digits])
    with np.errstate(all="ignore"):
        together = scaling.unit_of(np, sizes, digits, 1000, eps)
        for i in range(len(sizes)):
            assert scaling.unit_of(np, sizes[[i, i]], digits, 1000, eps).tolist() == [together[i]] * 2


@pytest.mark.parametrize("digits", DTYPES)
@pytest.mark.parametrize("squared", [True, False])
def test_eps_in_each_unit(digits, squared):
    least = float(np.finfo(DTYPES[digits]).smallest_normal)
    for eps in EPS[1:] if squared or digits == 53 else EPS[1:-1]:
        tables = (*scaling._SMALL[digits], *scaling._ORDINARY_AND_LARGE[digits])
        most = scaling.largest_unit(digits, eps, squared)
        units = np.asarray([unit for _, unit in tables if unit <= most], DTYPES[digits])
        with np.errstate(all="ignore"):
            squares, lengths = scaling.eps_in_units(np, units, digits, eps, squared)
        for unit, square, length in zip(units, squares, lengths, strict=True):
            exact = (
                Fraction(eps) * Fraction(float(unit)) ** 2 if squared else (Fraction(eps) * Fraction(float(unit))) ** 2
            )
            if exact > 4 * least:
                assert abs(Fraction(float(square)) / exact - 1) < Fraction(4, 2**digits)
            else:
                assert square <= 8 * least
            if exact > (4 * scaling.LEAST_LENGTH[digits]) ** 2:
                assert float(length) == pytest.approx(math.sqrt(exact), rel=4 * 2.0**-digits)


def test_what_exceeds_a_bound():
    for digits, dtype in DTYPES.items():
        for bound in (1.0, 2.0**-60, 2.0**60):
            at = np.asarray(bound, dtype)
            values = np.stack([np.nextafter(at, at * 0), at, np.nextafter(at, at * 4), at * 0, at * 1e20])
            assert scaling.exceeds(np, values, bound, digits).tolist() == [0, 0, 1, 0, 1]


def test_products_leave_the_range_only_where_they_end_there():
    factors = [2.0**900, 2.0**-900, 2.0**800, 1.5, -(2.0**-700)]
    value = np.asarray([2.0**-300, 3.0, -(2.0**300)])
    found = scaling.product(np, value, [np.full(3, one) for one in factors])
    expected = [Fraction(float(v)) * math.prod(map(Fraction, factors)) for v in value]
    assert [Fraction(float(one)) for one in found] == expected


@pytest.mark.parametrize("weight", [1.5, 1e120, -1e-121, 1e300, 0.0])
def test_weighted_rows_have_the_same_bits_looked_at_or_not(weight):
    """NumPy's arrays are looked at, and take a fast path where all is ordinary; those of other libraries never."""
    xp = array_api_strict
    x = np.asarray([[1.0, 3e-10, -7.0], [1e300, 2.5, 1e-30], [3e-310, 1e-200, 0.0]])
    unit = np.asarray([[1.0], [2.0**-704], [1.0]])
    factor = np.asarray([[0.2], [1.1], [3e5]])
    with np.errstate(all="ignore"):
        together = scaling.weighted(np, x, unit, factor, weight, 53)
        for i in range(3):
            alone = scaling.weighted(np, x[i : i + 1], unit[i : i + 1], factor[i : i + 1], weight, 53)
            assert alone.tobytes() == together[i : i + 1].tobytes()
        strict = scaling.weighted(xp, xp.asarray(x), xp.asarray(unit), xp.asarray(factor), weight, 53)
    assert np.asarray(strict).tobytes() == together.tobytes()
