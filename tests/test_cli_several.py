"""Several files, or a folder of them, normalized into a folder."""

import json
import os
import re
import signal
import time
from pathlib import Path

import numpy as np
import pytest

import anynorm
from anynorm import cli
from anynorm._files import Job, nbytes_of, normalize
from tests.files import assert_one_line, assert_same_bits, contents, start

pytestmark = pytest.mark.usefixtures("folder")


def save(name, seed=0, dtype="float32"):
    x = np.random.default_rng(seed).standard_normal((9, 6)).astype(dtype) + 3
    Path(name).parent.mkdir(exist_ok=True)
    np.save(name, x)
    return x


def save_shards():
    return {name: save(f"shards/{name}.npy", seed) for seed, name in enumerate("abc")}


def run(*arguments):
    return cli.main(["normalize", *arguments, "--norm", "layer"])


@pytest.mark.parametrize(
    "arguments", ["shards out", "shards/ out/", "shards/a.npy shards/b.npy shards/c.npy out", "shards -o out"]
)
def test_each_into_a_folder(capsys, arguments):
    shards = save_shards()
    Path("shards/README.txt").write_text("not an array")
    Path("shards/.hidden.npy").write_text("nor this")
    assert run(*arguments.split()) == 0
    assert sorted(os.listdir("out")) == ["a.npy", "b.npy", "c.npy"]
    for name, x in shards.items():
        assert_same_bits(np.load(f"out/{name}.npy"), anynorm.layer_norm(x))
    assert re.fullmatch(r"wrote 3 files to out: 648 bytes in \d+\.\d+ s\n", capsys.readouterr().err)


def test_dry_run_makes_no_folder(monkeypatch, capsys, folder):
    save_shards()
    monkeypatch.setattr(Path, "mkdir", lambda *_: pytest.fail("a folder is made"))
    assert run("shards", "out", "--dry-run") == 0
    assert capsys.readouterr().out.count("would write out/") == 3
    assert os.listdir() == ["shards"]


def test_what_is_done_already_is_left(capsys):
    shards = save_shards()
    assert run("shards/a.npy", "out/") == 0
    first = Path("out/a.npy").stat()
    capsys.readouterr()
    assert run("shards", "out", "--dry-run") == 0
    told = capsys.readouterr().out
    assert "would leave out/a.npy, which is newer than its source\n" in told
    assert told.count("would write out/") == 2
    assert run("shards", "out") == 0
    assert "wrote 2 files to out: " in (error := capsys.readouterr().err)
    assert error.endswith("; left 1 file in out newer than the source, --force writes them again\n")
    assert Path("out/a.npy").stat().st_mtime_ns == first.st_mtime_ns
    assert run("shards", "out") == 0
    assert_one_line(f"anynorm: {capsys.readouterr().err}", "nothing to do: 3 files in out newer than the source")
    assert run("shards", "out", "--json") == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["files"], told["done"]) == ([], ["out/a.npy", "out/b.npy", "out/c.npy"])
    assert run("shards", "out", "--force") == 0
    assert "wrote 3 files" in capsys.readouterr().err
    assert Path("out/a.npy").stat().st_mtime_ns > first.st_mtime_ns
    assert_same_bits(np.load("out/b.npy"), anynorm.layer_norm(shards["b"]))


def test_a_target_that_is_older_than_its_source_is_refused(capsys, folder):
    save_shards()
    assert run("shards", "out") == 0
    now = time.time_ns()
    os.utime("out/b.npy", ns=(now, now - 1))
    os.utime("shards/b.npy", ns=(now, now))
    before = contents(folder)
    capsys.readouterr()
    assert run("shards", "out") == 1
    assert_one_line(capsys.readouterr().err, "out/b.npy is older than shards/b.npy; remove it, or pass --force")
    assert contents(folder) == before
    os.utime("out/b.npy", ns=(now, now))
    assert run("shards", "out") == 0
    assert capsys.readouterr().err.startswith("nothing to do")


