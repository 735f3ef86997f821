"""IN and OUT of different formats: each into each other one, in blocks, whole or not at all."""

import io
import itertools
import os
import sys
from dataclasses import replace
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
from anynorm import _files, cli
from anynorm._files import Job
from anynorm._files.formats import raw, targets
from anynorm._files.formats import zarr as zarr_files
from tests.files import assert_few_ulp, assert_one_line, assert_refused, assert_same_bits, deviates
from tests.test_files_streams import Bytes

pytestmark = pytest.mark.usefixtures("folder")

JOB = Job("layer_norm", None, None, (-1,), 1e-5)
SUFFIXES = (".npy", ".safetensors", ".zarr", ".parquet")
DATA = Path(__file__).parent / "data"


@pytest.fixture(autouse=True)
def small(small_blocks, monkeypatch):
    """Blocks of a few rows, which neither chunks nor row groups begin with; those of Zarr cut rows."""
    monkeypatch.setattr(zarr_files, "_BLOCK_NBYTES", 200)
    monkeypatch.setattr(targets, "_CHUNK_NBYTES", 100)
    monkeypatch.setattr(targets, "_GROUP_NBYTES", 250)
    monkeypatch.setattr(raw, "_TURNED_NBYTES", 150)


def lists(x):
    value = pa.from_numpy_dtype(x.dtype)
    if x.ndim == 2:
        return pa.array(list(x), pa.list_(value))
    kind = pa.fixed_shape_tensor(value, x.shape[1:])
    return pa.ExtensionArray.from_storage(kind, pa.array([row.reshape(-1) for row in x], kind.storage_type))


def save(suffix, x):
    """A file x of this format, with parts that no block begins with."""
    if suffix == ".npy":
        np.save("x.npy", x)
    elif suffix == ".safetensors":
        save_file({"e": x}, "x.safetensors")
    elif suffix == ".parquet":
        pq.write_table(pa.table({"e": lists(x)}), "x.parquet", row_group_size=7)
    else:
        zarr.create_array("x.zarr", data=x, chunks=tuple(min(4, length) for length in x.shape))


def load(suffix):
    """The array of the file y, and what it is called there."""
    if suffix == ".npy":
        return np.load("y.npy"), ""
    if suffix == ".safetensors":
        with safe_open("y.safetensors", "numpy") as file:
            (name,) = file.keys()
            return file.get_tensor(name), name
    if suffix == ".zarr":
        found = zarr.open("y.zarr", mode="r")
        if isinstance(found, zarr.Array):
            return found[...], ""
        ((name, array),) = found.members()
        return array[...], name
    table = pq.read_table("y.parquet")
    column = table.column(0).combine_chunks()
    if isinstance(column.type, pa.FixedShapeTensorType):
        return column.to_numpy_ndarray(), table.column_names[0]
    if pa.types.is_floating(column.type):
        return column.to_numpy(), table.column_names[0]
    assert pa.types.is_fixed_size_list(column.type)
    return column.flatten().to_numpy().reshape(-1, column.type.list_size), table.column_names[0]


def normalize(source, target, *options):
    return cli.main(["normalize", source, target, "--norm", "layer", *options])


PAIRS = [pair for pair in itertools.product(SUFFIXES, repeat=2) if pair[0] != pair[1]]


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
        (given[:-1], [], "ends too early"), (given + b"0", [], "holds more than its header tells"),
        (given, ["--axis=0"], "takes a file in place of -"), (turned, [], "takes a file for, in place of -"),
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


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            "null.parquet y.npy",
            "e of null.parquet has null in place of lists, which .parquet alone keeps, and not along --axis 0",
        ),
        ("x.npy y.zarr --columns f*", "--columns is for columns of .parquet; x.npy has none"),
        ("x.npy y.zarr --tensor a --tensor b", "x.npy holds no a; it holds one array, which has no name"),
        ("x.npy y.zarr --tensor a/../b", "no array of .zarr can be called a/../b"),
        *[
            (f"x.npy y.zarr --tensor {name}", f"no array of .zarr can be called {name}")
            for name in (
                "a//b",
                "/a",
                "..",
                "a/zarr.json",
                "a\\b",
                "n" * 256,
            )
        ],
        ("x.safetensors y.zarr --tensor a/b --tensor a", "arrays of .zarr hold no others, as a would a/b; name one"),
        ("x.npy y.safetensors --tensor __metadata__", "no tensor of .safetensors can be called __metadata__"),
        ("x.npy y.parquet --dtype bfloat16", "Parquet has no bfloat16"),
        ("nan.npy y.parquet --on-nan fail", "row 20 of nan.npy holds NaN or Inf"),
        ("nan.npy y.zarr --on-nan fail", "row 20 of nan.npy holds NaN or Inf"),
        ("large.npy y.safetensors --dtype float16 --norm scale --scale 1e9", "does not fit in float16"),
        ("cut.npy y.zarr", "cut.npy is not a readable .npy file"),
        ("x.npy there.zarr", "there.zarr exists; pass --force"),
        ("x.npy none/y.zarr", "none is not a directory"),
    ],
)
def test_refuses(capsys, folder, arguments, message):
    x = deviates((30, 6))
    np.save("x.npy", x)
    save_file({"a": x, "a/b": x}, "x.safetensors")
    Path("cut.npy").write_bytes(Path("x.npy").read_bytes()[:-1])
    np.save("large.npy", x)
    x[20, 3] = np.inf
    np.save("nan.npy", x)
    pq.write_table(pa.table({"e": [[1.0], None, [3.0]]}), "null.parquet")
    zarr.create_group("there.zarr")
    assert_refused(capsys, folder, message, "--norm", "layer", *arguments.split())


