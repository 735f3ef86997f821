"""Rows that scale_norm leaves short, of zeros or shorter than eps: normalized as everywhere, counted, told of."""

import io
import math
import re
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zarr
from safetensors.numpy import save_file

import anynorm
from anynorm import cli
from anynorm._files.formats import zarr as zarr_files
from tests.files import NORMS, assert_few_ulp, assert_same_bits, deviates, normalize, save_x
from tests.test_files_streams import Bytes

pytestmark = pytest.mark.usefixtures("folder")

SHORT = "shorter than --eps"


@pytest.mark.parametrize("norm", NORMS)
def test_eps_is_that_of_the_function(norm):
    x = save_x() * 1e-7  # so that it matters
    np.save("x.npy", x)
    assert normalize("--norm", norm) == 0
    assert_same_bits(np.load("y.npy"), NORMS[norm](x))


def test_short_embeddings_become_unit_vectors_unless_they_are_shorter_than_eps(capsys):
    x = np.zeros((3, 4))
    x[:, 1] = 1e-7, 1e-12, 9e-13
    np.save("x.npy", x)
    assert normalize("--norm", "scale") == 0
    np.testing.assert_allclose(np.load("y.npy")[:, 1], [1, 1, 0.9], rtol=1e-15)
    (line,) = told(capsys.readouterr().err)
    assert line == f"1 row {SHORT} 1e-12 (row 2 of x.npy)"


def with_short_rows(dtype="float32"):
    """Rows 4 and 5 are zero, 7 and 20 short for an eps of 1e-4, 21 holds NaN."""
    x = deviates((30, 6), dtype)
    x[4:6] = 0
    x[7] *= 1e-6
    x[20] = 0
    x[20, 5] = 5e-5
    x[21, 2] = np.nan
    x[22, :5] = 0  # no shorter than its last element
    return x


def told(error):
    """What stands after the time that the run took, for each kind of rows."""
    (line,) = error.splitlines()
    return re.split(r", (?=\d+ rows? )", line)[1:]


NAN = "1 row with NaN or Inf (row 21 of {name})"
LINES = [
    "2 rows of zeros (the first is row 4 of {name})",
    "2 rows shorter than --eps 0.0001 (the first is row 7 of {name})",
]


@pytest.mark.parametrize("suffix", [".npy", "-", ".safetensors", ".parquet", ".zarr"])
def test_each_format(small_blocks, monkeypatch, capsys, suffix):
    monkeypatch.setattr(zarr_files, "_BLOCK_NBYTES", 300)
    x, name = with_short_rows(), "e"
    source, target = f"x{suffix}", f"y{suffix}"
    if suffix in (".npy", "-"):
        np.save("x.npy", x)
        name = "x.npy"
    if suffix == "-":
        monkeypatch.setattr(sys, "stdin", Bytes(Path("x.npy").read_bytes()))
        source, target, name = "-", "y.npy", "standard input"
    elif suffix == ".safetensors":
        save_file({"e": x}, source)
    elif suffix == ".parquet":
        pq.write_table(pa.table({"e": list(x)}), source, row_group_size=8)
    elif suffix == ".zarr":
        zarr.create_group(source).create_array("e", data=x, chunks=(7, 4))
    assert cli.main(["normalize", source, target, "--norm", "scale", "--eps", "1e-4"]) == 0
    assert told(capsys.readouterr().err) == [line.format(name=name) for line in [NAN, *LINES]]
    if target == "y.npy":
        assert_same_bits(np.load(target), anynorm.scale_norm(x, eps=1e-4))


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_rows_that_blocks_cut(small_blocks, capsys, dtype):
    x = np.ascontiguousarray(with_short_rows(dtype).T)
    np.save("x.npy", x)
    assert normalize("--norm", "scale", "--axis", "0", "--eps", "1e-4") == 0
    assert told(capsys.readouterr().err) == [line.format(name="x.npy") for line in [NAN, *LINES]]
    y = np.load("y.npy")
    assert np.isnan(y[:, 21]).all()
    others = [i for i in range(30) if i != 21]
    assert_few_ulp(y[:, others], anynorm.scale_norm(x[:, others], axis=0, eps=1e-4))


