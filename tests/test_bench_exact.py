"""The errors that `anynorm bench` shows: its exact arithmetic beside that of the tests."""

import math
from fractions import Fraction

import numpy as np
import pytest

from anynorm._bench.cases import EPS, Case
from anynorm._bench.exact import FORMATS, inverse_root, largest_ulp, unit
from tests import reference


@pytest.mark.parametrize("norm", EPS)
@pytest.mark.parametrize(("dtype", "size"), [("float32", 1.0), ("float32", 1e-18), ("float64", 1e30), ("float16", 1.0)])
def test_errors_are_those_of_exact_arithmetic(norm, dtype, size):
    random = np.random.default_rng(0)
    x = (size * (random.standard_normal(40) + 3)).astype(dtype).tolist()
    weight, bias = random.standard_normal((2, 40)).astype(dtype).tolist()
    parameters = {"layer_norm": (weight, bias), "rms_norm": (weight,), "scale_norm": ()}[norm]
    exact = getattr(reference, norm)(x, *parameters)
    y = [float(one.value) * (1 + 3e-4) for one in exact]
    y = np.asarray(y).astype(dtype).tolist()
    wanted = max(reference.error_in_ulp(value, one, dtype) for value, one in zip(y, exact, strict=True))
    found = largest_ulp(Case(norm, dtype, (1, 40)), x, weight, bias, y)
    assert found == pytest.approx(float(wanted), rel=1e-9)
    assert math.isnan(largest_ulp(Case(norm, dtype, (1, 40)), x, weight, bias, [math.nan, *y[1:]]))


@pytest.mark.parametrize("value", [Fraction(2), Fraction(1, 3**900), Fraction(7**900, 5)])
def test_inverse_root(value):
    assert abs(inverse_root(value) ** 2 * value - 1) < Fraction(1, 2**150)


@pytest.mark.parametrize("dtype", FORMATS)
def test_units(dtype):
    bits, least = FORMATS[dtype]
    assert (bits, least) == reference.FORMATS[dtype][:2]
    assert unit(Fraction(1), dtype) == Fraction(2) ** (1 - bits)
    assert unit(1 - Fraction(1, 1 << 20), dtype) == Fraction(2) ** -bits
    assert unit(Fraction(0), dtype) == Fraction(2) ** least
