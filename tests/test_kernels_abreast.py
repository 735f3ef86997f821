"""Which rows are taken side by side, and that it changes no bit: of rows that lie apart, short ones, extreme ones."""

import numpy as np
import pytest

import anynorm
from anynorm._kernels.cpu.launch import given, norm
from tests import reference
from tests.backends import ALL, as_dtype, needs_llvmlite, thorough_but
from tests.kernel_rows import extreme_rows
from tests.test_fast_path import forced
from tests.test_kernels_layout import assert_bits
from tests.tolerances import assert_exact

pytestmark = needs_llvmlite
LANES = {"float16": 32, "bfloat16": 32, "float32": 16, "float64": 8}

every_dtype = pytest.mark.parametrize("dtype", thorough_but("float32", "float64", of=ALL))


@pytest.fixture(autouse=True)
def default_threads():
    yield
    anynorm.set_threads(None)


@pytest.fixture
def asked(monkeypatch):
    """The kernels that calls ask for."""
    names = []
    for module in (norm, given):

        def kernel(name, variant, kernel=module.kernel):
            names.append(name)
            return kernel(name, variant)

        monkeypatch.setattr(module, "kernel", kernel)
    return names


def numbers(shape, dtype):
    return as_dtype(np.random.default_rng(0).standard_normal(shape) * 3 + 1, dtype)


def takes_columns(asked, x, axis):
    """Whether all that can be done along an axis goes through the kernels for rows side by side."""
    asked.clear()
    forced("layer_norm", x, axis=axis)
    forced("layer_norm", x, axis=axis, moments=anynorm.moments(x, axis=axis))
    found = {name: name.endswith("columns") for name in asked}
    if any(found.values()):
        assert {"columns", "moments_columns", "given_columns"} <= set(found)
    return any(found.values())


@every_dtype
def test_short_rows_are_taken_side_by_side_if_they_are_many(asked, dtype):
    lanes = LANES[dtype]
    assert takes_columns(asked, numbers((16, lanes - 1), dtype), -1)
    assert takes_columns(asked, numbers((16, 1), dtype), -1)
    assert not takes_columns(asked, numbers((16, lanes), dtype), -1)
    assert not takes_columns(asked, numbers((15, lanes - 1), dtype), -1)


@every_dtype
def test_rows_are_taken_side_by_side_along_other_axes(asked, dtype):
    assert takes_columns(asked, numbers((50, LANES[dtype]), dtype), 0)
    assert takes_columns(asked, numbers((2, 50, 5, 7), dtype), 1)
    assert takes_columns(asked, numbers((50, 8), dtype)[:, ::2], 0)
    assert not takes_columns(asked, numbers((50, 6), dtype)[:, ::2], 0)
    assert not takes_columns(asked, numbers((50, 160), dtype)[:, ::2], 1)


def test_sums_are_packed_as_long_as_both_fit_a_tile(asked):
    for features, columns in ((544, True), (545, False)):
        x = numbers((features, 40), "float32")[:, ::2]
        asked.clear()
        total = anynorm.add_rms_norm(x, x, axis=0)[0]
        assert asked[0] == ("columns" if columns else "rows")
        assert_bits(total, anynorm.rms_norm((x + x).T.copy()).T)


def views(x):
    """The same rows, side by side in memory and apart."""
    yield x.T.copy(), 0
    yield np.repeat(x.T, 2, 1)[:, ::2], 0
    yield x, -1


@every_dtype
@pytest.mark.parametrize("features", [1, 3, 7, 15, 40, 1100])
def test_moments_and_norms_have_the_bits_of_each_row_alone(features, dtype):
    # Blocks that the kernel cannot hold, among others that it can.
    extreme = extreme_rows(features, dtype)
    # The definition forms moments of rows of float64 that are out of range, and its sums have NumPy's order.
    extreme = extreme[:4] if dtype == "float64" else extreme
    x = np.concatenate([numbers((300, features), dtype), extreme])
    alone = [anynorm.moments(row) for row in x]
    expected = np.stack([anynorm.layer_norm(row, moments=one) for row, one in zip(x, alone, strict=True)])
    for other, axis in views(x):
        found = anynorm.moments(other, axis=axis)
        for part in ("mean", "variance"):
            one_by_one = np.asarray([getattr(one, part)[0] for one in alone])
            assert_bits(np.ravel(getattr(found, part)), one_by_one)
        for threads in (1, 2):
            anynorm.set_threads(threads)
            got = anynorm.layer_norm(other, axis=axis, moments=found)
            assert_bits(np.moveaxis(got, axis, -1), expected)