@pytest.mark.parametrize("norm", ["layer", "rms"])
def test_other_norms_leave_none_short(capsys, norm):
    np.save("x.npy", with_short_rows())
    assert normalize("--norm", norm, "--eps", "1e-4") == 0
    assert told(capsys.readouterr().err) == [NAN.format(name="x.npy")]


LENGTH = 0.625  # of the row 0, 0.375, 0.5, without rounding
NARROW, WIDE = 1e-6, 2e-15  # what moments of float16 and of wider data may be off by, relatively


@pytest.mark.parametrize(("dtype", "off"), [("float16", NARROW), ("float32", WIDE), ("float64", WIDE)])
@pytest.mark.parametrize("cut", [False, True])
@pytest.mark.parametrize("short", [0, 1])
def test_a_row_as_long_as_eps_is_not_short(small_blocks, capsys, dtype, off, cut, short):
    x = np.zeros((40, 3), dtype)
    x[:, 0] = 1
    x[3] = [0, 0.375, 0.5]
    if cut:
        x = np.ascontiguousarray(np.concatenate([x.T, np.zeros((60, 40), dtype)]))
        eps = LENGTH * (1 + off if short else 1 - off)
    else:
        eps = math.nextafter(LENGTH, 1) if short else LENGTH
    np.save("x.npy", x)
    assert normalize("--norm", "scale", f"--axis={0 if cut else -1}", "--eps", repr(eps)) == 0
    lines = told(capsys.readouterr().err)
    assert lines == [f"1 row {SHORT} {eps!r} (row 3 of x.npy)"] * short


@pytest.mark.parametrize("axis", ["-1", "0"])
@pytest.mark.parametrize("value", [5e-324, 1e-200])
def test_the_least_length_is_no_zero(small_blocks, capsys, axis, value):
    """Squared it is."""
    x = np.zeros((40, 3))
    x[:, 0] = 1
    x[3] = [0, value, 0]
    x[5] = 0
    np.save("x.npy", x if axis == "-1" else np.ascontiguousarray(x.T))
    for eps, short in (("0", []), (repr(value), []), (repr(3 * value), [SHORT])):
        assert normalize("--norm", "scale", "--axis", axis, "--eps", eps, "--force") == 0
        zero, *others = told(capsys.readouterr().err)
        assert zero == "1 row of zeros (row 5 of x.npy)"
        assert [one in line for one, line in zip(short, others, strict=True)] == [True] * len(short)


def test_an_eps_that_float16_has_not(small_blocks, capsys):
    np.save("x.npy", np.zeros((9, 6), "float16"))
    assert normalize("--norm", "scale", "--eps", "1e-12") == 0
    assert told(capsys.readouterr().err) == ["9 rows of zeros (the first is row 0 of x.npy)"]


def test_where_rows_are(small_blocks, capsys):
    x = np.ones((3, 5, 4, 2), "float32")
    x[1, 2, :, 1] = x[2, 4, :, 0] = 0
    np.save("x.npy", x)
    assert normalize("--norm", "scale", "--axis", "2") == 0
    assert told(capsys.readouterr().err) == ["2 rows of zeros (the first is row (1, 2, 1) of x.npy)"]
    np.save("x.npy", np.asfortranarray(x[..., 0]))
    assert normalize("--norm", "scale", "--axis", "2", "--force") == 0
    assert told(capsys.readouterr().err) == ["1 row of zeros (row (2, 4) of x.npy)"]
    np.save(out := io.BytesIO(), np.zeros(7))
    Path("x.npy").write_bytes(out.getvalue())
    assert normalize("--norm", "scale", "--force") == 0
    assert told(capsys.readouterr().err) == ["1 row of zeros (the only row of x.npy)"]
