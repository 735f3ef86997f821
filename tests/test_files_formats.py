"""Files of several arrays: what is named is normalized, all else comes through as it was."""

import os
import shutil
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
from anynorm import cli
from anynorm._files import target as target_files
from anynorm._files.formats import zarr as zarr_files
from anynorm._files.target import replacing_folder
from tests.files import (
    FLOATS,
    assert_few_ulp,
    assert_one_line,
    assert_refused,
    assert_same_bits,
    deviates,
    wider,
)  # fmt: skip

pytestmark = pytest.mark.usefixtures("folder")

DTYPES = {name: np.dtype(name) for name in FLOATS} | {"bfloat16": np.dtype(ml_dtypes.bfloat16)}


def normalize(source, target, *options):
    return cli.main(["normalize", source, *([target] if target else []), "--norm", "layer", *options])


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


ZARR = {
    "plain": {},
    "uncompressed": {"compressors": None, "dimension_names": ("n", "d")},
    "sharded": {"compressors": zarr.codecs.BloscCodec(cname="zstd"), "shards": (14, 8)},
    "format 2": {"zarr_format": 2, "order": "F"},
}
# Each way to lie there with each dtype of the result; along both axes where everything runs.
ZARR_RESULTS = [
    pytest.param(name, axis, dtype, marks=[] if (i + j) % 2 == axis else pytest.mark.thorough)
    for i, name in enumerate(ZARR) for axis in (0, 1) for j, dtype in enumerate([None, "float16", "float64"])
]  # fmt: skip


@pytest.mark.parametrize(("name", "axis", "dtype"), ZARR_RESULTS)
def test_zarr(small_chunks, name, axis, dtype):
    options = ZARR[name]
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


def after_the_first(call, then):
    """A call after which something else happens, the first time."""
    happened = []

    def wrapped(*arguments, **options):
        call(*arguments, **options)
        if not happened:
            happened.append(True)
            then(*arguments)

    return wrapped


def interrupt(*_):
    raise KeyboardInterrupt


@pytest.mark.parametrize(("module", "name"), [(target_files, "sync_folder"), (shutil, "rmtree")])
def test_zarr_interrupted_once_it_is_done(monkeypatch, folder, module, name):
    arrays = save_group()
    shutil.copytree("x.zarr", "y.zarr")
    monkeypatch.setattr(module, name, after_the_first(getattr(module, name), interrupt))
    assert normalize("x.zarr", "y.zarr", "--tensor", "e", "--force") == 0
    assert_same_bits(zarr.open("y.zarr", mode="r")["e"][...], anynorm.layer_norm(arrays["e"]))
    assert sorted(os.listdir(folder)) == ["x.zarr", "y.zarr"]


def test_zarr_whose_threads_still_write_after_an_error(monkeypatch, folder, capsys):
    save_group()
    zarr.open("x.zarr", mode="r+")["e"][3, 1] = np.nan
    late = after_the_first(shutil.rmtree, lambda part: (part / "late").mkdir(parents=True))
    monkeypatch.setattr(shutil, "rmtree", late)
    assert normalize("x.zarr", "y.zarr", "--tensor", "e", "--on-nan", "fail") == 1
    assert os.listdir(folder) == ["x.zarr"]


def test_zarr_that_cannot_be_copied(monkeypatch, folder, capsys):
    save_group()

    def full(*_, **__):
        raise shutil.Error([("x.zarr/zarr.json", "part/zarr.json", "[Errno 28] No space left on device: 'x' -> 'y'")])

    monkeypatch.setattr(shutil, "copytree", full)
    assert_refused(
        capsys, folder, "x.zarr/zarr.json cannot be copied: No space left on device", "x.zarr", "y.zarr",
        "--norm", "layer", "--tensor", "e",
    )  # fmt: skip


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


@pytest.mark.parametrize("damage", [lambda chunk: chunk[: len(chunk) // 2], lambda chunk: b"x" * len(chunk)])
def test_a_damaged_chunk_is_told_of(small_chunks, folder, capsys, damage):
    save_group()
    chunk = Path("x.zarr/e/c/1/0")
    chunk.write_bytes(damage(chunk.read_bytes()))
    assert_refused(capsys, folder, "e cannot be read", "x.zarr", "y.zarr", "--norm", "layer", "--tensor", "e")


@pytest.mark.skipif(os.name != "posix", reason="pipes with a name as POSIX has them")
def test_what_cannot_be_copied_is_told_of(folder, capsys):
    save_group()
    os.mkfifo("x.zarr/deep/pipe")
    assert normalize("x.zarr", "y.zarr", "--tensor", "e") == 1
    assert_one_line(capsys.readouterr().err, "x.zarr/deep/pipe cannot be copied: `x.zarr/deep/pipe` is a named pipe")
    assert os.listdir(folder) == ["x.zarr"]


@pytest.mark.skipif(os.name != "posix", reason="limits as POSIX has them")
@pytest.mark.parametrize("suffix", [".npy", ".safetensors", ".zarr", ".parquet"])
def test_no_space(folder, capsys, suffix):
    import resource

    x = deviates((400, 16))
    if suffix == ".npy":
        np.save("x.npy", x)
    elif suffix == ".safetensors":
        save_file({"e": x}, "x.safetensors")
    elif suffix == ".zarr":
        zarr.create_array("x.zarr", data=x)
    else:
        pq.write_table(pa.table({"e": list(x)}), "x.parquet", compression="NONE")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limits[1]))
    try:
        assert_refused(capsys, folder, "File too large", f"x{suffix}", f"y{suffix}", "--norm", "layer")
        if suffix != ".zarr":
            assert_refused(capsys, folder, "File too large", f"x{suffix}", "--in-place", "--norm", "layer")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def save_odd_files():
    save_tensors()
    save_file({"ids": np.arange(3)}, "ids.safetensors")
    Path("text.safetensors").write_bytes(b"no safetensors here")
    Path("cut.safetensors").write_bytes(Path("x.safetensors").read_bytes()[:-1])
    save_group()
    Path("empty.zarr").mkdir()
    Path("file.zarr").write_bytes(b"")
    pq.write_table(pa.table({"e": [[1.0, 2.0]]}), "x.parquet")


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
    assert_refused(capsys, folder, "pip install " + module, f"x.{suffix}", f"y.{suffix}", "--norm", "layer")