def test_a_folder_in_the_place_of_a_target_is_not_taken_for_it(capsys):
    save_shards()
    Path("out/b.npy").mkdir(parents=True)
    assert run("shards", "out") == 1
    assert_one_line(capsys.readouterr().err, "out/b.npy is a directory")
    assert os.listdir("out") == ["b.npy"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("shards more out", "shards/b.npy and more/b.npy would both be written to out/b.npy"),
        ("shards shards", "shards/a.npy is one of the files that are read"),
        ("shards/a.npy more/b.npy out.npy", "several files go into a folder, and OUT is out.npy"),
        ("shards x.txt", "several files go into a folder, and OUT is x.txt"),
        ("shards -", "several files go into a folder, and OUT is -"),
        ("shards none/out", "none is not a directory"),
        ("nothing out", "nothing holds no file of a format that is read here"),
        ("- out/", "standard input has no name"),
        ("shards/a.npy shards/none.npy out", "shards/none.npy: No such file"),
        ("shards/a.npy shards/bad.npy out", "shards/bad.npy holds int64"),
        ("shards/a.npy more/a.safetensors out --to .npy", "would both be written to out/a.npy"),
        ("shards/a.npy out --to npy", "--to is for files that go into a folder"),
        ("shards out --tensor e", "holds no e"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused_before_anything_is_written(capsys, folder, arguments, message):
    save_shards()
    save("more/b.npy")
    np.save("shards/bad.npy" if "bad" in arguments else "bad.npy", np.arange(6))
    Path("more/a.safetensors").write_bytes(b"")
    Path("x.txt").write_text("")
    Path("nothing").mkdir()
    before = contents(folder), sorted(os.listdir())
    assert run(*arguments.split()) == 1
    assert_one_line(capsys.readouterr().err, message)
    assert (contents(folder), sorted(os.listdir())) == before


def test_an_error_in_one_leaves_those_done(monkeypatch, capsys):
    shards = save_shards()
    large = shards["b"].copy()
    large[0] = np.nan
    np.save("shards/b.npy", large)
    assert run("shards", "out", "--on-nan", "fail") == 1
    message = "row 0 of shards/b.npy holds NaN or Inf"
    assert_one_line(error := capsys.readouterr().err, message)
    assert error.endswith("; 1 of 3 files written, run it again for the rest\n")
    assert os.listdir("out") == ["a.npy"]
    np.save("shards/b.npy", shards["b"])
    assert run("shards", "out", "--on-nan", "fail") == 0
    assert "wrote 2 files to out" in capsys.readouterr().err


def test_an_error_names_its_file(capsys):
    safetensors = pytest.importorskip("safetensors.numpy", reason="the files are of that format")
    Path("shards").mkdir()
    for name, value in (("a", 1.0), ("b", np.nan)):
        safetensors.save_file({"e": np.full((3, 4), value)}, f"shards/{name}.safetensors")
    assert run("shards", "out", "--on-nan", "fail") == 1
    message = (
        "row 0 of e holds NaN or Inf; --on-nan keep makes such rows NaN throughout; in shards/b.safetensors; 1 of 2"
    )
    assert_one_line(capsys.readouterr().err, message)
    assert run("shards", "out", "--axis", "2") == 1
    assert_one_line(
        capsys.readouterr().err, "--axis 2 does not fit e of shape (3, 4): it must be -2 to 1; in shards/b.safetensors"
    )


def test_an_error_in_the_first_leaves_no_folder(capsys):
    save("shards/a.npy")
    np.save("shards/a.npy", np.full((3, 4), np.nan))
    assert run("shards", "out", "--on-nan", "fail") == 1
    assert_one_line(capsys.readouterr().err, "; nothing was written")
    assert not Path("out").exists()


def test_rows_of_all_are_counted(capsys):
    for name in "ab":
        x = save(f"shards/{name}.npy")
        x[5] = 0
        np.save(f"shards/{name}.npy", x)
    assert cli.main(["normalize", "shards", "out", "--norm", "scale"]) == 0
    assert capsys.readouterr().err.endswith(" s, 2 rows of zeros (the first is row 5 of shards/a.npy)\n")


def test_into_another_format():
    safetensors = pytest.importorskip("safetensors.numpy", reason="the files are of that format")
    shards = save_shards()
    assert run("shards", "out", "--to", "safetensors") == 0
    for name, x in shards.items():
        (y,) = safetensors.load_file(f"out/{name}.safetensors").values()
        assert_same_bits(y, anynorm.layer_norm(x))


@pytest.mark.skipif(os.name != "posix", reason="signals as POSIX has them")
def test_stopped_on_the_way(folder):
    save_shards()
    first = """
import signal, time
from anynorm._files.job import ArrayJob
signal.signal(signal.SIGINT, signal.default_int_handler)
really = ArrayJob.normalize
def normalize(task, *rest):
    if "b.npy" in task.name: print("ready", flush=True); time.sleep(60)
    return really(task, *rest)
ArrayJob.normalize = normalize
"""
    process = start("shards", "out", first=first)
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=50)
    assert process.returncode == 130
    assert error == "anynorm: interrupted; 1 of 3 files written, run it again for the rest\n"
    assert os.listdir("out") == ["a.npy"]


def test_a_zarr_folder_is_one_file():
    zarr = pytest.importorskip("zarr", reason="the folder is of that format")
    x = save("x.npy")
    zarr.create_array("x.zarr", data=x)
    assert run("x.zarr", "y.zarr/") == 0
    assert_same_bits(zarr.open_array("y.zarr")[:], anynorm.layer_norm(x))
    assert run("x.zarr", "x.npy", "out/") == 0
    assert sorted(os.listdir("out")) == ["x.npy", "x.zarr"]
    before = contents(Path("out"))
    assert run("x.zarr", "x.npy", "out/") == 0
    assert contents(Path("out")) == before


def test_one_bar_over_all(monkeypatch):
    save_shards()
    bars, steps = [], []

    class Bar:
        def __init__(self, what, total, quiet=False):
            bars.append((what, total()))

        def __enter__(self):
            return steps.append

        def __exit__(self, *_):
            pass

    monkeypatch.setattr("anynorm._cli.normalize.progress", Bar)
    assert run("shards", "out") == 0
    assert bars == [("3 files", 3 * 216)]
    assert sum(steps) == 3 * 216


@pytest.mark.parametrize("suffix", [".npy", ".safetensors", ".zarr", ".parquet"])
@pytest.mark.parametrize("axis", [0, -1])
def test_the_bar_knows_how_much_there_is(suffix, axis):
    np.save("x.npy", np.ones((300, 8), np.float32))  # which compresses well
    assert run("x.npy", f"shards{suffix}") == 0
    source, steps = Path(f"shards{suffix}"), []
    job = Job("layer_norm", None, None, (axis,), 1e-5)
    normalize(source, Path(f"out{suffix}"), job, overwrite=False, advance=steps.append)
    assert nbytes_of(source, ()) == sum(steps) == 300 * 8 * 4


def test_the_size_of_a_stream_or_of_what_cannot_be_read_is_not_known():
    Path("x.npy").write_bytes(b"")
    for place in ("-", Path("x.npy"), Path("none.npy"), Path("x.txt")):
        assert nbytes_of(place, ()) is None