@every_dtype
@pytest.mark.parametrize("shape", [(1, 20), (3, 20), (40, 20), (1100, 20)], ids=str)
def test_they_are_exact(shape, dtype):
    x, (weight, bias) = numbers(shape, dtype), numbers((2, shape[0]), dtype)
    for given_moments in (None, anynorm.moments(x, axis=0)):
        y = anynorm.layer_norm(x, weight, bias, axis=0, moments=given_moments)
        expected = [reference.layer_norm(x[:, i], weight, bias) for i in (0, 7, 19)]
        assert_exact(y.T[[0, 7, 19]], expected, backend="cpu", dtype=dtype, norm="layer_norm")


@every_dtype
def test_a_small_call_like_one_before_takes_them_side_by_side_too(asked, dtype):
    anynorm.layer_norm(numbers((3, 100), dtype))  # offers the kernel for rows
    x = numbers((40, 3), dtype)
    expected = np.stack([anynorm.layer_norm(row) for row in x])
    assert_bits(anynorm.layer_norm(x), expected)
    asked.clear()
    assert_bits(anynorm.layer_norm(x), expected)
    assert not asked  # the fast path goes to the kernel that was asked for before


@every_dtype
@pytest.mark.parametrize("features", [3, 40, 1100])
def test_extreme_rows_and_weights_change_no_bit_of_others(features, dtype):
    x = np.concatenate([numbers((300, features), dtype), extreme_rows(features, dtype)])
    for weight in (numbers(features, dtype), np.full(features, 1e300)):
        expected = np.stack([anynorm.rms_norm(row, weight) for row in x])
        for other, axis in views(x):
            assert_bits(np.moveaxis(anynorm.rms_norm(other, weight, axis=axis), axis, -1), expected)


def asked_for(asked, x, **options):
    asked.clear()
    forced("layer_norm", x, **options)
    forced("layer_norm", x, moments=anynorm.moments(x, **options), **options)
    return set(asked)


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_extreme_rows_stay_side_by_side(asked, dtype):
    x = numbers((40, 70), dtype)
    x[:, 3], x[:, 50] = extreme_rows(40, dtype)[4:6]
    columns = {"columns", "moments_columns", "finish", "given_columns"}
    assert asked_for(asked, x, axis=0) == columns
    assert asked_for(asked, x.T[:, :3].copy(), axis=-1) == columns


# On either side of all that decides whether a row has a unit, or is computed in float64; and of what is asked of rows
# beside those that have units, which is whether squares of a few elements add up to 2**401.
POWERS = {
    "float32": [-149, -60, -59, -44, -43, -42, -41, -40, -39, -38, 0, 46, 47, 48, 49, 50, 51, 58, 59, 60, 61, 62, 126],
    "float64": [-1074, -370, -202, -201, -200, -199, 0, 178, 179, 180, 181, *range(195, 206), 320, 688, 1000, 1022],
}


def of_powers(features, dtype):
    """Rows of each size, among others and beside each other."""
    sizes = 2.0 ** np.repeat(POWERS[dtype], 3)
    sizes = np.concatenate([sizes, np.random.default_rng(1).permutation(sizes), np.full(40, 2.0 ** POWERS[dtype][-1])])
    x = np.random.default_rng(0).uniform(-1, 1, (len(sizes), features))
    return as_dtype(np.ldexp(x, np.log2(sizes).astype(int)[:, None]), dtype)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("norm", ["layer_norm", "rms_norm", "scale_norm"])
@pytest.mark.parametrize("features", [1, 5, 16, 17, 40])
def test_rows_of_each_magnitude_side_by_side(features, norm, dtype):
    x, weight = of_powers(features, dtype), () if norm == "scale_norm" else (numbers(features, dtype),)
    for eps in (0.0, 1e-5):
        for with_moments in (False, True):

            def run(x, axis=-1, eps=eps, with_moments=with_moments, **options):
                found = anynorm.moments(x, axis=axis) if with_moments else None
                return np.moveaxis(forced(norm, x, *weight, axis=axis, eps=eps, moments=found, **options), axis, -1)

            expected = np.concatenate([run(row[None]) for row in x])
            exact = [getattr(reference, norm)(row, *weight, eps=eps) for row in x[::7]]
            assert_exact(expected[::7], exact, backend="cpu, side by side", dtype=dtype, norm=norm)
            for other, axis in views(x):
                assert_bits(run(other, axis), expected)
                assert_bits(run(other.copy(), axis, out=other.copy()), expected)
            in_place = x.T.copy()
            assert_bits(run(in_place, 0, out=in_place), expected)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_sums_of_each_magnitude_side_by_side(dtype):
    x = of_powers(20, dtype)
    residual = as_dtype(x[::-1] / 4, dtype)
    expected = np.stack([anynorm.layer_norm(row) for row in x + residual])
    for out in (None, (np.empty_like(x.T.copy()), np.empty_like(x.T.copy())), "in place"):
        one, other = x.T.copy(), residual.T.copy()
        y, total = anynorm.add_layer_norm(one, other, axis=0, out=(one, other) if out == "in place" else out)
        assert_bits(y.T, expected)
        assert_bits(total.T, x + residual)
