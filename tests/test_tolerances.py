"""The reference against numbers known beforehand, and the comparison against results that are wrong."""

import mpmath
import numpy as np
import pytest

from tests import reference, tolerances
from tests.tolerances import BOUNDS, assert_exact

EXPECTED = [reference.rms_norm([3.0, 3.0], eps=0.0)]


def compare(values, dtype="float32", expected=EXPECTED, **options):
    assert_exact(np.asarray([values], dtype), expected, backend="none", dtype=dtype, norm="rms_norm", **options)


@pytest.fixture(autouse=True)
def leave_no_trace(monkeypatch):
    monkeypatch.setattr(tolerances, "seen", {})


def test_the_reference_knows_what_anybody_can_work_out():
    def values(results):
        return [float(result.value) for result in results]

    assert values(reference.layer_norm([1.0, 3.0], eps=0.0)) == [-1.0, 1.0]
    assert values(reference.layer_norm([1.0, 3.0], eps=3.0)) == [-0.5, 0.5]
    assert values(reference.layer_norm([1.0, 3.0], [2.0, 4.0], [1.0, -1.0], 3.0, 1.0)) == [-0.5, 1.5]
    assert values(reference.rms_norm([1.0, 7.0], eps=0.0)) == [0.2, 1.4]
    assert values(reference.rms_norm([1.0, 1.0], eps=3.0)) == [0.5, 0.5]
    assert values(reference.scale_norm([3.0, -4.0], 10.0)) == [6.0, -8.0]
    assert values(reference.scale_norm([3e-9, 4e-9], 1.0, eps=1e-8)) == pytest.approx([0.3, 0.4], rel=1e-15)
    assert values(reference.layer_norm([5.0, 5.0], None, [1.0, 2.0], 0.0)) == [1.0, 2.0]
    assert all(mpmath.isnan(result.value) for result in reference.rms_norm([1.0, np.inf]))
    assert reference.mean_and_variance([1.0, 2.0, 6.0]) == (3, reference.Fraction(14, 3))


def test_units_in_the_last_place():
    assert reference.ulp(1.0, "float32") == 2.0**-23
    assert reference.ulp(mpmath.mpf(1.999), "float64") == 2.0**-52
    assert reference.ulp(2.0**-140, "float32") == 2.0**-149
    assert reference.ulp(0, "float16") == 2.0**-24
    assert reference.ulp(1.0, "bfloat16") == 2.0**-7


def test_what_is_right_passes():
    compare([1.0, 1.0])
    compare([1 + 2.0**-23, 1.0])
    compare([np.nan, np.nan], expected=[reference.rms_norm([np.nan, 1.0])])


@pytest.mark.parametrize(
    "values", [[1 + 3 * 2.0**-23, 1.0], [1.0, 1 - 5 * 2.0**-24], [1.0, -1.0], [0.0, 1.0], [np.nan, 1.0], [1.0, np.inf]]
)
def test_what_is_wrong_fails(values):
    with pytest.raises(AssertionError, match="rms_norm of float32 on none"):
        compare(values)


def test_a_number_where_nan_is_due_fails():
    with pytest.raises(AssertionError, match="inf ulp"):
        compare([1.0, np.nan], expected=[reference.rms_norm([np.nan, 1.0])])


def test_a_wrong_dtype_or_shape_fails():
    with pytest.raises(AssertionError, match="gave float64"):
        assert_exact(np.ones((1, 2)), EXPECTED, backend="none", dtype="float32", norm="rms_norm")
    with pytest.raises(AssertionError, match="gave shape"):
        compare([1.0, 1.0, 1.0])


def test_overflow_is_right_only_where_it_is_due():
    beyond = [reference.rms_norm([1.0], [3e38], [3e38], 0.0)]
    compare([np.inf], expected=beyond)
    with pytest.raises(AssertionError, match="ulp"):
        compare([-np.inf], expected=beyond)
    with pytest.raises(AssertionError, match="ulp"):
        compare([1e38], expected=beyond)


def test_flushing_excuses_zero_for_subnormals_alone():
    tiny = [reference.rms_norm([1.0], [1e-40], None, 0.0)]
    compare([0.0], expected=tiny, flushes=True)
    with pytest.raises(AssertionError, match="ulp"):
        compare([0.0], expected=tiny)
    with pytest.raises(AssertionError, match="ulp"):
        compare([0.0], expected=[reference.rms_norm([1.0], [1e-30], None, 0.0)], flushes=True)


def test_slack_is_taken_from_an_error_once():
    exact = reference.Exact(mpmath.mpf(2.0**-24), mpmath.mpf(2.0**-24), slack=2.0**-27)
    compare([2.0**-24], "float16", [[exact]])
    assert reference.error_in_ulp(2.0**-23, exact, "float16") == 0.875
    assert reference.error_in_ulp(0.0, exact, "float16") == 0.875


def test_the_bounds_are_those_promised():
    assert BOUNDS == {"float16": 0.51, "bfloat16": 0.51, "float32": 2.0, "float64": 4.0}
