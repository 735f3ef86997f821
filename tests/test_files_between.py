"""IN and OUT of different formats: each into each other one, in blocks, whole or not at all."""

import io
import os
import sys
from pathlib import Path

import ml_dtypes
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zarr
from safetensors import safe_open
from safetensors.numpy import save_file

import anynorm
from anynorm._files.formats import raw, targets
from tests.files import assert_few_ulp, assert_one_line, assert_refused, assert_same_bits, deviates
from tests.files_between import DATA, PAIRS, SUFFIXES, in_small_parts, lists, load, normalize, save
from tests.test_files_streams import Bytes

pytestmark = pytest.mark.usefixtures("folder")


@pytest.fixture(autouse=True)
def small(small_blocks, monkeypatch):
    in_small_parts(monkeypatch)


@pytest.mark.parametrize("axis", [0, -1])
@pytest.mark.parametrize(("source", "target"), PAIRS)
def test_each_into_each(folder, source, target, axis):
    x = deviates((30, 6))
    save(source, x)
    assert normalize(f"x{source}", f"y{target}", f"--axis={axis}") == 0
    y, name = load(target)
    assert_few_ulp(y, anynorm.layer_norm(x, axis=axis))
    named = "" if target == ".npy" else "e" if source in (".safetensors", ".parquet") else "array"
    assert name == ("" if target == ".zarr" and named == "array" else named)
    assert len(os.listdir(folder)) == 2


@pytest.mark.parametrize(("source", "target"), [pair for pair in PAIRS if ".parquet" in pair or ".npy" in pair])
def test_more_axes(source, target):
    x = deviates((9, 4, 5), "float64")
    save(source, x)
    assert normalize(f"x{source}", f"y{target}", "--axis=1", "--dtype=float32") == 0
    assert_few_ulp(load(target)[0], anynorm.layer_norm(x, axis=1).astype("float32"))


@pytest.mark.parametrize("target", SUFFIXES[1:])
@pytest.mark.parametrize(("shape", "axis"), [((30, 6), -1), ((30, 6), 0), ((5, 4, 3), 1), ((40,), 0)])
def test_fortran_order_is_turned_round(target, shape, axis):
    x = np.asfortranarray(deviates(shape))
    np.save("x.npy", x)
    assert normalize("x.npy", f"y{target}", f"--axis={axis}") == 0
    assert_few_ulp(load(target)[0], anynorm.layer_norm(x, axis=axis))


@pytest.mark.parametrize("target", SUFFIXES[1:])
def test_a_name_for_what_has_none(target):
    x = deviates((30, 6))
    np.save("x.npy", x)
    assert normalize("x.npy", f"y{target}", "--tensor", "given") == 0
    y, name = load(target)
    assert_same_bits(y, anynorm.layer_norm(x))
    assert name == "given"


def test_bfloat16_where_the_target_has_it(capsys, folder):
    x = deviates((30, 6), ml_dtypes.bfloat16)
    save_file({"e": x}, "x.safetensors")
    for suffix, message in ((".npy", ".npy files have no"), (".zarr", "Zarr has no"), (".parquet", "Parquet has no")):
        told = f"{message} bfloat16; choose another --dtype"
        assert_refused(capsys, folder, told, "x.safetensors", f"y{suffix}", "--norm", "layer")
        assert normalize("x.safetensors", f"y{suffix}", "--dtype=float32") == 0
        assert_same_bits(load(suffix)[0], anynorm.layer_norm(x.astype("float32")))
        save(".npy", load(suffix)[0])
        assert normalize("x.npy", "y.safetensors", "--dtype=bfloat16", "--force") == 0
        assert load(".safetensors")[0].dtype == x.dtype


def test_bfloat16_as_numpy_saves_it(capsys, folder):
    given = DATA / "bfloat16-saved-by-numpy.npy"
    x = np.load(given).view(ml_dtypes.bfloat16)
    Path("x.npy").write_bytes(given.read_bytes())
    np.save("z.npy", x.astype("float32"))
    hint = "holds elements of two bytes without a type (|V2), as numpy.save writes bfloat16;"
    for arguments in ("x.npy y.npy", "x.npy y.safetensors", "x.npy --in-place"):
        assert_refused(
            capsys, folder, f"{hint} normalize --dtype float32 reads them", *arguments.split(), "--norm", "layer"
        )
    message = f"{hint} save it as float32"
    assert_refused(capsys, folder, message, "z.npy", "y.npy", "--weight", "x.npy", "--norm", "layer")
    # What it says to do does it.
    assert normalize("x.npy", "y.npy", "--dtype=float32") == 0
    assert_same_bits(np.load("y.npy"), anynorm.layer_norm(x.astype("float32")))
    assert normalize("x.npy", "y.safetensors", "--dtype=bfloat16") == 0
    assert_same_bits(load(".safetensors")[0], anynorm.layer_norm(x))
    np.save("x.npy", np.zeros(3, "V3"))  # of three bytes, and with fields: nobody's bfloat16
    assert_refused(
        capsys, folder, "holds |V3; normalize takes", "x.npy", "y.npy", "--norm=layer", "--dtype=float32", "--force"
    )
    np.save("x.npy", np.zeros(3, "u1,u1"))
    assert_refused(capsys, folder, "normalize takes", "x.npy", "y.npy", "--norm=layer", "--dtype=float32", "--force")


