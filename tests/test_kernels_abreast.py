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
def test_extreme_rows_and_weights_leave_them_to_the_kernel_for_rows(features, dtype):
    x = np.concatenate([numbers((300, features), dtype), extreme_rows(features, dtype)])
    for weight in (numbers(features, dtype), np.full(features, 1e300)):
        expected = np.stack([anynorm.rms_norm(row, weight) for row in x])
        for other, axis in views(x):
            assert_bits(np.moveaxis(anynorm.rms_norm(other, weight, axis=axis), axis, -1), expected)
