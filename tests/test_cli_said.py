"""What `anynorm normalize` says: of a run that succeeded, of one that would be, to people and to programs."""

import io
import json
import re
import sys
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import anynorm
from anynorm import cli
from anynorm._cli import words
from anynorm._kernels.cpu.compiler.entries import seconds_to_begin
from tests.files import assert_one_line, assert_same_bits, contents, normalize, save_x

pytestmark = pytest.mark.usefixtures("folder")


def save_with_bad_rows():
    x = save_x((2000, 6))
    x[[4, 17]] = 0
    x[9, 2] = np.nan
    np.save("x.npy", x)
    return x


def test_a_run_says_what_it_wrote(capsys):
    save_with_bad_rows()
    assert normalize("--norm", "l2") == 0
    out, error = capsys.readouterr()
    assert out == ""
    assert re.fullmatch(
        r"wrote y\.npy: 2,000 x 6 float32, 48\.0 kB in \d+\.\d+ s, 1 row with NaN or Inf \(row 9 of x\.npy\), "
        r"2 rows of zeros \(the first is row 4 of x\.npy\)\n",
        error,
    )


@pytest.mark.parametrize("options", [["--in-place"], ["-o", "-"]])
def test_it_says_where(monkeypatch, capsys, options):
    save_x()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.BytesIO()))
    assert cli.main(["normalize", "x.npy", "--norm", "rms", *options]) == 0
    where = "x.npy" if "--in-place" in options else "to standard output"
    assert capsys.readouterr().err.startswith(f"wrote {where}: 9 x 6 float32, 216 bytes in ")


def test_of_several_arrays(capsys):
    x = np.ones((4, 3), np.float32)
    save_file(dict.fromkeys("abcde", x), "x.safetensors")
    for names, said in (("ab", "a 4 x 3 float16, b 4 x 3 float16, 48 bytes"), ("abcd", "4 arrays, 96 bytes")):
        options = [option for name in names for option in ("--tensor", name)]
        assert (
            cli.main(
                ["normalize", "x.safetensors", "y.safetensors", "-f", "--norm", "rms", "--dtype", "float16", *options]
            )
            == 0
        )
        assert capsys.readouterr().err.startswith(f"wrote y.safetensors: {said} in ")


def test_quiet_says_nothing_but_errors(capsys):
    save_with_bad_rows()
    assert normalize("-q", "--norm", "scale") == 0
    assert capsys.readouterr() == ("", "")
    assert normalize("--quiet") == 1
    assert_one_line(capsys.readouterr().err, "y.npy exists")


def test_json_for_programs(capsys):
    save_with_bad_rows()
    assert normalize("--json", "-q", "--norm", "scale", "--eps", "1e-3") == 0
    out, error = capsys.readouterr()
    assert error == ""
    told = json.loads(out)
    assert told.pop("seconds") > 0
    (file,) = told.pop("files")
    assert told == {"done": []}
    (array,) = file.pop("arrays")
    assert array == {"name": "", "shape": [2000, 6], "dtype": "float32", "nbytes": 48000}
    assert (file["source"], file["target"], file["left"]) == ("x.npy", "y.npy", [])
    assert (file["nan_rows"], file["zero_rows"], file["short_rows"]) == (1, 2, 0)


@pytest.mark.parametrize("target", ["y.npy", "--in-place", "-", "y.safetensors"])
def test_dry_run_says_what_would_be_and_writes_nothing(monkeypatch, capsys, folder, target):
    x = save_x()
    before = contents(folder)
    monkeypatch.setattr("anynorm._files.job.ArrayJob.normalize", lambda *_: pytest.fail("it is computed"))
    assert cli.main(["normalize", "x.npy", target, "--norm", "layer", "--dtype", "float16", "-n"]) == 0
    out, error = capsys.readouterr()
    where = {"--in-place": "x.npy", "-": "to standard output"}.get(target, target)
    kernel = anynorm.explain(x.astype("float16")).kernel
    assert out == f"would write {where}: 9 x 6 float16, 108 bytes, through the kernel {kernel}\n"
    assert error == ""
    assert contents(folder) == before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("x.npy y.npy", "y.npy exists"),
        ("x.npy none/y.npy", "none is not a directory"),
        ("x.npy x.npy", "x.npy itself"),
        ("x.npy z.npy --axis 2", "--axis 2 does not fit"),
        ("x.npy z.npy --weight x.npy", "the file of --weight must have the shape"),
        ("integers.npy z.npy", "integers.npy holds int64"),
        ("x.npy z.parquet --axis 0 --dtype bfloat16", "Parquet has no bfloat16"),
    ],
)
def test_dry_run_refuses_what_the_run_would(capsys, folder, arguments, message):
    save_x()
    np.save("integers.npy", np.arange(6).reshape(2, 3))
    Path("y.npy").write_bytes(b"precious")
    before = contents(folder)
    for dry in (["--dry-run"], []):
        assert cli.main(["normalize", *arguments.split(), "--norm", "layer", *dry]) == 1
        assert_one_line(capsys.readouterr().err, message)
    assert contents(folder) == before


