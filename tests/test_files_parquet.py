"""Columns of lists of floats in .parquet files: each kind of list, what comes through, and what is refused."""

import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import anynorm
from anynorm import cli
from tests.files import FLOATS, assert_few_ulp, assert_refused, assert_same_bits, deviates, wider, written_by_arrow

pytestmark = pytest.mark.usefixtures("folder")


# Older Arrow finds other damage first, or none.
this_arrow = pytest.mark.skipif(int(pa.__version__.split(".")[0]) < 26, reason="needs pyarrow 26")


def normalize(*options, target="y.parquet"):
    return cli.main(["normalize", "x.parquet", *([target] if target else []), "--norm", "layer", *options])


KINDS = {
    "list": pa.list_,
    "large list": pa.large_list,
    "fixed": lambda value: pa.list_(pa.field("item", value, metadata={"of": "item"}), 6),
    "view": pa.list_view,
    "large view": pa.large_list_view,
    "tensor": lambda value: pa.fixed_shape_tensor(value, (6,), dim_names=["features"]),
}


def lists(x, kind, nulls=()):
    values = [None if i in nulls else row.reshape(-1) for i, row in enumerate(x)]
    kind = kind(pa.from_numpy_dtype(x.dtype))
    if isinstance(kind, pa.FixedShapeTensorType):
        return pa.ExtensionArray.from_storage(kind, pa.array(values, kind.storage_type))
    return pa.array(values, kind)


def save_table(kind, dtype="float32", nulls=(), shape=(30, 6), **options):
    x = deviates(shape, dtype)
    columns = {"id": pa.array(range(30)), "e": lists(x, kind, nulls), "text": pa.array(["a", None, "b"] * 10)}
    table = pa.table(columns).replace_schema_metadata({"kept": "yes"})
    written_by_arrow(table, "x.parquet", row_group_size=7, **options)
    return x, pq.read_table("x.parquet")


def rows_of(table, dtype):
    column = table["e"].combine_chunks().drop_null()
    column = column.storage if isinstance(column, pa.ExtensionArray) else column
    return np.asarray(column.to_pylist(), dtype)


DTYPES = [("list", a, b) for a in FLOATS for b in (None, *FLOATS)]
DTYPES += [(kind, "float32", b) for kind in KINDS if kind != "list" for b in (None, "float64")]


@pytest.mark.parametrize(("kind", "dtype_of_file", "dtype"), DTYPES)
def test_result(kind, dtype_of_file, dtype):
    options = {"compression": {"id": "gzip", "text": "snappy"}, "use_dictionary": ["text"]}
    x, old = save_table(KINDS[kind], dtype_of_file, **options)
    assert normalize(*(["--dtype", dtype] if dtype else [])) == 0
    new, out = pq.read_table("y.parquet"), np.dtype(dtype or dtype_of_file)
    assert_same_bits(rows_of(new, out), anynorm.layer_norm(wider(x, out)).astype(out))
    assert new.drop_columns("e").equals(old.drop_columns("e"), check_metadata=True)
    found, was = new.schema.field("e").type, old.schema.field("e").type
    if dtype in (None, dtype_of_file):
        assert new.schema.equals(old.schema, check_metadata=True)
    assert (type(found), found.value_type) == (type(was), pa.from_numpy_dtype(out))
    before, after = (pq.read_metadata(name) for name in ("x.parquet", "y.parquet"))
    assert [after.row_group(i).num_rows for i in range(5)] == [7, 7, 7, 7, 2]
    for i in range(3):
        a, b = (metadata.row_group(1).column(i) for metadata in (before, after))
        assert (a.compression, a.has_dictionary_page) == (b.compression, b.has_dictionary_page)


@pytest.mark.parametrize("kind", KINDS)
def test_null_in_place_of_lists(kind, capsys, folder):
    x, old = save_table(KINDS[kind], nulls=(0, 1, 2, 3, 4, 5, 6, 9, 29))
    command = ["x.parquet", "y.parquet", "--norm", "rms", "--axis", "0"]
    assert_refused(capsys, folder, "has null in place of lists", *command)
    assert normalize("--in-place", target=None) == 0
    new = pq.read_table("x.parquet")
    assert new.schema == old.schema
    assert new["e"].is_null().equals(old["e"].is_null())
    there = ~old["e"].is_null().to_numpy()
    assert_same_bits(rows_of(new, "float32"), anynorm.layer_norm(x[there]))


def test_over_all_rows():
    x, _ = save_table(pa.list_)
    assert normalize("--column", "e", "--axis", "0") == 0
    assert_few_ulp(rows_of(pq.read_table("y.parquet"), "float32"), anynorm.layer_norm(x, axis=0))


