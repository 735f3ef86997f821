"""Rows that float32 does not hold, among such as it does: the kernel has another one take them, and goes on."""

import numpy as np
import pytest

import anynorm
from anynorm._kernels.cpu.launch import tasks
from tests.backends import needs_llvmlite
from tests.kernel_rows import DTYPES, numbers, placed
from tests.reference import error_in_ulp, layer_norm, rms_norm

pytestmark = needs_llvmlite

# Which rows are out of range, by their number: none, one at each end, neighbours, all but one, and all.
EXTREME = {
    "none": lambda row: row < 0, "first": lambda row: row == 0, "last": lambda row: row == row.max(),
    "some": lambda row: (row % 7 == 3) | (row % 7 == 4), "all but one": lambda row: row != 5,
    "all": lambda row: row >= 0,
}  # fmt: skip
MAGNITUDES = {"float32": 1e30, "bfloat16": 1e30}
NORMS = {"layer_norm": (anynorm.layer_norm, layer_norm), "rms_norm": (anynorm.rms_norm, rms_norm)}


def mixed(rows, features, dtype, which):
    x = numbers((rows, features), "float32", features)
    extreme = EXTREME[which](np.arange(rows))
    x[extreme] *= np.float32(MAGNITUDES[dtype])
    return x.astype(DTYPES[dtype])


def rows_alone(norm, x, *parameters):
    return np.stack([norm(row, *parameters, eps=0.0) for row in x])


@pytest.mark.parametrize("which", EXTREME)
@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("dtype", MAGNITUDES)
@pytest.mark.parametrize("features", [3, 64, 1060])  # side by side, many rows in a group, and one
def test_each_row_is_what_it_is_alone(features, dtype, norm, which):
    norm, exact = NORMS[norm]
    x = mixed(40, features, dtype, which)
    weight, bias = numbers(features, dtype, 1), numbers(features, dtype, 2)
    alone = rows_alone(norm, x, weight, bias)
    of_columns = np.empty((features, 40), x.dtype).T  # whose results lie side by side, as do their rows
    of_columns[...] = x
    for _ in range(2):  # at first the kernel stops, and from then on it does not
        for given in (x, of_columns, x[::-1][::-1], np.repeat(x, 2, axis=0)[::2]):
            assert norm(given, weight, bias, eps=0.0).tobytes() == alone.tobytes()
        in_place = x.copy()
        norm(in_place, weight, bias, eps=0.0, out=in_place)
        assert in_place.tobytes() == alone.tobytes()
    for row in (0, 3, 5, 39):
        expected = exact(x[row].tolist(), weight.tolist(), bias.tolist(), eps=0.0)
        errors = [error_in_ulp(float(got), one, dtype) for got, one in zip(alone[row], expected, strict=True)]
        assert max(errors) <= (2 if dtype == "float32" else 0.51)


@pytest.mark.parametrize("which", EXTREME)
@pytest.mark.parametrize("features", [3, 64])
def test_sums_with_a_residual_are_written_for_all_rows(features, which):
    x, residual = mixed(40, features, "float32", which), numbers((40, features), "float32", 3)
    y, total = anynorm.add_rms_norm(x, residual, eps=0.0)
    assert total.tobytes() == (x + residual).tobytes()
    assert y.tobytes() == rows_alone(anynorm.rms_norm, total).tobytes()


@pytest.mark.parametrize("which", ["some", "all but one"])
@pytest.mark.parametrize(("rows", "axis"), [(4000, 1), (4000, 0)])
def test_rows_of_large_arrays_are_what_they_are_alone(rows, axis, which):
    x = mixed(rows, 96, "float32", which)  # shared among threads, and a part of it stored past the caches
    given = x if axis else np.ascontiguousarray(x.T)
    found = anynorm.rms_norm(given, axis=axis, eps=0.0)
    assert (found if axis else found.T).tobytes() == rows_alone(anynorm.rms_norm, x).tobytes()


@pytest.fixture
def small_cache(monkeypatch):
    """A last cache so small that every result is stored past it."""
    monkeypatch.setattr(tasks, "last_cache_nbytes", lambda: 1)


@pytest.mark.parametrize("features", [75, 80, 1060])  # with a rest that fills no lanes, and without
@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize(("dtype", "magnitude"), [("float32", 1e30), ("float32", 1e-30), ("float64", 1e200)])
def test_rows_of_streamed_blocks_are_what_they_are_alone(dtype, magnitude, norm, features, small_cache):
    norm, _ = NORMS[norm]
    x = numbers((320, features), dtype, features)
    x[[5, 300]] *= DTYPES[dtype](magnitude)
    alone = rows_alone(norm, x)
    for _ in range(2):  # at first the kernel stops, and from then on it does not
        found = norm(x.T.copy(), eps=0.0, axis=0, out=placed((features, 320), dtype, 2))
        assert found.T.tobytes() == alone.tobytes()


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize(("dtype", "lanes"), [("float16", 32), ("float32", 16), ("float64", 8)])
def test_the_widest_block_that_is_streamed(dtype, lanes, norm, small_cache):
    # Behind the first element of a line there is a head, and less than lanes are left for another block.
    widest = 256 + 2 * (lanes - 1)
    norm, _ = NORMS[norm]
    for rows in (widest, widest + 1):
        x = numbers((rows, 40), dtype, rows)
        out = placed((40, 256 + 2 * lanes), dtype, 1)[:, :rows]
        assert norm(x.T.copy(), axis=0, eps=0.0, out=out).T.tobytes() == rows_alone(norm, x).tobytes()
