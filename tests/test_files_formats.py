"""Files of several arrays: what is named is normalized, all else comes through as it was."""

import json
import os
import pickle
import shutil
import sys
from pathlib import Path
from unittest import mock

import ml_dtypes
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zarr
from safetensors import safe_open
from safetensors.numpy import save_file

import anynorm
from anynorm import cli
from anynorm._files import zarr as zarr_files
from anynorm._files.target import replacing_folder
from tests.files import FLOATS, assert_few_ulp, assert_one_line, assert_refused, assert_same_bits

pytestmark = pytest.mark.usefixtures("folder")

DTYPES = {name: np.dtype(name) for name in FLOATS} | {"bfloat16": np.dtype(ml_dtypes.bfloat16)}


def deviates(shape, dtype="float32", seed=0):
    return (np.random.default_rng(seed).standard_normal(shape) + 3).astype(dtype)


def normalize(source, target, *options):
    return cli.main(["normalize", source, *([target] if target else []), "--norm", "layer", *options])


def wider(x, dtype):
    """In what a result of another dtype is computed."""
    if x.dtype == dtype:
        return x
    nbytes = max(x.dtype.itemsize, dtype.itemsize)
    return x.astype("float32" if nbytes == 2 else f"float{8 * nbytes}")  # float16 and bfloat16 have nothing in common


def save_tensors(dtype="float32"):
    tensors = {"e": deviates((30, 6), dtype), "w": deviates((4, 6), dtype, 1), "ids": np.arange(7)}
    save_file(tensors, "x.safetensors", {"format": "pt", "kept": "yes"})
    return tensors


def load_tensors(path):
    with safe_open(path, "numpy") as file:
        return {name: file.get_tensor(name) for name in file.keys()}, file.metadata()  # noqa: SIM118


@pytest.mark.parametrize("dtype", [None, *DTYPES])
@pytest.mark.parametrize("dtype_of_file", DTYPES)
def test_safetensors(small_blocks, dtype_of_file, dtype):
    tensors = save_tensors(DTYPES[dtype_of_file])
    options = ["--tensor", "w", "--tensor", "e", *(["--dtype", dtype] if dtype else [])]
    assert normalize("x.safetensors", "y.safetensors", *options) == 0
    found, metadata = load_tensors("y.safetensors")
    assert metadata == {"format": "pt", "kept": "yes"}
    assert_same_bits(found.pop("ids"), tensors.pop("ids"))
    out = DTYPES[dtype or dtype_of_file]
    for name, x in tensors.items():
        assert_same_bits(found.pop(name), anynorm.layer_norm(wider(x, out)).astype(out))
    assert found == {}


@pytest.mark.parametrize("axis", ["0", "-1"])
def test_safetensors_in_place(small_blocks, axis):
    tensors = save_tensors()
    header = Path("x.safetensors").read_bytes()[:200]
    assert normalize("x.safetensors", None, "--in-place", "--tensor", "e", "--axis", axis) == 0
    found, _ = load_tensors("x.safetensors")
    assert_few_ulp(found["e"], anynorm.layer_norm(tensors["e"], axis=int(axis)))
    for name in ("w", "ids"):
        assert_same_bits(found[name], tensors[name])
    assert Path("x.safetensors").read_bytes()[:200] == header


