"""Rows that are reduced while those before them are applied: with the bits of rows that are worked on alone."""

import numpy as np
import pytest

import anynorm
from anynorm._kernels.cpu.kernels.parameters import _FEW_LONG_ROWS, _FEW_ROWS
from anynorm._kernels.cpu.kernels.rows import _LEAST_GROUPS, _MOST_NBYTES
from anynorm._kernels.cpu.kernels.task import Variant
from anynorm._kernels.cpu.language.dtypes import CODES, LAYER
from tests import reference
from tests.backends import needs_llvmlite, thorough_but
from tests.kernel_calls_forward import streamed
from tests.kernel_rows import DTYPES, LARGEST, numbers
from tests.tolerances import assert_exact

pytestmark = needs_llvmlite

NARROW = ("float32", "bfloat16", "float16")
every_dtype = pytest.mark.parametrize("dtype", thorough_but("float32", "bfloat16", of=NARROW))
# Groups of 32 rows, of several and of one; the longest rows that may share one in the first cache, and longer ones.
every_length = pytest.mark.parametrize("row_nbytes", [132, 1000, _MOST_NBYTES // 2, _MOST_NBYTES, _MOST_NBYTES + 4])
# On both sides of the numbers of rows for which parameters are widened, and of one and of two rows in a group.
SIZES = (_FEW_ROWS - 1, _FEW_ROWS, 2 * _LEAST_GROUPS - 1, 2 * _LEAST_GROUPS, _FEW_LONG_ROWS - 1, _FEW_LONG_ROWS)


@pytest.fixture(autouse=True)
def forced():
    with anynorm.use_kernel("cpu"):
        yield


def rows_of(dtype, nbytes):
    """Rows, some with a mean far from that of their first elements, a constant one and one that holds NaN."""
    x = numbers((71, nbytes // np.dtype(DTYPES[dtype]).itemsize), dtype, nbytes)
    x[1, :33], x[2, 0], x[4], x[69] = 20, 200, 3, x[69] + np.asarray(8, x.dtype)
    x[5, 7] = np.nan
    return x, numbers(x.shape[1], dtype, 1), numbers(x.shape[1], dtype, 2)


def one_by_one(norm, x, *parameters):
    return np.stack([norm(row, *parameters) for row in x])


def assert_bits(got, expected):
    assert got.tobytes() == expected.tobytes()


@every_dtype
@every_length
def test_rows_together_have_the_bits_of_each_alone(row_nbytes, dtype):
    x, weight, bias = rows_of(dtype, row_nbytes)
    for norm, parameters in ((anynorm.layer_norm, (weight, bias)), (anynorm.rms_norm, (weight,))):
        expected = one_by_one(norm, x, *parameters)
        assert_bits(norm(x, *parameters), expected)
        for at in (0, 1):
            assert_bits(streamed(norm, x, *parameters, at=at), expected)
        apart = np.zeros((len(x), x.shape[1] + 3), x.dtype)[:, :-3]
        apart[...] = x
        assert_bits(norm(apart, *parameters, out=apart), expected)


@every_dtype
def test_long_rows_have_their_bits_however_many_there_are(dtype):
    """With parameters that are read where they lie, and such as are widened for each group."""
    x, weight, bias = rows_of(dtype, (_MOST_NBYTES + 128) * (1 if dtype == "float32" else 2))
    short, wide = x[:, : x.shape[1] // 2 - 100].copy(), np.float32(weight) / 3
    for rows in (x, short):
        own, other = weight[: rows.shape[1]], wide[: rows.shape[1]]
        for norm, parameters in ((anynorm.layer_norm, (own, bias[: rows.shape[1]])), (anynorm.rms_norm, (other,))):
            expected = one_by_one(norm, rows, *parameters)
            for count in SIZES:
                assert_bits(norm(rows[:count], *parameters), expected[:count])


@every_dtype
@every_length
def test_sums_are_not_read_once_they_are_overwritten(row_nbytes, dtype):
    """The total is x, y the residual."""
    x, weight, bias = rows_of(dtype, row_nbytes)
    residual = x[::-1].copy()
    total = x + residual
    expected = one_by_one(anynorm.layer_norm, total, weight, bias)
    y, found = anynorm.add_layer_norm(x, residual, weight, bias, out=(residual, x))
    assert y is residual
    assert found is x
    assert_bits(found, total)
    assert_bits(y, expected)


@every_dtype
@every_length
def test_they_are_exact(row_nbytes, dtype):
    x, weight, bias = rows_of(dtype, row_nbytes)
    y = anynorm.layer_norm(x, weight, bias)
    which = [1, 2, 4, 69]
    expected = [reference.layer_norm(row, weight, bias) for row in x[which]]
    assert_exact(y[which], expected, backend="numpy", dtype=dtype, norm="layer_norm")


@every_length
def test_the_kernel_stops_at_a_row_that_was_reduced_ahead(row_nbytes):
    """Of float32; the row and those behind it are reduced again when it goes on."""
    from anynorm._kernels.cpu.compiler.entries import kernel
    from anynorm._kernels.cpu.kernels.task import Task

    x, _, _ = rows_of("float32", row_nbytes)
    x[4] *= 0
    plain = one_by_one(anynorm.layer_norm, x)
    for stop in (3, 37, 70):
        rows, y = x.copy(), np.full_like(x, 7)
        rows[stop] *= np.float32(LARGEST["float32"])
        task = Task(features=x.shape[1], rows=len(x), eps=1e-5, x=rows.ctypes.data, y=y.ctypes.data)
        compiled = kernel("rows", Variant(LAYER, CODES["float32"], False))
        assert compiled.run(task, 0, len(x)) == stop
        assert_bits(y[:stop], plain[:stop])
        assert (y[stop:] == 7).all()
        assert compiled.run(task, stop + 1, len(x)) == len(x)
        assert_bits(y[stop + 1 :], plain[stop + 1 :])