def test_dry_run_for_programs(capsys):
    save_file({"e": np.ones((4, 3), ml_dtypes.bfloat16), "ids": np.arange(3)}, "x.safetensors")
    arguments = [
        "normalize",
        "x.safetensors",
        "y.safetensors",
        "--norm",
        "scale",
        "--tensor",
        "e",
        "--dry-run",
        "--json",
    ]
    assert cli.main(arguments) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["dry_run"] is True
    (array,) = told["files"][0]["arrays"]
    assert array["kernel"] == anynorm.explain(np.ones((1, 3), ml_dtypes.bfloat16), norm="scale_norm").kernel
    assert (array["shape"], array["dtype"]) == ([4, 3], "bfloat16")
    assert not Path("y.safetensors").exists()


def test_statistics_of_one_file_are_applied_to_another(capsys):
    train, test = np.random.default_rng(0).standard_normal((2, 50, 6)).astype("float32") * 4 + 100
    np.save("train.npy", train)
    np.save("test.npy", test)
    assert cli.main(["show", "train.npy", "--axis", "0", "--json"]) == 0
    Path("train.json").write_text(capsys.readouterr().out)
    arguments = ["normalize", "test.npy", "out.npy", "--norm", "layer", "--axis", "0"]
    assert cli.main([*arguments, "--moments", "train.json"]) == 0
    want = anynorm.layer_norm(test, axis=0, moments=anynorm.moments(train, axis=0))
    assert_same_bits(np.load("out.npy"), want)
    # What Moments.to_dict returns is taken as well.
    Path("train.json").write_text(json.dumps(anynorm.moments(train, axis=0).to_dict()))
    assert cli.main([*arguments, "-f", "--moments", "train.json"]) == 0
    assert_same_bits(np.load("out.npy"), want)


def test_statistics_of_several_arrays_are_chosen_by_name(capsys):
    train = {name: np.random.default_rng(seed).standard_normal((20, 4)) for seed, name in enumerate("ab")}
    save_file(train, "train.safetensors")
    assert cli.main(["show", "train.safetensors", "--axis", "0", "--json"]) == 0
    Path("train.json").write_text(capsys.readouterr().out)
    options = ["--norm", "layer", "--axis", "0", "--moments", "train.json", "--tensor", "b"]
    assert cli.main(["normalize", "train.safetensors", "out.safetensors", *options]) == 0
    want = anynorm.layer_norm(train["b"], axis=0, moments=anynorm.moments(train["b"], axis=0))
    assert_same_bits(load_file("out.safetensors")["b"], want)


@pytest.mark.parametrize(
    ("function", "value", "said"),
    [
        (words.of_nbytes, 0, "0 bytes"), (words.of_nbytes, 1, "1 byte"), (words.of_nbytes, 999, "999 bytes"),
        (words.of_nbytes, 1000, "1.0 kB"), (words.of_nbytes, 99_949, "99.9 kB"), (words.of_nbytes, 99_951, "100 kB"),
        (words.of_nbytes, 999_499, "999 kB"), (words.of_nbytes, 999_501, "1.0 MB"),
        (words.of_nbytes, 3_072_000_000, "3.1 GB"), (words.of_nbytes, 10**22, "10,000 EB"),
        (words.of_seconds, 0.004, "0.00 s"), (words.of_seconds, 0.994, "0.99 s"), (words.of_seconds, 0.996, "1.0 s"),
        (words.of_seconds, 59.94, "59.9 s"), (words.of_seconds, 59.96, "1 min 0 s"),
        (words.of_seconds, 3599.4, "59 min 59 s"), (words.of_seconds, 3599.6, "1 h 0 min"),
        (words.of_shape, (), "a single"), (words.of_shape, (2_000_000, 384), "2,000,000 x 384"),
    ],
)  # fmt: skip
def test_numbers_for_people(function, value, said):
    assert function(value) == said


