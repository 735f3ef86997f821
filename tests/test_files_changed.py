"""Files that another program changes or replaces while they are read: nothing comes of them."""

import os
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
from anynorm._files import shown
from anynorm._files.job import ArrayJob
from tests.files import assert_one_line, assert_same_bits, contents, in_place, meanwhile, save_x

pytestmark = [
    pytest.mark.usefixtures("folder"),
    pytest.mark.skipif(os.name != "posix", reason="elsewhere no open file is replaced"),
]


def replaced(path):
    """By a file of the same size and time."""
    before, other = os.stat(path), Path(path).with_name("other")
    other.write_bytes(Path(path).read_bytes()[:-4] + b"\0\0\0\0")
    os.utime(other, ns=(before.st_atime_ns, before.st_mtime_ns))
    os.replace(other, path)


def written_to(path):
    with open(path, "r+b") as file:
        file.seek(-4, os.SEEK_END)
        file.write(b"\0\0\0\0")
    os.utime(path, ns=(1, 1))  # as it were a tick of the clock later


def removed(path):
    Path(path).unlink()


def save_all_formats():
    x = save_x((30, 6))
    save_file({"e": x}, "x.safetensors")
    pq.write_table(pa.table({"e": list(x)}), "x.parquet", row_group_size=7)
    zarr.create_array("x.zarr", data=x, chunks=(7, 6), compressors=None)


WAYS = [
    (suffix, way)
    for suffix in (".npy", ".safetensors", ".parquet", ".zarr")
    for way in ("y", "--in-place", "show")
    if (suffix, way) != (".zarr", "--in-place")  # no folder is normalized in place
]


@pytest.mark.parametrize("change", [replaced, written_to, removed])
@pytest.mark.parametrize(("suffix", "way"), WAYS)
def test_a_file_that_changes_while_it_is_read(small_blocks, monkeypatch, capsys, folder, change, suffix, way):
    monkeypatch.setattr("anynorm._files.formats.zarr._BLOCK_NBYTES", 64)
    save_all_formats()
    path = Path("x.zarr/c/1/0") if suffix == ".zarr" else Path(f"x{suffix}")
    expected = {}

    def change_and_look():
        change(path)
        for one in folder.iterdir():
            if not one.name.startswith(".anynorm-"):  # what is being written
                expected.update({one: one.read_bytes()} if one.is_file() else contents(one))

    if way == "show":
        really, calls = shown.moments, []

        def moments(x, **options):
            calls.append(x)
            if len(calls) == 3:
                change_and_look()
            return really(x, **options)

        monkeypatch.setattr(shown, "moments", moments)
    else:
        meanwhile(monkeypatch, change_and_look)
    arguments = [f"y{suffix}"] if way == "y" else ["--in-place"]
    command = ["show", f"x{suffix}"] if way == "show" else ["normalize", f"x{suffix}", *arguments, "--norm", "layer"]
    assert cli.main(command) == 1
    out, error = capsys.readouterr()
    assert out == ""
    assert_one_line(error, "was changed or replaced while it was read; run the command again")
    assert contents(folder) == expected


def test_standard_input_that_is_a_file_and_changes(small_blocks, monkeypatch, capsys, folder):
    save_x((30, 6))
    meanwhile(monkeypatch, lambda: written_to("x.npy"))
    with open("x.npy") as file:
        monkeypatch.setattr(sys, "stdin", file)
        assert cli.main(["normalize", "-", "y.npy", "--norm", "layer"]) == 1
    assert_one_line(capsys.readouterr().err, "standard input was changed or replaced while it was read")
    assert os.listdir(folder) == ["x.npy"]


def test_a_run_that_reads_while_another_is_in_place_has_rows_of_one_file(small_blocks, monkeypatch, capsysbinary):
    x = save_x((30, 6))
    done = []
    meanwhile(monkeypatch, lambda: done.append(in_place("--eps=7")))
    assert cli.main(["normalize", "x.npy", "-", "--norm", "layer"]) == 1
    assert done == [0]
    out, error = capsysbinary.readouterr()
    Path("out.npy").write_bytes(out)
    assert_same_bits(np.load("out.npy"), anynorm.layer_norm(x))  # the file that it has opened, and no row of the other
    assert_same_bits(np.load("x.npy"), anynorm.layer_norm(x, eps=7.0))
    assert b"was changed or replaced" in error


def test_one_that_waited_for_its_lock_while_the_file_was_replaced_is_refused(monkeypatch, capsys):
    x = save_x()
    monkeypatch.setattr("anynorm._files.original.lock", lambda file: replaced("x.npy") is None)
    monkeypatch.setattr(ArrayJob, "normalize", lambda *_: pytest.fail("said before the work, not after it"))
    assert in_place() == 1
    assert_one_line(capsys.readouterr().err, "was changed or replaced")
    assert_same_bits(np.load("x.npy")[:-1], x[:-1])
