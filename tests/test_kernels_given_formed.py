"""Rows side by side form what given moments become themselves, where that is too much to be kept: the same bits."""

import numpy as np
import pytest

import anynorm
from anynorm._check import check
from anynorm._definition import norms
from tests import reference
from tests.backends import ALL, TORCH, as_dtype, needs_llvmlite
from tests.tolerances import assert_exact

pytestmark = needs_llvmlite
NORMS = ("layer_norm", "rms_norm", "scale_norm")
# Rows in blocks of which some end within lanes; short ones, packed ones, and such as lie in another order than moments.
KINDS = {
    "columns": ((9, 301), 0), "short": ((300, 3), -1), "of one": ((41, 1), -1),
    "channels first": ((2, 7, 5, 13), 1), "two axes": ((5, 70, 3), (0, 2)),
}  # fmt: skip


@pytest.fixture
def formed(monkeypatch):
    """Nothing is kept; which kernels have run."""
    from anynorm._kernels.cpu.launch import given

    names = []

    def kernel(name, variant, find=given.kernel):
        names.append(name)
        return find(name, variant)

    monkeypatch.setattr(given, "kernel", kernel)
    monkeypatch.setattr(given, "_MOST_KEPT_NBYTES", -1)
    return names


def of_any_size(shape, dtype, axis):
    """Ordinary rows, and rows of extreme magnitude, of zeros and with NaN and Inf among them."""
    rng = np.random.default_rng(len(shape))
    x = rng.standard_normal(shape)
    free = np.ones_like(np.mean(x, axis=axis, keepdims=True))
    largest = {"float16": 1e4, "float64": 1e300}.get(dtype, 1e30)
    sizes = np.where(rng.random(free.shape) < 0.2, rng.choice([largest, 1 / largest, 0.0, np.nan], free.shape), free)
    return as_dtype(x * sizes, dtype)


def formed_and_beforehand(formed, norm, x, axis, moments):
    """y of an array that forms them, which kernels that took, and y where they were formed before."""
    from anynorm._kernels.cpu.launch.given import apply_numbers, finish

    formed.clear()
    y = getattr(anynorm, norm)(x, axis=axis, eps=0.25, moments=moments)
    took = list(formed)
    call = check(getattr(norms, norm.upper()), x, None, None, axis, 0.25, moments=moments)
    return y, took, apply_numbers(call, finish(call))


@pytest.mark.parametrize("dtype", ALL)
@pytest.mark.parametrize("kind", KINDS)
def test_the_bits_of_numbers_that_were_formed_beforehand(kind, dtype, formed):
    shape, axis = KINDS[kind]
    x = of_any_size(shape, dtype, axis)
    orders = [x, np.repeat(x, 2, 0)[::2], np.asfortranarray(x)]
    for norm in NORMS:
        for one in orders:
            for moments in (anynorm.moments(one, axis=axis), anynorm.moments(one, axis=axis, skip_nan=True)):
                y, took, expected = formed_and_beforehand(formed, norm, one, axis, moments)
                assert y.tobytes() == expected.tobytes()
                assert ("finish" in took) != ("given_columns" in took)
    y, took, _ = formed_and_beforehand(formed, "layer_norm", x, axis, anynorm.moments(x, axis=axis))
    assert took == ["given_columns"] or kind == "two axes"
    if dtype != "float16":
        tensor = TORCH.make(x)
        again = anynorm.layer_norm(tensor, axis=axis, eps=0.25, moments=anynorm.moments(tensor, axis=axis))
        assert np.array_equal(TORCH.read(again), y, equal_nan=True)


@pytest.mark.parametrize("dtype", ALL)
def test_they_are_exact(dtype, formed):
    x, weight = as_dtype(np.random.default_rng(3).standard_normal((40, 5)) + 9, dtype), np.linspace(-1.0, 2.0, 5)
    for norm in NORMS:
        parameters = () if norm == "scale_norm" else (as_dtype(weight, dtype),)
        formed.clear()
        y = getattr(anynorm, norm)(x, *parameters, eps=0.5, moments=anynorm.moments(x))
        assert "given_columns" in formed
        assert "finish" not in formed
        expected = [getattr(reference, norm)(row, *parameters, eps=0.5) for row in x]
        assert_exact(y, expected, backend="cpu, given moments", dtype=dtype, norm=norm)


def test_a_scale_belongs_to_them(formed):
    x = np.random.default_rng(4).standard_normal((40, 5)).astype(np.float32)
    for scale in (3.0, -1e30, 0.0):
        y = anynorm.scale_norm(x, scale, moments=anynorm.moments(x))
        expected = [reference.scale_norm(row, scale) for row in x]
        assert_exact(y, expected, backend="cpu, given moments", dtype="float32", norm="scale_norm")


@pytest.mark.parametrize("rows", [16384, 16385])
def test_from_which_number_of_rows_on(rows, formed, monkeypatch):
    from anynorm._kernels.cpu.launch import given

    monkeypatch.setattr(given, "_MOST_KEPT_NBYTES", 512 << 10)
    x = np.random.default_rng(5).standard_normal((rows, 3)).astype(np.float32)
    moments = anynorm.moments(x)
    formed.clear()
    anynorm.layer_norm(x, moments=moments)
    assert formed == (["finish", "given_columns"] if rows == 16384 else ["given_columns"])


def test_rows_one_after_the_other_have_them_formed_beforehand(formed):
    x = np.random.default_rng(6).standard_normal((9, 40)).astype(np.float32)
    moments = anynorm.moments(x)
    formed.clear()
    y = anynorm.layer_norm(x, moments=moments)
    assert formed == ["finish", "given"]
    expected = [reference.layer_norm(row) for row in x]
    assert_exact(y, expected, backend="cpu, given moments", dtype="float32", norm="layer_norm")


def test_threads_change_no_bit(formed):
    x = np.random.default_rng(7).standard_normal((100000, 2)).astype(np.float32)
    moments, before = anynorm.moments(x), anynorm.get_threads()
    try:
        found = []
        for threads in (1, 2):
            anynorm.set_threads(threads)
            found.append(anynorm.layer_norm(x, moments=moments).tobytes())
    finally:
        anynorm.set_threads(before)
    assert found[0] == found[1]
