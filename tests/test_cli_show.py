"""What `anynorm show` prints of the arrays in files, for people and for programs."""

import io
import json
import os
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import ml_dtypes
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zarr
from safetensors.numpy import save_file

import anynorm
from anynorm import cli
from tests.backends import thorough_but
from tests.files import assert_one_line, save_x

pytestmark = pytest.mark.usefixtures("folder")


def show(capsys, *arguments):
    assert cli.main(["show", *arguments]) == 0
    out, error = capsys.readouterr()
    assert error == ""
    return out


def told(capsys, *arguments):
    return json.loads(show(capsys, *arguments, "--json"))["arrays"]


def lines(out):
    return dict(line.strip().split(maxsplit=1) for line in out.splitlines() if line.startswith("  "))


def test_an_array_in_lines(capsys):
    np.save("x.npy", np.asarray([[3, 4], [0, 0], [6, 8], [0, 5]], np.float32))
    assert show(capsys, "x.npy").splitlines() == [
        "x.npy: 4 x 2 float32, 32 bytes",
        "  rows        4 of 2 numbers, along the last axis",
        "  lengths     0 least, 5 median, 10 largest",
        "  unit        no, 0 of 4 rows",
        "  numbers     3.25 mean, 2.861 deviation",
        "  zeros       1 row",
    ]


def test_rows_that_are_not_finite(capsys):
    x = np.ones((2000, 4))
    x[3, :2] = np.nan, np.inf
    x[5] = np.nan
    np.save("x.npy", x)
    assert show(capsys, "x.npy").splitlines()[-1].split() == ["NaN", "or", "Inf", "2", "rows,", "6", "numbers"]


@pytest.mark.parametrize("dtype", ["float16", "float64"])
def test_unit_vectors_are_known(capsys, dtype):
    x = anynorm.scale_norm(save_x((50, 384), dtype))
    np.save("x.npy", x)
    assert lines(show(capsys, "x.npy"))["unit"] == "yes, all rows"
    x[7] = 0
    np.save("x.npy", x)
    assert lines(show(capsys, "x.npy"))["unit"] == "yes, all rows but those of zeros"
    x[8] *= 1.5
    np.save("x.npy", x)
    assert lines(show(capsys, "x.npy"))["unit"] == "no, 48 of 50 rows"


def test_all_arrays_unless_one_is_named(capsys):
    x = save_x()
    save_file({"e": x.astype(ml_dtypes.bfloat16), "ids": np.arange(3), "w": x[0]}, "x.safetensors")
    heads = [line for line in show(capsys, "x.safetensors").splitlines() if not line.startswith(" ")]
    assert [line.partition(";")[0] for line in sorted(heads)] == [
        "x.safetensors e: 9 x 6 bfloat16, 108 bytes", "x.safetensors ids: 3 I64, 24 bytes",
        "x.safetensors w: 6 float32, 24 bytes",
    ]  # fmt: skip
    assert [one["name"] for one in told(capsys, "x.safetensors", "--tensor", "w")] == ["w"]
    assert cli.main(["show", "x.safetensors", "--tensor", "v"]) == 1
    assert_one_line(capsys.readouterr().err, "x.safetensors holds no v")


def test_several_files_and_folders(capsys):
    save_x()
    Path("shards").mkdir()
    for name in "ab":
        np.save(f"shards/{name}.npy", np.ones((2, 3)))
    assert [one["file"] for one in told(capsys, "x.npy", "shards")] == ["x.npy", "shards/a.npy", "shards/b.npy"]


@pytest.mark.parametrize("axis", [(-1,), (0,), (-2, -1)])
def test_json_for_programs(capsys, axis):
    x = save_x((40, 5, 6))
    (one,) = told(capsys, "x.npy", "--axis", ",".join(map(str, axis)))
    lengths = np.sqrt((x.astype(float) ** 2).sum(axis=axis))
    assert (one["shape"], one["dtype"], one["nbytes"], one["rows"]) == ([40, 5, 6], "float32", 4800, lengths.size)
    assert one["axis"] == sorted(place % 3 for place in axis)
    assert one["least"] == pytest.approx(lengths.min())
    assert one["largest"] == pytest.approx(lengths.max())
    assert one["mean"] == pytest.approx(x.mean(dtype=float))
    assert one["deviation"] == pytest.approx(x.std(dtype=float))
    assert (one["unit"], one["zero_rows"], one["not_finite_rows"]) == (False, 0, 0)
    assert (one["moments"] is not None) == (axis == (0,))


def test_json_is_what_any_program_reads(capsys):
    x = save_x()
    x[:, 2] = np.nan
    np.save("x.npy", x)
    out = show(capsys, "x.npy", "--axis", "0", "--json")
    json.loads(out, parse_constant=pytest.fail)  # of NaN, which is no JSON
    Path("x.json").write_text(out)
    assert cli.main(["normalize", "x.npy", "y.npy", "--norm", "layer", "--axis", "0", "--moments", "x.json"]) == 0
    want = anynorm.layer_norm(x, axis=0, moments=anynorm.moments(x, axis=0))
    np.testing.assert_array_equal(np.load("y.npy"), want)