def test_show_before_and_after(capsys):
    np.save("x.npy", np.asarray([[3, 4], [0, 5]], np.float32))
    assert normalize("--norm", "l2", "--show") == 0
    out, error = capsys.readouterr()
    assert out == ""
    parts = r"(x\.npy: (?:.*\n)*)(wrote .*\n)(  kernel .*\n)(y\.npy: (?:.*\n)*)"
    before, wrote, ran, after = re.fullmatch(parts, error).groups()
    for shown, path in ((before, "x.npy"), (after, "y.npy")):
        assert cli.main(["show", path]) == 0
        assert capsys.readouterr().out == shown
    assert "  lengths     5 least, 5 median, 5 largest\n" in before
    assert "  unit        yes, all rows\n" in after
    assert re.fullmatch(r"wrote y\.npy: 2 x 2 float32, 16 bytes in \d+\.\d+ s\n", wrote)
    kernel = anynorm.explain(np.ones((2, 2), np.float32), norm="scale_norm").kernel
    assert ran.startswith(f"  kernel      {kernel}, for NumPy arrays")


@pytest.mark.parametrize(("waited", "said"), [(0.0099, ""), (0.01, "; 0.01 s of the time to compile or load it")])
def test_the_time_until_a_kernel_runs_is_told(monkeypatch, capsys, waited, said):
    pytest.importorskip("llvmlite", reason="the kernels are compiled by llvmlite")
    save_x()
    clock = iter((0.0, waited))
    monkeypatch.setattr(anynorm._cli.normalize, "seconds_to_begin", lambda: next(clock))
    assert normalize("--show") == 0
    assert f"\n  kernel      cpu, for NumPy arrays{said}\n" in capsys.readouterr().err


def test_what_would_be_faster_is_told(monkeypatch, capsys):
    save_x()
    monkeypatch.setattr(anynorm._kernels.cpu, "_MISSING", "pip install a compiler")
    assert normalize("--show") == 0
    assert "\n  kernel      definition, for NumPy arrays; pip install a compiler\n" in capsys.readouterr().err


def test_show_where_all_is_done(capsys):
    save_x()
    Path("out").mkdir()
    for said in ("\n  kernel ", "nothing to do: 1 file in out newer than the source; --force writes them again\n"):
        assert cli.main(["normalize", "x.npy", "out", "--norm", "l2", "--show"]) == 0
        error = capsys.readouterr().err
        assert said in error
    assert error == said


def test_show_of_what_another_format_holds(capsys):
    x = np.ones((4, 3), np.float32)
    save_file({"a": x, "b": x}, "x.safetensors")
    assert cli.main(["normalize", "x.safetensors", "y.npy", "--norm", "l2", "--tensor", "a", "--show"]) == 0
    shown = [line for line in capsys.readouterr().err.splitlines() if not line.startswith(("  ", "wrote"))]
    assert shown == ["x.safetensors a: 4 x 3 float32, 48 bytes", "y.npy: 4 x 3 float32, 48 bytes"]
    assert cli.main(["normalize", "x.safetensors", "--in-place", "--norm", "l2", "--tensor", "b", "--show"]) == 0
    units = [line for line in capsys.readouterr().err.splitlines() if line.startswith("  unit")]
    assert units == ["  unit        no, 0 of 4 rows", "  unit        yes, all rows"]


def test_show_looks_first_whether_it_may_write(capsys):
    save_x()
    np.save("y.npy", np.ones(3))
    assert normalize("--show") == 1
    assert_one_line(capsys.readouterr().err, "y.npy exists")


def test_the_wait_for_a_kernel_counts_once():
    pytest.importorskip("llvmlite", reason="the kernels are compiled by llvmlite")
    x = np.ones((2, 3), np.float32)
    anynorm.layer_norm(x)
    waited = seconds_to_begin()
    assert waited > 0
    anynorm.layer_norm(x)
    assert seconds_to_begin() == waited
