"""What `anynorm show` prints of the arrays in files, for people and for programs."""

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

import anynorm
from anynorm import cli
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
        "  rows        4 of 2, along the last axis",
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
@pytest.mark.parametrize("command", ["show x.safetensors", "info"])
def test_a_reader_that_has_enough_ends_it_quietly(command):
    save_file({f"tensor{i}": np.ones((4, 4), np.float32) for i in range(500)}, "x.safetensors")
    line = f"{sys.executable} -m anynorm {command} | head -1; echo ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", line], capture_output=True, text=True, check=False, timeout=100)
    first, status = done.stdout.splitlines()
    assert done.stderr == ""
    assert first.startswith("x.safetensors" if "show" in command else "anynorm")
    assert status in ("0", "141")  # the little that info prints may be gone before head is