def test_a_stream(monkeypatch, capsys):
    save_x()
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(Path("x.npy").read_bytes())))
    assert show(capsys, "-").startswith("standard input: 9 x 6 float32, 216 bytes\n")


@pytest.mark.skipif(os.name != "posix", reason="a pipe as a shell of POSIX has it")
@pytest.mark.parametrize("command", thorough_but("show x.safetensors", of=["show x.safetensors", "info"]))
def test_a_reader_that_has_enough_ends_it_quietly(monkeypatch, command):
    monkeypatch.setenv("ANYNORM_KERNEL", "definition")
    save_file({f"tensor{i}": np.ones((4, 4), np.float32) for i in range(500)}, "x.safetensors")
    line = f"{sys.executable} -m anynorm {command} | head -1; echo ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", line], capture_output=True, text=True, check=False, timeout=100)
    first, status = done.stdout.splitlines()
    assert done.stderr == ""
    assert first.startswith("x.safetensors" if "show" in command else "anynorm")
    assert status in ("0", "141")  # the little that info prints may be gone before head is


def test_each_array_is_shown_when_it_is_read(monkeypatch, capsys):
    save_file({"a": np.ones((3, 4)), "b": np.ones((3, 4))}, "x.safetensors")
    really, seen = anynorm._files.show_array, []

    def show_array(*arguments):
        seen.append(capsys.readouterr().out)
        return really(*arguments)

    monkeypatch.setattr("anynorm._files.show_array", show_array)
    assert cli.main(["show", "x.safetensors"]) == 0
    assert seen[0] == ""
    assert seen[1].startswith("x.safetensors a: 3 x 4 float64")


def test_arrays_stand_above_the_bar(monkeypatch):
    monkeypatch.setenv("ANYNORM_KERNEL", "definition")
    pty = pytest.importorskip("pty", reason="no pseudo-terminals here")
    pytest.importorskip("rich", reason="the bar is rich's")
    save_file({"a": np.ones((3, 4)), "b": np.ones((3, 4))}, "x.safetensors")
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "anynorm", "show", "x.safetensors"]
    process = subprocess.Popen(command, stdout=theirs, stderr=theirs)
    os.close(theirs)
    said = b""
    with suppress(OSError):  # as Linux has it when the last who could write has ended
        while part := os.read(ours, 1 << 12):
            said += part
    os.close(ours)
    assert process.wait(timeout=60) == 0
    for name in "ab":  # on a line of its own, which is cleared before
        assert f"\x1b[2Kx.safetensors {name}: 3 x 4 float64, 96 bytes\r\n" in said.decode()


def test_a_file_without_arrays(capsys):
    save_file({}, "x.safetensors")
    assert show(capsys, "x.safetensors") == "x.safetensors: no arrays\n"
    assert told(capsys, "x.safetensors") == []
    assert cli.main(["normalize", "x.safetensors", "y.safetensors", "--norm", "rms"]) == 1
    assert capsys.readouterr().err == "anynorm: x.safetensors holds nothing that can be normalized\n"


def test_what_is_wrong_with_a_file_is_said_in_short(capsys):
    header = b'{"a":"' + b"x" * 5000 + b'"}'  # which the error quotes
    Path("x.safetensors").write_bytes(len(header).to_bytes(8, "little") + header)
    assert cli.main(["show", "x.safetensors"]) == 1
    error = capsys.readouterr().err
    assert error.startswith("anynorm: x.safetensors is not a readable .safetensors file: ")
    assert len(error) < 1100


def test_why_a_column_has_no_statistics(capsys):
    pq.write_table(pa.table({"e": [[1.0, None]]}), "x.parquet")
    assert (
        show(capsys, "x.parquet")
        == "x.parquet e: 1 x 2 float64, 16 bytes; has lists with null in them; fill those first\n"
    )


def test_tasks_that_zarr_leaves_after_an_error_say_nothing():
    zarr.create_group("x.zarr").create_array("a", data=np.ones(3))
    for name in "bc":
        os.symlink(".", f"x.zarr/{name}")
    command = [sys.executable, "-m", "anynorm", "show", "x.zarr"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 1
    assert_one_line(done.stderr, "Too many levels of symbolic links")


def test_why_there_are_no_statistics(capsys):
    np.save("ids.npy", np.arange(6).reshape(2, 3))
    np.save("one.npy", np.float32(1))
    out = show(capsys, "ids.npy", "one.npy").splitlines()
    assert out[0].startswith("ids.npy: 2 x 3 int64, 48 bytes; holds int64; normalize takes float16")
    assert out[1].startswith("one.npy: a single float32, 4 bytes; holds a single number")
