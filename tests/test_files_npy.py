"""Files in .npy format: results bit for bit, whole or cut into blocks, statistics, streams."""

from pathlib import Path
from unittest import mock

import numpy as np
import pytest

import anynorm
from anynorm._files import passes
from anynorm._files.formats import raw
from tests.files import (
    FLOATS,
    NORMS,
    assert_few_ulp,
    assert_one_line,
    assert_same_bits,
    normalize,
    parametrized,
    save_x,
)  # fmt: skip

pytestmark = pytest.mark.usefixtures("folder")


@pytest.fixture
def blocks(small_blocks):
    """Mocks that count the blocks written and those that moments are taken of."""
    with (
        mock.patch.object(raw.RawSink, "write", autospec=True, side_effect=raw.RawSink.write) as written,
        mock.patch.object(passes, "moments", side_effect=passes.moments) as measured,
    ):
        yield written, measured


WHOLE = [
    ((9, 6), "C", (-1,)), ((9, 5, 6), "C", (-1,)), ((30, 3, 2), "C", (-2, -1)), ((30, 3, 2), "C", (1,)),
    ((6, 9), "F", (0,)), ((6, 5, 4), "F", (0,)), ((2, 3, 30), "F", (0, 1)), ((2, 3, 30), "F", (-2,)),
]  # fmt: skip
CUT = [
    ((150,), "C", (-1,)), ((3, 150), "C", (-1,)), ((30, 6), "C", (0,)), ((30, 6), "F", (-1,)), ((30, 6), "F", (0, 1)),
    ((2, 10, 10), "C", (-2, -1)), ((2, 30, 3), "C", (1,)), ((6, 5, 4), "C", (0, 1)), ((6, 5, 4), "C", (0, 2)),
    ((6, 5, 4), "F", (-1,)), ((6, 5, 4), "F", (0, -1)), ((6, 5, 4), "C", (2, 0, 1)),
]  # fmt: skip


# Each shape with each norm and each dtype; with all pairs of those where everything runs.
RESULTS = [
    pytest.param(*shape, norm, dtype, dtype != "float16", marks=[] if (i + j + k) % 3 == 0 else pytest.mark.thorough)
    for i, shape in enumerate(WHOLE + CUT) for j, norm in enumerate(NORMS) for k, dtype in enumerate(FLOATS)
]  # fmt: skip


@pytest.mark.parametrize(("shape", "order", "axis", "norm", "dtype", "with_parameters"), RESULTS)
def test_result(blocks, shape, order, axis, norm, dtype, with_parameters):
    x = save_x(shape, dtype, order)
    options, function = parametrized(norm, x, axis) if with_parameters else ([], NORMS[norm])
    assert normalize("--norm", norm, f"--axis={','.join(map(str, axis))}", *options) == 0
    y = np.load("y.npy")
    cut = (shape, order, axis) in CUT
    (assert_few_ulp if cut else assert_same_bits)(y, function(x, axis=axis))
    assert y.flags.f_contiguous == x.flags.f_contiguous
    written, measured = (counter.call_count for counter in blocks)
    assert written > 1
    assert measured > 1 if cut else measured == 0


@pytest.mark.parametrize("dtype", [None, *FLOATS])
@pytest.mark.parametrize("dtype_of_file", [*FLOATS, ">f2", ">f4", ">f8"])
def test_dtype(blocks, dtype_of_file, dtype):
    x = save_x((40, 3), dtype_of_file)
    assert normalize(*(["--dtype", dtype] if dtype else [])) == 0
    wide = x.astype(np.promote_types(dtype_of_file, dtype or dtype_of_file))
    assert_same_bits(np.load("y.npy"), anynorm.layer_norm(wide).astype(dtype or dtype_of_file))


@pytest.mark.parametrize("axis", ["0", "-1"])
@pytest.mark.parametrize("shape", [(0,), (0, 3), (3, 0), (2, 0, 3)])
def test_empty_array(shape, axis):
    save_x(shape)
    assert normalize("--axis", axis, "--dtype", "float64") == 0
    assert_same_bits(np.load("y.npy"), np.empty(shape))


REPORT = ", 3 rows with NaN or Inf (the first is row 0 of x.npy)\n"


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("norm", NORMS)
def test_nan_and_inf_make_their_rows_nan(blocks, norm, dtype, capsys):
    x = save_x((30, 6), dtype)
    x[3, 0], x[20, 1], x[4, 2], x[25, 2] = np.inf, np.nan, np.inf, -np.inf
    np.save("x.npy", x)
    assert normalize("--norm", norm, "--axis", "0") == 0
    y = np.load("y.npy")
    assert np.isnan(y[:, :3]).all()
    assert_few_ulp(y[:, 3:], NORMS[norm](x[:, 3:], axis=0))
    assert capsys.readouterr().err.endswith(REPORT)


@pytest.mark.parametrize(
    ("shape", "order", "axis", "rows", "first"),
    [
        ((40, 3), "C", "-1", [(7,), (39,)], "row 7"),
        ((5, 6, 4), "C", "-1", [(1, 5), (4, 0)], "row (1, 5)"),
        ((4, 6, 5), "F", "0", [(5, 1), (0, 4)], "row (5, 1)"),
        ((30, 6), "F", "-1", [(4,), (29,)], "row 4"),
        ((3, 50), "C", "-1", [(2,)], "row 2"),
        ((30,), "C", "0", [()], "the only row"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_rows_with_nan_are_counted_or_refused(small_blocks, capsys, folder, shape, order, axis, rows, first, value):
    x = save_x(shape, order=order)
    along = int(axis) % len(shape)
    for row in rows:
        x[*row[:along], 2, *row[along:]] = value
    np.save("x.npy", x)
    # A weight of NaN makes no row of the file one that holds NaN.
    weight = np.ones(shape[along], "float32")
    weight[0] = np.nan
    np.save("w.npy", weight)
    options = ("--axis", axis, "--weight", "w.npy")
    assert normalize(*options) == 0
    many = f"{len(rows)} rows with NaN or Inf (the first is " if len(rows) > 1 else "1 row with NaN or Inf ("
    assert capsys.readouterr().err.endswith(f", {many}{first} of x.npy)\n")
    Path("y.npy").unlink()
    assert normalize(*options, "--on-nan", "fail") == 1
    assert_one_line(capsys.readouterr().err, f"{first} of x.npy holds NaN or Inf")
    assert not Path("y.npy").exists()