def test_statistics_of_tensors(small_blocks, capsys):
    tensors = save_tensors(DTYPES["bfloat16"])
    assert cli.main(["normalize", "x.safetensors", "--moments", "--tensor", "e", "--tensor", "w"]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    for name, at in (("e", 0), ("w", 6)) if lines[0][0] == "e:" else (("w", 0), ("e", 6)):
        assert lines[at][:2] == [f"{name}:", "bfloat16"]
        assert float(lines[at + 2][-1]) == pytest.approx(tensors[name].astype(float).mean(), rel=1e-14)


CHUNKED = {"chunks": (7, 4), "attributes": {"units": "mV"}, "fill_value": 1.5}


def save_group(**options):
    zarr.create_group("x.zarr", attributes={"title": "kept"}, zarr_format=options.get("zarr_format", 3))
    for name, x in (("e", deviates((30, 6))), ("deep/w", deviates((9, 6), seed=1))):
        zarr.create_array("x.zarr", name=name, data=x, **{**CHUNKED, "fill_value": None, **options})
    zarr.create_array("x.zarr", name="ids", data=np.arange(9), zarr_format=options.get("zarr_format", 3))
    return {name: zarr.open("x.zarr", mode="r")[name][...] for name in ("e", "deep/w", "ids")}


@pytest.fixture
def small_chunks(monkeypatch):
    """Blocks of 300 bytes: a few rows of chunks, and not a whole column of them."""
    monkeypatch.setattr(zarr_files, "_BLOCK_NBYTES", 300)


@pytest.mark.parametrize("dtype", [None, "float16", "float64"])
@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"compressors": None, "dimension_names": ("n", "d")},
        {"compressors": zarr.codecs.BloscCodec(cname="zstd"), "shards": (14, 8)},
        {"zarr_format": 2, "order": "F"},
    ],
    ids=["plain", "uncompressed", "sharded", "format 2"],
)
def test_zarr(small_chunks, options, axis, dtype):
    arrays = save_group(**options)
    more = [f"--axis={axis}", *(["--dtype", dtype] if dtype else [])]
    assert normalize("x.zarr", "y.zarr", "--tensor", "e", *more) == 0
    old, new = (zarr.open(name, mode="r") for name in ("x.zarr", "y.zarr"))
    out = np.dtype(dtype or "float32")
    assert_few_ulp(new["e"][...], anynorm.layer_norm(wider(arrays["e"], out), axis=axis).astype(out))
    for name in ("deep/w", "ids"):
        assert_same_bits(new[name][...], arrays[name])
    assert dict(new.attrs) == {"title": "kept"}
    before, after = old["e"].metadata.to_dict(), new["e"].metadata.to_dict()
    for changed in ("data_type", "dtype", "fill_value") if dtype else ():
        before.pop(changed, None), after.pop(changed, None)
    if not (dtype and options.get("shards")):  # whose compressor is told the size of an element
        assert after == before
    assert new["e"].chunks == (7, 4)
    assert new["e"].shards == options.get("shards")


def test_zarr_of_one_array_with_chunks_left_out(small_chunks, folder):
    array = zarr.create_array("x.zarr", shape=(30, 6), dtype="float32", **CHUNKED)
    array[3:10] = deviates((7, 6))
    Path("y.zarr").mkdir()
    Path("y.zarr", "old").write_bytes(b"old")
    assert normalize("x.zarr", "y.zarr", "--force") == 0
    found = zarr.open("y.zarr", mode="r")
    assert_same_bits(found[...], anynorm.layer_norm(array[...]))
    assert dict(found.attrs) == {"units": "mV"}
    assert sorted(os.listdir(folder)) == ["x.zarr", "y.zarr"]
    assert not Path("y.zarr", "old").exists()


def test_zarr_killed_between_the_old_folder_and_the_new(small_chunks, folder, capsys):
    arrays = save_group()
    Path("x.zarr").rename("y.zarr")
    save_copy = shutil.copytree("y.zarr", "x.zarr")
    with replacing_folder(Path("y.zarr"), True) as part:
        left = part.with_name(part.name[:30] + "0123.old")
    Path("y.zarr").rmdir()
    shutil.copytree(save_copy, left)  # all that such a process leaves
    assert_refused(capsys, folder, "holds no f", "x.zarr", "y.zarr", "--norm", "layer", "--tensor", "f", "--force")
    assert left.exists()
    assert normalize("x.zarr", "y.zarr", "--tensor", "e") == 1
    assert_one_line(capsys.readouterr().err, "y.zarr exists; pass --force")
    assert_same_bits(zarr.open("y.zarr", mode="r")["e"][...], arrays["e"])
    assert sorted(os.listdir(folder)) == ["x.zarr", "y.zarr"]


