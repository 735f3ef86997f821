"""Step 2 of given moments by its kernel: the bits of the definition, from parts that lie anyhow, of any eps."""

import mpmath
import numpy as np
import pytest

import anynorm
from anynorm._check import check
from anynorm._definition import norms
from anynorm._definition.merging import step_of_given
from anynorm._definition.norms import Precision
from anynorm._moments import statistics_of
from tests.backends import needs_llvmlite

pytestmark = needs_llvmlite
RULES = (norms.LAYER_NORM, norms.RMS_NORM, norms.SCALE_NORM)
MAGNITUDES = {"float32": (1.0, 1e-30, 1e25), "float64": (1.0, 1e-300, 1e-160, 1e-30, 1e100, 1e155, 1e290)}


def rows(dtype, n):
    """Of each magnitude some with a mean far from 0, a constant one and zeros; and such as hold Inf and NaN."""
    made = np.random.default_rng(n)
    some = [made.standard_normal((2, n)), made.standard_normal((2, n)) + 1e5, np.full((1, n), 3.0), np.zeros((1, n))]
    held = np.concatenate([np.concatenate(some) * one for one in MAGNITUDES[dtype]])
    held[0, 0], held[6, n // 2] = np.inf, np.nan
    return held.astype(dtype)


def moments_of(dtype, n):
    x = rows(dtype, n)
    own = anynorm.moments(x)
    wide = anynorm.moments(x.astype(np.float64) * 3.0).to(dtype=dtype)
    mean, variance = np.nan_to_num(own.mean), np.nan_to_num(own.variance)
    made = anynorm.Moments.from_mean_variance(mean, variance, count=n)
    return {
        "own": own, "merged": own + anynorm.moments(x * 0.5), "made": made.to(dtype=dtype), "wide": wide,
        "with counts": anynorm.moments(x, skip_nan=True),
    }  # fmt: skip


def expected(call):
    """What the kernel applies, by the definition's step 2; of float64 in the row's unit."""
    step = step_of_given(
        np, statistics_of(call.moments), call.rule, call.eps, Precision(np.float64, call.precision.digits)
    )
    shift, low = (np.zeros_like(step.factor) if one is None else one for one in (step.shift, step.shift_low))
    scale = call.weight if isinstance(call.weight, float) else 1.0
    return shift, low, step.factor, scale, step.unit


@pytest.mark.parametrize("n", [1, 3, 40])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("eps", [0.0, 1e-5, 1e-130, 1e-300, 1e60])
def test_the_bits_of_the_definition(eps, dtype, n):
    from anynorm._kernels.cpu.launch.given import finish

    x = rows(dtype, n)
    for (kind, moments), rule in ((pair, rule) for pair in moments_of(dtype, n).items() for rule in RULES):
        for scale in (None,) if rule.averaged else (None, -2.0, 0.0):
            call = check(rule, x, scale, None, -1, eps, moments=moments)
            found = np.moveaxis(finish(call), -1, 0)
            with np.errstate(all="ignore"):
                shift, low, factor, of_scale, unit = expected(call)
                if dtype == "float32":
                    whole = np.clip(factor * of_scale, -np.finfo(float).max, np.finfo(float).max)
                    wanted = shift, whole, -low * whole, 0.0
                else:  # the kernel says by a unit of 0 that it was multiplied in
                    is_plain = found[3] == 0.0
                    plain = shift / unit, low / unit, factor * of_scale * unit, 0.0
                    wanted = [np.where(is_plain, *pair) for pair in zip(plain, (shift, low, factor, unit), strict=True)]
            is_known = np.isfinite(factor)  # all others become NaN, whatever is subtracted
            for one, other in zip(found, wanted, strict=True):
                assert (one == other)[is_known].all(), (kind, rule.name, scale)
            assert np.isnan(found[1 if dtype == "float32" else 2][~is_known]).all()


def test_rows_of_float64_have_a_unit_only_where_they_need_one():
    from anynorm._kernels.cpu.launch.given import finish

    for size, has_unit in ((1.0, False), (2.0**-399, False), (2.0**-401, True), (2.0**399, False), (2.0**401, True)):
        x = np.asarray([[size, -size], [1.0, -1.0]])  # of which the factor is 1 / size
        numbers = finish(check(norms.LAYER_NORM, x, None, None, -1, 0.0, moments=anynorm.moments(x)))
        assert ((numbers[..., 3] != 0.0).ravel() == [has_unit, False]).all()
        assert (anynorm.layer_norm(x, eps=0.0, moments=anynorm.moments(x)) == [[1.0, -1.0]] * 2).all()


def laid_out(moments):
    """The same moments of (4, 5, 6) over axis 1, whose parts lie in other orders; and as float32."""
    twice = anynorm.Moments.concat([moments, moments], axis=2)
    yield anynorm.Moments.concat([moments[:, :, at : at + 1] for at in range(6)], axis=2)
    yield twice[:, :, :6]
    yield twice[:, :, 6:]
    yield anynorm.Moments.concat([twice[:, :, at::2] for at in (0, 1)], axis=2)[:, :, [0, 6, 1, 7, 2, 8]]
    yield moments[::-1][::-1]
    yield anynorm.Moments.concat([moments[:, :, ::-1], moments], axis=2)[:, :, 5::-1]
    order, (arrays, known) = np.asfortranarray, moments.flatten()
    yield anynorm.Moments.unflatten(known, tuple(None if one is None else order(one) for one in arrays))
    yield anynorm.Moments.unflatten(known, tuple(None if one is None else np.repeat(one, 2, 0)[::2] for one in arrays))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_parts_that_lie_in_any_order(dtype):
    x = np.random.default_rng(0).standard_normal((4, 5, 6)).astype(dtype)
    wanted = anynorm.layer_norm(x, axis=1, moments=anynorm.moments(x, axis=1))
    for moments in laid_out(anynorm.moments(x, axis=1)):
        assert anynorm.layer_norm(x, axis=1, moments=moments).tobytes() == wanted.tobytes()


def test_rows_that_share_their_moments():
    """By a stride of 0, and by parts of float32, which a dict may hold."""
    x = np.random.default_rng(0).standard_normal((4, 5)).astype(np.float32)
    one = np.float32([[0.5]]), np.float32([[2.0]])
    moments = anynorm.Moments.from_mean_variance(*(np.repeat(part, 4, 0) for part in one), count=5).to(dtype="float32")
    wanted = anynorm.layer_norm(x, moments=moments)
    arrays, known = moments.flatten()
    for change in (lambda part: np.broadcast_to(part[:1], (4, 1)), lambda part: part.astype(np.float32)):
        held = anynorm.Moments.unflatten(known, tuple(None if part is None else change(part) for part in arrays))
        assert anynorm.layer_norm(x, moments=held).tobytes() == wanted.tobytes()


@pytest.mark.parametrize("eps", [2.0**799, 2.0**801, 1e308])
def test_an_eps_beyond_any_row(eps):
    x = np.float32([[3.0, -4.0], [1e38, 2e38]])
    found = anynorm.scale_norm(x, eps / 4, eps=eps, moments=anynorm.moments(x))
    assert (found == x / 4).all()
    found = anynorm.scale_norm(x, 1e308, eps=eps, moments=anynorm.moments(x))
    with mpmath.workprec(200):
        exact = [float(mpmath.mpf(float(one)) * mpmath.mpf(1e308) / mpmath.mpf(eps)) for one in x.ravel()]
    with np.errstate(over="ignore"):
        wanted = np.float32(exact)
    assert np.array_equal(found.ravel(), wanted) or np.abs(found.ravel() / wanted - 1.0).max() <= 2.0**-23


@pytest.mark.parametrize("rows", [1, 7, 16383, 16384, 16385])
def test_many_rows_are_shared_among_threads(rows):
    """From 16384 on, whose numbers take 512 KB; each row has the bits that it has alone."""
    x = np.random.default_rng(0).standard_normal((rows, 2)).astype(np.float32)
    try:
        anynorm.set_threads(2)
        found = anynorm.rms_norm(x, moments=anynorm.moments(x))
    finally:
        anynorm.set_threads(None)
    for row in {0, rows // 2, rows - 1}:
        one = x[row : row + 1]
        assert anynorm.rms_norm(one, moments=anynorm.moments(one)).tobytes() == found[row].tobytes()
