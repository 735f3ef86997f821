"""IN and OUT of different formats: what is refused, what is stopped on the way, and what would be written."""

import os
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zarr
from safetensors.numpy import save_file

from anynorm import _files
from anynorm._files import Job
from anynorm._files.formats import targets
from anynorm._files.formats import zarr as zarr_files
from tests.files import assert_refused, deviates
from tests.files_between import JOB, SUFFIXES, in_small_parts, normalize, save

pytestmark = pytest.mark.usefixtures("folder")


@pytest.fixture(autouse=True)
def small(small_blocks, monkeypatch):
    in_small_parts(monkeypatch)


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
        (
            "x.safetensors y.zarr --tensor a/b --tensor a",
            "an array of .zarr cannot hold another, as a would hold a/b; name only one",
        ),
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
    message = f"{target} needs a package that is not installed: pip install {module.partition('.')[0]}"
    assert_refused(capsys, folder, message, "x.npy", target, "--norm", "layer")
