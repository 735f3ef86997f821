"""Statistics of one file that are applied to another."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import zarr

import anynorm
from anynorm import _files
from anynorm._files import Job
from tests.files import assert_refused, assert_same_bits, contents, deviates
from tests.test_files_streams import Bytes

pytestmark = pytest.mark.usefixtures("folder", "small_blocks")


NORMS = {"layer_norm": anynorm.layer_norm, "rms_norm": anynorm.rms_norm, "scale_norm": anynorm.scale_norm}


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize(("of", "dtype"), [("float32", "float32"), ("float32", "float64"), ("float64", "float32")])
def test_given_statistics(norm, of, dtype):
    """Those of the features of a training set; where widths differ, within a unit of the wider ones' result."""
    np.save("train.npy", train := deviates((300, 6), of))
    np.save("x.npy", x := deviates((30, 6), dtype, 1))
    (found,) = _files.show(Path("train.npy"), (), (0,), lambda nbytes: None)
    given = anynorm.Moments.from_dict(json.loads(json.dumps(found.moments.to_dict())))
    for target in ("y.npy", "y.zarr", "y.parquet"):
        outcome = _files.normalize(
            Path("x.npy"), Path(target), Job(norm, None, None, (0,), 1e-5, moments=given), overwrite=False,
            advance=lambda nbytes: None,
        )  # fmt: skip
        assert outcome.counts.phrases() == []
    y = np.load("y.npy")
    assert_same_bits(zarr.open("y.zarr", mode="r")[...], y)
    wide = anynorm.moments(train.astype("float64"), axis=0)
    want = NORMS[norm](x.astype("float64"), axis=0, moments=wide, **({} if norm == "scale_norm" else {"eps": 1e-5}))
    np.testing.assert_allclose(y, want, rtol=0, atol=4 * np.spacing(np.abs(want).max().astype(dtype)))
    if of == dtype:
        eps = 1e-5
        assert_same_bits(y, NORMS[norm](x, axis=0, moments=anynorm.moments(train, axis=0), eps=eps))


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("axis", [(0,), (1,), (0, 2), (-1,)])
def test_given_statistics_of_any_axes(order, axis):
    """Boxes cut the axes that are not normalized, and have of the statistics what goes with them."""
    x = np.asarray(deviates((7, 5, 4)), order=order)
    np.save("x.npy", x)
    given = anynorm.moments(np.ascontiguousarray(x) * 2 + 1, axis=axis)
    job = Job("layer_norm", None, None, axis, 1e-5, moments=given)
    for target in ("y.npy", "y.safetensors"):
        _files.normalize(Path("x.npy"), Path(target), job, overwrite=False, advance=lambda nbytes: None)
    assert_same_bits(np.load("y.npy"), np.asarray(anynorm.layer_norm(x, axis=axis, moments=given)))


def test_given_statistics_leave_others_of_a_row_alone(capsys, folder):
    np.save("x.npy", x := deviates((30, 6)))
    given = anynorm.moments(x, axis=0)
    x[20, 3], x[25, 0] = np.nan, np.inf
    np.save("x.npy", x)
    job = Job("layer_norm", None, None, (0,), 1e-5, moments=given)
    outcome = _files.normalize(Path("x.npy"), Path("y.npy"), job, overwrite=True, advance=lambda nbytes: None)
    (phrase,) = outcome.counts.phrases()
    assert phrase == "2 elements of NaN or Inf in the result (the first is element (20, 3) of x.npy)"
    assert np.count_nonzero(~np.isfinite(np.load("y.npy"))) == 2
    assert outcome.counts.to_dict() == {"nan_rows": 0, "zero_rows": 0, "short_rows": 0, "nan_elements": 2}
    before = contents(folder)
    job = Job("layer_norm", None, None, (0,), 1e-5, fails_on_nan=True, moments=given)
    with pytest.raises(ValueError, match=r"element \(20, 3\) of x.npy is NaN or Inf; --on-nan keep writes it"):
        _files.normalize(Path("x.npy"), Path("y.npy"), job, overwrite=True, advance=lambda nbytes: None)
    assert contents(folder) == before


def test_given_lengths_are_those_that_count():
    """A feature of zeros is no row of zeros: what is divided by is what was given."""
    x = deviates((30, 6))
    given = anynorm.moments(x, axis=0)
    x[:, 2] = 0
    np.save("x.npy", x)
    job = Job("scale_norm", None, None, (0,), 1e-12, moments=given)
    outcome = _files.normalize(Path("x.npy"), Path("y.npy"), job, overwrite=True, advance=lambda nbytes: None)
    assert outcome.counts.phrases() == []
    assert_same_bits(np.load("y.npy"), anynorm.scale_norm(x, axis=0, moments=given))


def test_given_statistics_that_do_not_fit(capsys, folder):
    np.save("x.npy", x := deviates((30, 6)))
    np.save("train.npy", x[:, :5])
    Path("train.json").write_text(json.dumps(anynorm.moments(x[:, :5], axis=0).to_dict()))
    Path("none.json").write_text(json.dumps(anynorm.moments(x[:0], axis=0).to_dict()))
    message = "the statistics of --moments must have shape (1, 6), that of x.npy, (30, 6), with the normalized axes of"
    command = ["x.npy", "y.npy", "--norm", "layer", "--axis", "0", "--moments"]
    assert_refused(capsys, folder, message, *command, "train.json")
    assert_refused(capsys, folder, "the statistics of --moments are those of no elements", *command, "none.json")


def test_given_statistics_take_one_pass(monkeypatch):
    np.save("x.npy", x := deviates((30, 6)))
    monkeypatch.setattr(sys, "stdin", Bytes(Path("x.npy").read_bytes()))
    job = Job("layer_norm", None, None, (0,), 1e-5, moments=anynorm.moments(x, axis=0))
    _files.normalize("-", Path("y.npy"), job, overwrite=False, advance=lambda nbytes: None)
    np.testing.assert_allclose(np.load("y.npy"), anynorm.layer_norm(x, axis=0), atol=1e-6)
