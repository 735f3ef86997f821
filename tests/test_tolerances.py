"""The reference against numbers known beforehand, and the comparison against results that are wrong."""

import mpmath
import numpy as np
import pytest

from tests import reference, tolerances
from tests.reference import Exact
from tests.tolerances import (
    BOUNDS,
    DERIVATIVE_BOUND,
    FLUSHED_TERMS,
    NARROW_GRADIENT_BOUNDS,
    as_it_is,
    assert_exact,
    bounds_of,
)

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


SLOPES = {  # norm -> rows, and an eps beside which each of them counts
    "layer_norm": ([[1.0, -2.0, 4.0], [3e-9, 1e-9, 2e-9], [1e6, 1e6 + 1, 1e6 - 2]], 1e-18),
    "rms_norm": ([[1.0, -2.0, 4.0], [3e-9, 1e-9, 2e-9], [0.0, 0.0, 1.0]], 1e-18),
    "scale_norm": ([[1.0, -2.0, 4.0], [3e-9, 1e-9, 2e-9], [1e-10, 2e-10, 0.0]], 1e-9),  # the last row is shorter
}


def formula(norm, row, weight, eps):
    """The norm in numbers of 80 digits, for numeric differences."""
    if norm == "scale_norm":
        return [w * v / max(mpmath.sqrt(sum(v * v for v in row)), eps) for v, w in zip(row, weight, strict=True)]
    middle = sum(row) / len(row) if norm == "layer_norm" else 0
    root = mpmath.sqrt(sum((v - middle) ** 2 for v in row) / len(row) + eps)
    return [w * (v - middle) / root for v, w in zip(row, weight, strict=True)]


@pytest.mark.parametrize("norm", SLOPES)
def test_exact_derivatives_are_those_of_numeric_differences(norm):
    rows, eps = SLOPES[norm]
    weight, dy, tangent = ([mpmath.mpf(v) for v in given] for given in ([2, -0.5, 1], [1, 0.25, -3], [0.5, 2, -1]))
    weight = [mpmath.mpf(2)] * 3 if norm == "scale_norm" else weight
    options = {"scale": 2.0, "eps": eps} if norm == "scale_norm" else {"weight": weight, "eps": eps}
    for row in rows:
        size = max(map(abs, row))

        def y(step, other=0.0, at=0, row=row, size=size):
            moved = [mpmath.mpf(v) + size * step * t for v, t in zip(row, tangent, strict=True)]
            moved[at] += size * other
            return formula(norm, moved, weight, mpmath.mpf(eps))

        def loss(*steps, y=y):
            return sum(a * b for a, b in zip(dy, y(*steps), strict=True))

        found = [reference.jvp(norm, row, tangent, **options), reference.second(norm, row, dy, tangent, **options)]
        first = reference.gradient(norm, row, dy, **options)[0]
        for i in range(3):
            expected = (
                mpmath.diff(lambda step, i=i, y=y: y(step)[i], 0) / size,
                mpmath.diff(lambda step, other, i=i: loss(step, other, i), (0, 0), (1, 1)) / size**2,
                mpmath.diff(lambda other, i=i: loss(0, other, i), 0) / size,
            )
            for exact, number in zip((found[0][i], found[1][i], first[i]), expected, strict=True):
                assert abs(exact.value - number) <= exact.magnitude * mpmath.mpf(10) ** -15
            # Terms are as large as their sum at least.
            assert all(abs(one[i].value) <= one[i].magnitude * (1 + mpmath.mpf(2) ** -200) for one in (*found, first))


def test_exact_derivatives_where_the_formula_has_none_or_a_constant_one():
    zeros, first = [0.0] * 4, [1.0, 0.0, 0.0, 0.0]
    for norm, at_zero in (("layer_norm", [0.75, -0.25, -0.25, -0.25]), ("rms_norm", first), ("scale_norm", first)):
        for found in (reference.jvp(norm, zeros, first, eps=1.0), reference.gradient(norm, zeros, first, eps=1.0)[0]):
            assert [float(one.value) for one in found] == at_zero
        for found in (
            reference.jvp(norm, zeros, first, eps=0.0),
            reference.second(norm, zeros, first, first, eps=0.0),
            reference.second(norm, zeros, first, first, eps=1.0),
        ):
            assert [(float(one.value), float(one.magnitude)) for one in found] == [(0.0, 0.0)] * 4
    # A row of scale_norm is shorter than eps, or has its length at least.
    assert [float(one.value) for one in reference.jvp("scale_norm", [0.0, 1.0], [1.0, 1.0], eps=1.0)] == [1.0, 0.0]
    assert [float(one.value) for one in reference.jvp("scale_norm", [0.0, 0.5], [1.0, 1.0], eps=1.0)] == [1.0, 1.0]
    assert all(one.value == 0 for one in reference.second("scale_norm", [0.0, 0.5], [1.0, 1.0], [1.0, 1.0], eps=1.0))


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
    for name in ("jax", "jax, traced", "jax-x64", "strict-no-float64"):
        assert bounds_of(name) == BOUNDS | {"float32": 4.0}
    assert all(bounds_of(name) == BOUNDS for name in ("numpy", "numpy, definition", "torch", "dask", "strict", "cuda"))


def test_what_is_right_by_the_bound_of_one_backend_is_wrong_by_that_of_another():
    values, said = np.asarray([[1 + 3 * 2.0**-23, 1.0]], np.float32), {"dtype": "float32", "norm": "rms_norm"}
    assert_exact(values, EXPECTED, backend="jax", **said)
    with pytest.raises(AssertionError, match=r"3\.000 ulp"):
        assert_exact(values, EXPECTED, backend="numpy", **said)
    values[0, 0] = 1 + 5 * 2.0**-23
    with pytest.raises(AssertionError, match=r"5\.000 ulp"):
        assert_exact(values, EXPECTED, backend="jax", **said)


def test_derivatives_are_compared_at_their_terms():
    exact = [Exact(mpmath.mpf(2.0**-20), mpmath.mpf(1.0))]
    within, beyond = (2.0**-20 + (DERIVATIVE_BOUND + more) * 2.0**-23 for more in (0, 1))
    for dtype, narrow in (("float32", within), ("float64", 2.0**-20 + DERIVATIVE_BOUND * 2.0**-52)):
        said = {"dtype": dtype, "bounds": NARROW_GRADIENT_BOUNDS, "expected": [as_it_is(exact, dtype)]}
        compare([narrow], **said)
        with pytest.raises(AssertionError, match="ulp"):
            compare([2.0**-20 + 1.1 * (narrow - 2.0**-20)], **said)
    # Of 16 bits the error of float32 is left out, and half a unit of their own is allowed.
    said = {"dtype": "float16", "bounds": NARROW_GRADIENT_BOUNDS, "expected": [as_it_is(exact, "float16")]}
    compare([within], **said)
    with pytest.raises(AssertionError, match="ulp"):
        compare([beyond], **said)
    # Terms that are flushed may be missing, as many as are said to be.
    tiny = [Exact(mpmath.mpf(2.0**-120), mpmath.mpf(2.0**-120))]
    said = {"bounds": NARROW_GRADIENT_BOUNDS, "expected": [as_it_is(tiny, "float32", FLUSHED_TERMS)]}
    compare([2.0**-120 - 4 * 2.0**-126], **said)
    with pytest.raises(AssertionError, match="ulp"):
        compare([2.0**-120 - 5 * 2.0**-126], **said)