def test_several_arrays(capsys, folder):
    tensors = {"deep/w": deviates((4, 6), "float16", 1), "e": deviates((30, 6)), "ids": np.arange(3)}
    save_file(tensors, "x.safetensors")
    command = ["x.safetensors", "y.zarr", "--tensor", "deep/w", "--tensor", "e"]
    for suffix in (".npy", ".parquet"):
        message = f"a new {suffix} file holds one array; name one of"
        assert_refused(capsys, folder, message, command[0], f"y{suffix}", *command[2:], "--norm", "layer")
    assert normalize(*command) == 0
    assert capsys.readouterr().err.endswith(", without ids\n")
    found = zarr.open("y.zarr", mode="r")
    assert normalize("y.zarr", "y.safetensors", *command[2:], "--axis=0") == 0
    with safe_open("y.safetensors", "numpy") as file:
        for name in ("deep/w", "e"):
            want = anynorm.layer_norm(tensors[name])
            assert_same_bits(found[name][...], want)
            assert_few_ulp(file.get_tensor(name), anynorm.layer_norm(want, axis=0))


def test_tensors_begin_where_their_elements_are_aligned():
    table = pa.table({"half": lists(deviates((3, 3), "float16")), "e": lists(deviates((3, 3), "float64"))})
    pq.write_table(table, "x.parquet")
    assert normalize("x.parquet", "y.safetensors", "--column", "half", "--column", "e") == 0
    with safe_open("y.safetensors", "numpy") as file:
        for name in ("half", "e"):
            assert_same_bits(file.get_tensor(name), anynorm.layer_norm(np.stack(table[name].to_numpy())))
    content = Path("y.safetensors").read_bytes()
    assert content.index(b'"e":') < content.index(b'"half":')
    assert (8 + int.from_bytes(content[:8], "little")) % 8 == 0


def test_standard_input_and_output(monkeypatch, capsys, folder):
    x = deviates((30, 6))
    save(".npy", x)
    given = Path("x.npy").read_bytes()
    for target in SUFFIXES[1:]:
        monkeypatch.setattr(sys, "stdin", Bytes(given))
        assert normalize("-", f"y{target}") == 0
        assert_same_bits(load(target)[0], anynorm.layer_norm(x))
    for source in SUFFIXES[1:]:
        save(source, x)
        monkeypatch.setattr(sys, "stdout", out := Bytes())
        assert normalize(f"x{source}", "-", "--axis=0") == 0
        assert_few_ulp(np.load(io.BytesIO(out.buffer.getvalue())), anynorm.layer_norm(x, axis=0))
    capsys.readouterr()
    np.save("x.npy", np.asfortranarray(x))
    turned = Path("x.npy").read_bytes()
    for content, options, message in (
        (given[:-1], [], "ends too early"), (given + b"0", [], "holds more than its header says"),
        (given, ["--axis=0"], "name a file in place of -"), (turned, [], "for another format name a file"),
    ):  # fmt: skip
        before = sorted(os.listdir(folder))
        for target in SUFFIXES[1:]:
            monkeypatch.setattr(sys, "stdin", Bytes(content))
            assert normalize("-", f"y{target}", "--force", *options) == 1
            assert_one_line(capsys.readouterr().err, message)
        assert sorted(os.listdir(folder)) == before


@pytest.mark.parametrize(("source", "target"), PAIRS)
@pytest.mark.parametrize("shape", [(0, 6), (3, 0)])
def test_no_elements(capsys, folder, shape, source, target):
    save(source, np.zeros(shape, "float32"))
    if target == ".parquet" and shape == (3, 0):
        message = "has rows of no elements, which no column of .parquet is made of"
        assert_refused(capsys, folder, message, f"x{source}", "y.parquet", "--norm", "layer")
        return
    if source == ".parquet" and shape == (0, 6):
        shape = (0, 0)  # no list tells how long they are
    assert normalize(f"x{source}", f"y{target}") == 0
    assert load(target)[0].shape == shape


def test_chunks_and_row_groups_are_of_some_size(monkeypatch):
    x = deviates((4000, 64))
    monkeypatch.setattr(raw, "BLOCK_NBYTES", 100_000)
    save_file({"e": x}, "x.safetensors")
    monkeypatch.setattr(targets, "_CHUNK_NBYTES", 1 << 18)
    monkeypatch.setattr(targets, "_GROUP_NBYTES", 1 << 18)
    assert normalize("x.safetensors", "y.zarr") == 0
    assert zarr.open("y.zarr", mode="r")["e"].chunks == (1024, 64)
    assert normalize("x.safetensors", "y.parquet") == 0
    metadata = pq.read_metadata("y.parquet")
    assert [metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)] == [1024, 1024, 1024, 928]