@pytest.mark.parametrize("axis", ["1,2", "-1", "1", "0"])
def test_tensors_have_axes_of_their_own(axis):
    x, old = save_table(lambda value: pa.fixed_shape_tensor(value, (2, 3)), shape=(30, 2, 3))
    assert normalize("--axis", axis) == 0
    new = pq.read_table("y.parquet")
    assert new.schema == old.schema
    want = anynorm.layer_norm(x, axis=tuple(map(int, axis.split(","))))
    assert_few_ulp(rows_of(new, "float32").reshape(30, 2, 3), want)


def test_no_rows():
    pq.write_table(pa.table({"e": pa.array([], pa.list_(pa.float32()))}), "x.parquet")
    assert normalize() == 0
    assert pq.read_table("y.parquet").equals(pq.read_table("x.parquet"))


def save_odd_files():
    save_table(pa.list_)
    Path("cut.parquet").write_bytes(Path("x.parquet").read_bytes()[:-9])
    permuted = pa.fixed_shape_tensor(pa.float32(), (2, 3), permutation=[1, 0])
    for name, columns in {
        "ragged": {"e": [[1.0, 2.0], [3.0]]},
        "holes": {"e": [[1.0, None]]},
        "two": {"a": [[1.0]], "b": [[2.0]]},
        "none": {"a": [1.0], "b": [2.0]},
        "whole": {"a": [[1.0]], "e": [[1]]},
        "struct": {"e": [{"a": 1.0, "b": [2]}]},
        "nested": {"e": [[[1.0]]]},
        "permuted": {"e": lists(np.ones((1, 6), "float32"), lambda value: permuted)},
    }.items():
        pq.write_table(pa.table(columns), f"{name}.parquet")
    pq.write_table(pa.table([[[1.0]], [[2.0]]], names=["e", "e"]), "same.parquet")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("x.parquet --column f", "x.parquet holds no f; it holds e"),
        ("x.parquet --column id", "id of x.parquet is int64; --column takes lists of floats"),
        ("x.parquet --dtype bfloat16", "Parquet has no bfloat16"),
        ("cut.parquet", "cut.parquet cannot be read"),
        ("ragged.parquet", "lists of different lengths"),
        ("holes.parquet", "lists with null in them"),
        ("two.parquet", "two.parquet holds a, b; say with --column"),
        ("same.parquet --column e", "several columns of the name e"),
        ("none.parquet", "holds no column of lists of floats; it holds a: double, b: double"),
        ("whole.parquet --column e", "e of whole.parquet is list<int64>; --column takes lists of floats"),
        ("struct.parquet", "it holds e: struct<a: double, b: list<int64>>"),
        ("nested.parquet --column e", "e of nested.parquet is list<list<double>>; --column"),
        ("permuted.parquet", "has its axes permuted"),
    ],
)
def test_refuses(capsys, folder, arguments, message):
    save_odd_files()
    source, *options = arguments.split()
    assert_refused(capsys, folder, message, source, "y.parquet", *options, "--norm", "layer")


def test_an_index_past_its_dictionary_is_told_of(capsys, folder):
    # In a column that is copied; followed, it ends the process or gives a file that nobody can read.
    shutil.copy(Path(__file__).parent / "data" / "dictionary-index-out-of-range.parquet", "x.parquet")
    message = "x.parquet cannot be read: id is damaged: Value at position 60 out of bounds: 3"
    assert_refused(capsys, folder, message, "x.parquet", "y.parquet", "--norm", "layer")
    assert_refused(capsys, folder, message, "x.parquet", "--in-place", "--norm", "layer")


def test_a_page_that_does_not_fit_its_checksum_is_told_of(capsys, folder):
    x, _ = save_table(pa.list_, compression="NONE", use_dictionary=False, write_page_checksum=True)
    content = Path("x.parquet").read_bytes()
    row = x[3].tobytes()
    assert content.count(row) == 1
    Path("x.parquet").write_bytes(content.replace(row, bytes(len(row))))
    assert_refused(capsys, folder, "x.parquet cannot be read", "x.parquet", "y.parquet", "--norm", "layer")


@this_arrow
@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("codec-that-is-none", "Unsupported compression codec value"),
        ("histogram-that-does-not-fit", "level histogram size mismatch"),
    ],
)
def test_damaged_metadata_do_not_end_the_process(monkeypatch, capsys, folder, name, message):
    def ends_it(*_):
        raise AssertionError("where metadata are damaged, what tells of them here ends the process")

    monkeypatch.setattr("anynorm._files.formats.parquet._options", ends_it)
    shutil.copy(Path(__file__).parent / "data" / f"{name}.parquet", "x.parquet")
    assert_refused(capsys, folder, message, "x.parquet", "y.parquet", "--norm", "layer")


@this_arrow
@pytest.mark.skipif(sys.platform != "linux", reason="limits of memory and forks as Linux has them")
@pytest.mark.parametrize("files", [30, pytest.param(500, marks=pytest.mark.thorough)])
def test_files_changed_at_random_do_no_harm(files):
    root = Path(__file__).parents[1]
    command = [sys.executable, "-m", "benchmarks.files_fuzz_parquet", "--files", str(files)]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "none did harm" in done.stdout