@pytest.mark.parametrize("axis", [0, -1])
@pytest.mark.parametrize("target", SUFFIXES[1:])
def test_interrupted(folder, target, axis):
    save(".npy", deviates((30, 6)))
    told = []

    def interrupt(nbytes):
        told.append(nbytes)
        if len(told) == 13:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        _files.normalize(
            Path("x.npy"), Path(f"y{target}"), Job("layer_norm", None, None, (axis,), 1e-5), overwrite=False,
            advance=interrupt,
        )  # fmt: skip
    assert os.listdir(folder) == ["x.npy"]


@pytest.mark.skipif(os.name != "posix", reason="limits as POSIX has them")
@pytest.mark.parametrize("target", [*SUFFIXES, ".npy, unreserved"])
def test_no_space(monkeypatch, capsys, folder, target):
    import resource

    target, _, unreserved = target.partition(", ")
    if unreserved:
        monkeypatch.delattr(os, "posix_fallocate", raising=False)
    Path("y.npy").write_bytes(b"precious")
    monkeypatch.setattr(targets, "_CHUNK_NBYTES", 1 << 20)
    save(".npy", deviates((400, 16)))
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limits[1]))
    try:
        assert_refused(capsys, folder, "File too large", "x.npy", f"y{target}", "--norm", "layer", "--force")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


@pytest.mark.parametrize("target", ["y.npy", "y.safetensors", "y.parquet", "y.zarr"])
def test_an_array_that_no_file_can_hold(capsys, folder, target):
    """Of a folder without a single chunk, all of it is the fill value; rows of 2 are shorter than a block may be."""
    zarr.create_array("x.zarr", shape=(2**62, 4), chunks=(2, 4), dtype="float32")
    if target == "y.zarr":
        ((_, source),) = zarr_files.ZarrReader(Path("x.zarr")).sources(JOB, plain=False).values()
        assert len(source.ranges[0]) > 2**61 // zarr_files._MOST_CHUNKS
        return
    message = f"the result would take {2**66} bytes, which no file can hold"
    assert_refused(capsys, folder, message, "x.zarr", target, "--norm", "layer")


def test_rows_that_are_too_long_for_a_list(capsys, folder):
    for name, length in (("x", 2**31 - 1), ("z", 2**31)):
        zarr.create_array(f"{name}.zarr", shape=(0, length), chunks=(1, length), dtype="float32")
    assert normalize("x.zarr", "y.parquet") == 0
    message = f"z.zarr has rows of {2**31} elements, too many for .parquet"
    assert_refused(capsys, folder, message, "z.zarr", "z.parquet", "--norm", "layer")


@pytest.mark.parametrize(
    ("chunks", "rows", "plain"),
    [
        ((1, 4), 1024, 1024), ((3, 4), 3072, 3072), ((1024, 4), 8192, 8192),  # so many chunks, so many bytes
        ((32768, 1), 32768, 32768), ((32769, 1), 32769, 8192),  # a chunk is taken whole, up to four times the bytes
    ],
)  # fmt: skip
def test_how_much_is_read_at_once(monkeypatch, chunks, rows, plain):
    monkeypatch.setattr(zarr_files, "_BLOCK_NBYTES", 1 << 17)
    zarr.create_array("x.zarr", shape=(10**6, 4), chunks=chunks, dtype="float32")
    for way, expected in ((False, rows), (True, plain)):
        ((_, source),) = zarr_files.ZarrReader(Path("x.zarr")).sources(JOB, plain=way).values()
        assert source.ranges[0][0] == slice(0, expected)


def test_what_would_be_written(folder):
    save_file({"deep/w": deviates((4, 6), "float16"), "ids": np.arange(3)}, "x.safetensors")
    job = Job("layer_norm", None, None, (-1,), 1e-5, names=("deep/w",), dtype="float32")
    before = os.listdir(folder)
    for target, name in (("y.npy", ""), ("y.zarr", "deep/w"), ("y.parquet", "deep/w"), ("y.safetensors", "deep/w")):
        plan = _files.planned(Path("x.safetensors"), Path(target), job, overwrite=False)
        assert [one.to_dict() for one in plan.arrays] == [
            {"name": name, "shape": [4, 6], "dtype": "float32", "nbytes": 96}
        ]
        assert plan.left == (() if target == "y.safetensors" else ("ids",))
    assert os.listdir(folder) == before
    done = _files.normalize(Path("x.safetensors"), Path("y.zarr"), job, overwrite=False, advance=lambda nbytes: None)
    assert (done.arrays, done.nbytes) == (plan.arrays, 96)
    with pytest.raises(FileExistsError, match="pass --force"):
        _files.planned(Path("x.safetensors"), Path("y.zarr"), job, overwrite=False)
    with pytest.raises(ValueError, match=r"\.npy files have no bfloat16"):
        _files.planned(Path("x.safetensors"), Path("y.npy"), replace(job, dtype="bfloat16"), overwrite=False)
    in_place = _files.planned(Path("x.safetensors"), None, job, overwrite=False)
    assert (in_place.arrays, in_place.left) == (plan.arrays, ())
    with pytest.raises(ValueError, match="in place"):
        _files.planned(Path("y.zarr"), None, job, overwrite=False)


@pytest.mark.parametrize(("module", "target"), [("zarr", "y.zarr"), ("pyarrow.parquet", "y.parquet")])
def test_a_package_that_is_missing_for_the_target(monkeypatch, capsys, folder, module, target):
    save(".npy", deviates((3, 6)))
    monkeypatch.setitem(sys.modules, module, None)
    message = f"{target} takes a package that is not here: pip install {module.partition('.')[0]}"
    assert_refused(capsys, folder, message, "x.npy", target, "--norm", "layer")