@pytest.mark.parametrize("where", [{"filters": [{"id": "pickle"}]}, {"compressor": {"id": "pickle"}}])
def test_pickles_in_zarr_are_never_loaded(folder, capsys, where):
    zarr.create_array("x.zarr", data=deviates((4, 6)), zarr_format=2)
    path = Path("x.zarr/.zarray")
    path.write_text(json.dumps(json.loads(path.read_text()) | where))
    with mock.patch.object(pickle, "loads") as loads:
        assert_refused(capsys, folder, "x.zarr cannot be read", "x.zarr", "y.zarr", "--norm", "layer")
    assert not loads.called


@pytest.mark.parametrize("damage", [lambda chunk: chunk[: len(chunk) // 2], lambda chunk: b"x" * len(chunk)])
def test_a_damaged_chunk_is_told_of(small_chunks, folder, capsys, damage):
    save_group()
    chunk = Path("x.zarr/e/c/1/0")
    chunk.write_bytes(damage(chunk.read_bytes()))
    assert_refused(capsys, folder, "e cannot be read", "x.zarr", "y.zarr", "--norm", "layer", "--tensor", "e")


def lists(x, kind, nulls=()):
    values = [None if i in nulls else list(row) for i, row in enumerate(x)]
    return pa.array(values, kind(pa.from_numpy_dtype(x.dtype)))


KINDS = {
    "list": pa.list_,
    "large list": pa.large_list,
    "fixed": lambda value: pa.list_(pa.field("item", value, metadata={"of": "item"}), 6),
}


def save_table(kind, dtype="float32", nulls=(), **options):
    x = deviates((30, 6), dtype)
    columns = {"id": pa.array(range(30)), "e": lists(x, KINDS[kind], nulls), "text": pa.array(["a", None, "b"] * 10)}
    table = pa.table(columns).replace_schema_metadata({"kept": "yes"})
    pq.write_table(table, "x.parquet", row_group_size=7, **options)
    return x, pq.read_table("x.parquet")


def rows_of(table, dtype):
    return np.asarray(table["e"].drop_null().to_pylist(), dtype)


@pytest.mark.parametrize("dtype", [None, *FLOATS])
@pytest.mark.parametrize("dtype_of_file", FLOATS)
@pytest.mark.parametrize("kind", KINDS)
def test_parquet(kind, dtype_of_file, dtype):
    x, old = save_table(kind, dtype_of_file, compression={"id": "gzip", "text": "snappy"}, use_dictionary=["text"])
    assert normalize("x.parquet", "y.parquet", *(["--dtype", dtype] if dtype else [])) == 0
    new, out = pq.read_table("y.parquet"), np.dtype(dtype or dtype_of_file)
    assert_same_bits(rows_of(new, out), anynorm.layer_norm(wider(x, out)).astype(out))
    assert new.drop_columns("e").equals(old.drop_columns("e"), check_metadata=True)
    if not dtype:
        assert new.schema.equals(old.schema, check_metadata=True)
    assert new.schema.field("e").type.value_type == pa.from_numpy_dtype(out)
    before, after = (pq.read_metadata(name) for name in ("x.parquet", "y.parquet"))
    assert [after.row_group(i).num_rows for i in range(5)] == [7, 7, 7, 7, 2]
    for i in range(3):
        a, b = (metadata.row_group(1).column(i) for metadata in (before, after))
        assert (a.compression, a.has_dictionary_page) == (b.compression, b.has_dictionary_page)


@pytest.mark.parametrize("kind", KINDS)
def test_parquet_null_in_place_of_lists(kind, capsys, folder):
    x, old = save_table(kind, nulls=(0, 1, 2, 3, 4, 5, 6, 9, 29))
    command = ["x.parquet", "y.parquet", "--norm", "rms", "--axis", "0"]
    assert_refused(capsys, folder, "has null in place of lists", *command)
    assert normalize("x.parquet", None, "--in-place") == 0
    new = pq.read_table("x.parquet")
    assert new["e"].is_null().equals(old["e"].is_null())
    there = ~old["e"].is_null().to_numpy()
    assert_same_bits(rows_of(new, "float32"), anynorm.layer_norm(x[there]))


@pytest.mark.parametrize("kind", KINDS)
def test_parquet_over_all_rows(kind):
    x, _ = save_table(kind)
    assert normalize("x.parquet", "y.parquet", "--column", "e", "--axis", "0") == 0
    assert_few_ulp(rows_of(pq.read_table("y.parquet"), "float32"), anynorm.layer_norm(x, axis=0))


def save_odd_files():
    save_tensors()
    save_file({"ids": np.arange(3)}, "ids.safetensors")
    Path("text.safetensors").write_bytes(b"no safetensors here")
    Path("cut.safetensors").write_bytes(Path("x.safetensors").read_bytes()[:-1])
    save_group()
    Path("empty.zarr").mkdir()
    Path("file.zarr").write_bytes(b"")
    save_table("list")
    Path("cut.parquet").write_bytes(Path("x.parquet").read_bytes()[:-9])
    pq.write_table(pa.table({"e": [[1.0, 2.0], [3.0]]}), "ragged.parquet")
    pq.write_table(pa.table({"e": [[1.0, None]]}), "holes.parquet")
    pq.write_table(pa.table({"a": [[1.0]], "b": [[2.0]]}), "two.parquet")
    pq.write_table(pa.table({"a": [1.0]}), "none.parquet")
    pq.write_table(pa.table([[[1.0]], [[2.0]]], names=["e", "e"]), "same.parquet")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("x.safetensors", "holds"),
        ("x.safetensors --tensor f", "x.safetensors holds no f; it holds"),
        ("x.safetensors --tensor ids", "ids holds I64"),
        ("ids.safetensors", "ids holds I64"),
        ("text.safetensors", "text.safetensors is not a readable .safetensors file"),
        ("cut.safetensors", "cut.safetensors is not a readable .safetensors file"),
        ("x.zarr", "x.zarr holds"),
        ("x.zarr --tensor ids", "ids holds int64"),
        ("x.zarr --tensor e --dtype bfloat16", "Zarr has no bfloat16"),
        ("x.zarr --in-place", "cannot be normalized in place"),
        ("empty.zarr", "empty.zarr cannot be read"),
        ("file.zarr", "not a folder of Zarr"),
        ("none.zarr", "none.zarr: No such file"),
        ("x.parquet --column id", "x.parquet holds no id; it holds e"),
        ("x.parquet --dtype bfloat16", "Parquet has no bfloat16"),
        ("cut.parquet", "cut.parquet cannot be read"),
        ("ragged.parquet", "lists of different lengths"),
        ("holes.parquet", "lists with null in them"),
        ("two.parquet", "two.parquet holds a, b; say with --column"),
        ("same.parquet --column e", "several columns of the name e"),
        ("none.parquet", "nothing that can be normalized"),
    ],
)
def test_refuses(capsys, folder, arguments, message):
    save_odd_files()
    source, *options = arguments.split()
    target = [] if "--in-place" in options else [f"y{Path(source).suffix}"]
    assert_refused(capsys, folder, message, source, *target, *options, "--norm", "layer")


@pytest.mark.parametrize("module", ["safetensors", "zarr", "pyarrow"])
def test_a_missing_package_is_named(monkeypatch, capsys, folder, module):
    save_odd_files()
    monkeypatch.setitem(sys.modules, module, None)
    suffix = {"pyarrow": "parquet"}.get(module, module)
    assert_refused(capsys, folder, "pip install 'anynorm[files]'", f"x.{suffix}", f"y.{suffix}", "--norm", "layer")
