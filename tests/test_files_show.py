"""What is shown of the arrays in a file."""

import fractions
import io
import json
import math
import sys
from pathlib import Path
from unittest import mock

import ml_dtypes
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zarr
from safetensors.numpy import save_file

import anynorm
from anynorm import _files, cli
from anynorm._files import shown
from anynorm._files.formats import zarr as zarr_files
from tests.files import FLOATS, assert_one_line, assert_same_bits, deviates
from tests.files_between import save
from tests.test_files_streams import Bytes

pytestmark = pytest.mark.usefixtures("folder", "small_blocks")


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch):
    monkeypatch.setattr(zarr_files, "_BLOCK_NBYTES", 200)


def show(place, axis=-1, names=(), **options):
    seen = []
    place = place if place == "-" else Path(place)
    found = list(_files.show(place, names, (axis,), seen.append, **options))
    assert sum(seen) <= sum(one.nbytes or 0 for one in found)
    return found


def exact_lengths(x, axis):
    """The lengths of rows, by integers."""
    rows = np.moveaxis(x.astype("float64"), axis, -1).reshape(-1, x.shape[axis])
    return [math.sqrt(sum(fractions.Fraction(float(one)) ** 2 for one in row)) for row in rows]


@pytest.mark.parametrize("axis", [0, -1])
@pytest.mark.parametrize(
    ("suffix", "dtype"),
    [(suffix, dtype) for suffix in (".npy", ".safetensors", ".zarr", ".parquet") for dtype in FLOATS]
    + [(".safetensors", ml_dtypes.bfloat16)],
)
def test_each_format(suffix, dtype, axis):
    x = deviates((30, 6), dtype)
    save(suffix, x)
    (found,) = show(f"x{suffix}", axis)
    lengths, wide = exact_lengths(x, axis), x.astype("float64")
    assert (found.name, found.why) == ("e" if suffix in (".safetensors", ".parquet") else "", None)
    assert (found.shape, found.dtype, found.nbytes, found.axis) == (x.shape, str(x.dtype), x.nbytes, (axis % 2,))
    off = 1e-6 if x.dtype.itemsize == 2 else 1e-14
    assert found.least == pytest.approx(min(lengths), rel=off)
    assert found.median == pytest.approx(np.median(lengths), rel=off)
    assert found.largest == pytest.approx(max(lengths), rel=off)
    assert (found.rows, found.median_error, found.unit) == (len(lengths), 0, False)
    assert found.mean == pytest.approx(wide.mean(), rel=off)
    assert found.deviation == pytest.approx(wide.std(), rel=off)
    assert (found.unit_rows, found.zero_rows, found.not_finite_rows, found.not_finite) == (0, 0, 0, 0)
    if axis == -1:
        assert found.moments is None
        return
    assert found.moments.count == 30
    np.testing.assert_allclose(found.moments.mean, wide.mean(axis=0, keepdims=True), rtol=off)
    np.testing.assert_allclose(found.moments.variance, wide.var(axis=0, keepdims=True), rtol=10 * off)
    read = anynorm.Moments.from_dict(json.loads(json.dumps(found.to_dict()))["moments"])
    assert_same_bits(read.mean, found.moments.mean)


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("order", ["C", "F"])
def test_axes_and_orders(order, axis):
    x = np.asarray(deviates((7, 5, 4)), order=order)
    np.save("x.npy", x)
    (found,) = show("x.npy", axis)
    assert found.median == pytest.approx(np.median(exact_lengths(x, axis)), rel=1e-14)
    assert (found.shape, found.rows, found.axis) == (x.shape, x.size // x.shape[axis], (axis,))
    if axis == 0:
        np.testing.assert_allclose(found.moments.mean, x.astype("float64").mean(axis=0, keepdims=True), rtol=1e-14)
    else:
        assert found.moments is None


@pytest.mark.parametrize("axis", [0, -1])
def test_rows_of_each_kind(axis):
    x = deviates((40, 6), "float64")
    x[3], x[7] = 0, 0
    x[9] /= np.linalg.norm(x[9])
    x[4, :2], x[20, 5], x[21, 0] = np.nan, -np.inf, np.nan
    np.save("x.npy", x if axis == -1 else np.ascontiguousarray(x.T))
    (found,) = show("x.npy", axis)
    kept, finite = x[np.isfinite(x)], np.isfinite(x).all(axis=1)
    assert (found.rows, found.zero_rows, found.unit_rows, found.not_finite_rows, found.not_finite) == (40, 2, 1, 3, 4)
    assert found.mean == pytest.approx(kept.mean(), rel=1e-14)
    assert found.deviation == pytest.approx(kept.std(), rel=1e-14)
    lengths = exact_lengths(x[finite], -1)
    assert (found.least, found.largest) == (0, pytest.approx(max(lengths), rel=1e-14))
    assert found.median == pytest.approx(np.median(lengths), rel=1e-14)


def test_no_row_is_finite():
    np.save("x.npy", np.full((3, 2), np.nan))
    (found,) = show("x.npy")
    assert (found.least, found.median, found.mean, found.deviation) == (None, None, None, None)
    assert (found.rows, found.not_finite_rows, found.not_finite, found.unit) == (3, 3, 6, False)
    json.dumps(found.to_dict(), allow_nan=False)


@pytest.mark.parametrize("shape", [(0, 3), (3, 0)])
@pytest.mark.parametrize("axis", [0, -1])
def test_no_elements(shape, axis):
    np.save("x.npy", np.zeros(shape))
    (found,) = show("x.npy", axis)
    assert (found.shape, found.median, found.mean, found.unit, found.moments) == (shape, None, None, False, None)


@pytest.mark.parametrize(("dtype", "eps"), [("float16", 2.0**-10), ("float32", 2.0**-23), ("float64", 2.0**-52)])
@pytest.mark.parametrize("place", [0, 5])
def test_unit_vectors_to_the_rounding_of_the_dtype(dtype, eps, place):
    x = np.zeros((9, 6), dtype)
    x[:, place] = 1 + 4 * eps
    x[2, place] = 1 - 4 * eps
    np.save("x.npy", x)
    (found,) = show("x.npy")
    assert (found.unit_rows, found.unit) == (9, True)
    x[1] = 0  # of which no unit vector can be made
    np.save("x.npy", x)
    (found,) = show("x.npy")
    assert (found.unit_rows, found.zero_rows, found.unit) == (8, 1, True)
    for value in (1 + 5 * eps, 1 - 5 * eps):
        x[4, place] = value
        np.save("x.npy", x)
        (found,) = show("x.npy")
        assert (found.unit_rows, found.unit) == (7, False)
    np.save("x.npy", np.zeros((3, 6)))
    assert show("x.npy")[0].unit is False


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_what_is_normalized_is_unit_vectors(dtype):
    np.save("x.npy", deviates((30, 60), dtype))
    assert cli.main(["normalize", "x.npy", "y.npy", "--norm", "scale"]) == 0
    assert [show(name)[0].unit for name in ("x.npy", "y.npy")] == [False, True]


@pytest.mark.parametrize("rows", [64, 65, 66, 501])
def test_the_median_of_many_lengths(monkeypatch, rows):
    monkeypatch.setattr(shown, "_EXACT_ROWS", 64)
    x = np.exp(np.random.default_rng(rows).uniform(-30, 30, (rows, 1)))
    x[rows // 3] = 0
    np.save("x.npy", x)
    (found,) = show("x.npy")
    median = np.median(x)
    if rows == 64:
        assert (found.median, found.median_error) == (median, 0)
    else:
        assert found.median_error == 2**-10
        assert found.median == pytest.approx(median, rel=2**-10)
    assert (found.least, found.largest) == (0, x.max())


@pytest.mark.parametrize("exact_rows", [64, 1])
@pytest.mark.parametrize("magnitude", [1.7e308, 1e-170, 5e-324])
def test_magnitudes_whose_squares_or_sums_are_out_of_range(monkeypatch, magnitude, exact_rows):
    monkeypatch.setattr(shown, "_EXACT_ROWS", exact_rows)
    x = (
        np.random.default_rng(0).uniform(0.5, 1, (30, 1)) if magnitude > 1e-300 else np.arange(30.0)[:, None]
    ) * magnitude
    np.save("x.npy", x)
    (found,) = show("x.npy")
    exact = [fractions.Fraction(one) for one in np.sort(x[:, 0]).tolist()]
    mean = sum(exact) / 30
    unit = fractions.Fraction(magnitude)
    deviation = math.sqrt(sum(((one - mean) / unit) ** 2 for one in exact) / 30)
    assert found.median == pytest.approx(
        float((exact[14] + exact[15]) / 2), rel=2**-10 if exact_rows == 1 else 1e-15, abs=5e-324
    )
    assert found.mean == pytest.approx(float(mean), rel=1e-14, abs=5e-324)
    assert found.deviation == pytest.approx(deviation * magnitude, rel=1e-14, abs=5e-324)


def test_the_median_of_many_equal_lengths_is_theirs(monkeypatch):
    monkeypatch.setattr(shown, "_EXACT_ROWS", 64)
    np.save("x.npy", np.full((999, 1), 1 - 2.0**-53))
    assert show("x.npy")[0].median == 1 - 2.0**-53


def test_many_lengths_take_bounded_memory():
    lengths = shown.Lengths()
    with mock.patch.object(shown, "_EXACT_ROWS", 1000):
        for _ in range(50):
            lengths.add(np.random.default_rng(0).uniform(0, 1, 100))
    assert sum(map(len, lengths._kept)) == 0


def test_what_has_no_statistics_is_listed():
    save_file({"e": deviates((30, 6)), "ids": np.arange(7), "one": np.ones((), "float32")}, "x.safetensors")
    found = {one.name: one for one in show("x.safetensors")}
    assert found["e"].rows == 30
    assert (found["ids"].shape, found["ids"].dtype, found["ids"].nbytes) == ((7,), "I64", 56)
    assert found["ids"].why.startswith("ids holds I64; normalize takes float16")
    assert found["one"].why == "one holds a single number, which has no axis to normalize over"
    assert found["ids"].rows is found["one"].median is None
    assert found["ids"].unit is False
    json.dumps([one.to_dict() for one in found.values()])
    found = {one.name: one for one in show("x.safetensors", axis=1)}
    assert found["e"].why is None
    assert [one.name for one in show("x.safetensors", names=("ids",))] == ["ids"]
    with pytest.raises(ValueError, match=r"x.safetensors holds no f; it holds ids, e, one"):
        show("x.safetensors", names=("e", "f"))
    zarr.create_group("x.zarr").create_array("s", data=np.asarray([True, False]))
    zarr.create_array("x.zarr", name="deep/e", data=deviates((30, 6)))
    found = {one.name: one for one in show("x.zarr", axis=1)}
    assert found["s"].why.startswith("s holds bool;")
    assert found["deep/e"].rows == 30


def test_a_table():
    tensor = pa.fixed_shape_tensor(pa.float32(), (2, 3))
    permuted = pa.fixed_shape_tensor(pa.float32(), (2, 3), permutation=[1, 0])
    x = deviates((4, 6))
    flat = pa.array(list(x), pa.list_(pa.float32(), 6))
    pq.write_table(pa.table({
        "e": pa.array([None, *x[1:]], pa.list_(pa.float32())), "t": pa.ExtensionArray.from_storage(tensor, flat),
        "p": pa.ExtensionArray.from_storage(permuted, flat), "n": pa.array([1.0, None, 2.0, 3.0]),
        "id": pa.array(range(4), pa.int32()), "text": pa.array(["a", None, "b", "c"]),
        "s": pa.array([{"v": row, "k": 1} for row in x], pa.struct([("v", pa.list_(pa.float32())), ("k", pa.int8())])),
        "ragged": pa.array([[1.0], [2.0, 3.0], [], [4.0]]), "holes": pa.array([[1.0], [None], [2.0], [4.0]]),
        "ints": pa.array([[1], [2], [3], [4]]),
    }), "x.parquet")  # fmt: skip
    found = {one.name: one for one in show("x.parquet")}
    assert list(found) == ["e", "t", "p", "n", "id", "text", "s.v", "s.k", "ragged", "holes", "ints"]
    assert (found["e"].rows, found["e"].zero_rows, found["e"].least) == (3, 0, min(exact_lengths(x[1:], -1)))
    assert (found["t"].shape, found["t"].rows) == ((4, 2, 3), 8)
    assert found["s.v"].median == pytest.approx(np.median(exact_lengths(x, -1)), rel=1e-14)
    for name, why in (
        ("p", "has its axes permuted"), ("n", "--columns n columns of numbers"), ("id", "--column takes lists"),
        ("text", "--column takes lists of floats"), ("ragged", "lists of different lengths"),
        ("holes", "lists with null in them"), ("ints", "cast it to list<float> first"),
    ):  # fmt: skip
        assert why in found[name].why
        assert found[name].rows is None
    assert [found[name].nbytes for name in ("id", "text", "n", "e", "s.k")] == [16, None, 32, 96, 4]
    assert found["ints"].dtype == "list<int64>"
    assert "null in place of lists" in show("x.parquet", 0, names=("e",))[0].why


def test_columns_of_numbers():
    given = Path(__file__).parent / "data" / "wide.parquet"
    (found,) = show(given, columns=("f*",))
    table = pq.read_table(given)
    lengths = exact_lengths(np.stack([one.to_numpy() for one in table.columns], axis=1), -1)
    assert (found.name, found.shape, found.dtype, found.nbytes) == ("f*", (20, 8), "float32", 640)
    assert found.median == pytest.approx(np.median(lengths), rel=1e-14)
    assert show(given, 0, columns=("f[0-2]",))[0].moments.shape == (1, 3)
    np.save("x.npy", deviates((3, 4)))
    with pytest.raises(ValueError, match=r"--columns is for columns of .parquet"):
        show("x.npy", columns=("f*",))


def test_a_stream(monkeypatch):
    x = deviates((30, 6))
    np.save("x.npy", x)
    content = Path("x.npy").read_bytes()
    for axis in (0, -1):
        monkeypatch.setattr(sys, "stdin", Bytes(content))
        (found,) = show("-", axis)
        assert found.median == pytest.approx(np.median(exact_lengths(x, axis)), rel=1e-14)
    for wrong, message in ((content + b"0", "more than its header says"), (content[:-1], "ends too early")):
        monkeypatch.setattr(sys, "stdin", Bytes(wrong))
        with pytest.raises(ValueError, match=message):
            show("-")
    np.save(out := io.BytesIO(), np.arange(9))
    monkeypatch.setattr(sys, "stdin", Bytes(out.getvalue()))
    assert "holds int64" in show("-")[0].why


def test_a_damaged_file_is_told_of(capsys):
    x = deviates((30, 6))
    np.save("x.npy", x)
    Path("x.npy").write_bytes(Path("x.npy").read_bytes()[:-1])
    zarr.create_array("x.zarr", data=x, chunks=(7, 4))
    Path("x.zarr/c/1/0").write_bytes(b"x")
    for name, message in (("x.npy", "is not a readable .npy file"), ("x.zarr", "x.zarr cannot be read")):
        assert cli.main(["show", name]) == 1
        assert_one_line(capsys.readouterr().err, message)
