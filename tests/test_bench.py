"""`anynorm bench`: its tables and files, and what it refuses to time."""

import io
import json
import math
import re
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from anynorm import cli
from anynorm._bench import compare, plan, plot, report
from anynorm._bench.cases import Case
from anynorm._bench.memory import resident
from anynorm._bench.rivals import RIVALS, Rival, anynorm_call, numpy_expression, streaming_copy
from anynorm._bench.streaming import SHARED_NBYTES
from anynorm._cli.tables import print_table
from tests.files import assert_one_line

TINY = ["--norm", "scale", "--shape", "3x8", "--library", "numpy", "--threads", "1"]
TITLE = "scale_norm float32 3 x 8, 9.6e-05 MB"


@pytest.fixture(autouse=True)
def short(monkeypatch):
    monkeypatch.setattr(plan, "MOST_ROUNDS", 3)


def document(quartiles, name="anynorm", **machine):
    """What --json writes, of one call."""
    case = {"norm": "scale_norm", "dtype": "float32", "shape": [3, 8], "axis": -1, "of": "y"}
    result = {"quartiles": quartiles, "seconds": quartiles}
    return {
        "machine": {"processor": "abacus", "cores": 1, "packages": {"numpy": "1.0"}} | machine,
        "arguments": {"threads_used": 1},
        "skipped": {},
        "contests": [{"contest": "bench", "case": case, "baseline": "anynorm", "results": {name: result}}],
    }


def test_table_json_and_compare(tmp_path, capsys):
    old, new = tmp_path / "old.json", tmp_path / "new.json"
    old.write_text(json.dumps(document([100.0, 200.0, 300.0])))
    assert cli.main(["bench", *TINY, "--json", str(new), "--compare", str(old)]) == 0
    output, error = capsys.readouterr()
    lines = output.splitlines()
    table = lines.index(TITLE)
    assert lines[table + 1].split()[:3] == ["call", "time", "GB/s"]
    calls = ["anynorm", "anynorm out=", "copy", "streaming copy", "NumPy expression"]
    assert [line[2:].partition("  ")[0] for line in lines[table + 2 : table + 7]] == calls
    (change,) = (line for line in lines if line.startswith(f"  {TITLE} anynorm"))
    assert "200 s" in change
    assert change.endswith("faster")
    assert any(line.startswith("changed: processor: abacus -> ") for line in lines)
    assert f"wrote {new}" in error

    written = compare.load(new)
    assert {"processor", "cores", "packages", "system", "load"} <= set(written["machine"])
    results = written["contests"][0]["results"]
    assert list(results) == calls
    assert all(0 < result["quartiles"][1] < 1 for result in results.values())
    assert results["anynorm"]["ulp"] <= 2
    assert {result["kernel"] for name, result in results.items() if name in calls[:2]} <= {"cpu", "definition"}
    assert not any(one.marked for one in compare.changes(written, written))


def wrong(case, threads, x, weight, bias, by):
    call = anynorm_call(case, threads, x, weight, bias)
    return lambda: call() * np.float32(1 + by)


def test_a_wrong_result_is_not_timed_and_a_missing_rival_is_left_out(monkeypatch, tmp_path, capsys):
    monkeypatch.setitem(RIVALS, "NumPy", Rival(partial(wrong, by=1e-4)))
    monkeypatch.setitem(RIVALS, "anynorm out=", Rival(partial(wrong, by=1e-6)))
    monkeypatch.setitem(RIVALS, "anynorm", Rival(numpy_expression))
    for name in ("JAX", "anynorm on JAX"):
        monkeypatch.setitem(RIVALS, name, Rival(numpy_expression, packages=("no_such_package",)))
    file = tmp_path / "new.json"
    assert cli.main(["bench", *TINY, "--library", "jax", "--json", str(file)]) == 0
    output = capsys.readouterr().out
    assert "  NumPy expression: not timed: error 0.0001, allowed 1e-05\n" in output
    assert "left out: JAX and anynorm on JAX, not installed; pip install no_such_package\n" in output
    results = json.loads(file.read_text())["contests"][0]["results"]
    assert "seconds" in results["anynorm out="]
    assert not {"seconds", "quartiles", "ratio"} & set(results["NumPy expression"])
    assert not {"JAX", "anynorm on JAX"} & set(results)


def test_what_is_left_out_is_named_before_anynorm_on_it():
    skipped = {"anynorm on torch": "not installed", "torch": "not installed"}
    machine = {"packages": {"llvmlite": "1"}}
    assert report.remarks({"contests": [], "machine": machine, "skipped": skipped})[1:] == [
        "left out: torch and anynorm on torch, not installed"
    ]


def test_what_is_wrong_of_anynorm_makes_the_command_fail(monkeypatch, capsys):
    monkeypatch.setitem(RIVALS, "anynorm", Rival(partial(wrong, by=math.nan)))
    monkeypatch.setattr(plan, "OUT", "anynorm")
    monkeypatch.setattr(plan, "COPIES", ())
    monkeypatch.setattr(plan, "LIBRARIES", {"numpy": ()})
    assert cli.main(["bench", *TINY, "-q"]) == 1
    assert "anynorm: not timed: error nan" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--plot", "x.pdf"], "--plot writes .svg or .png, and x.pdf is neither"),
        (["--json", "nowhere/x.json"], "nowhere/x.json: there is no folder nowhere"),
        (["--json", "."], ". is a folder; name a file"),
        (["--compare", "x.json"], "x.json holds no benchmark that can be read; write one with anynorm bench --json"),
        (["--compare", "none.json"], "none.json: No such file or directory"),
    ],
)
def test_what_would_fail_at_the_end_is_refused_first(monkeypatch, tmp_path, capsys, options, message):
    monkeypatch.chdir(tmp_path)
    Path("x.json").write_text('{"contests": [{}]}')
    assert cli.main(["bench", *options]) == 1
    assert_one_line(capsys.readouterr().err, message)


@pytest.mark.parametrize(
    ("option", "package"), [(["--plot", "x.svg"], "matplotlib"), (["--dtype", "bfloat16"], "ml_dtypes")]
)
def test_a_missing_package_is_named(monkeypatch, capsys, option, package):
    monkeypatch.setattr("anynorm._cli.bench.installed", lambda name: name != package)
    assert cli.main(["bench", *option]) == 1
    assert_one_line(capsys.readouterr().err, f"pip install {package}")


def test_a_change_is_marked_where_the_quartiles_do_not_meet():
    then = [2.0, 3.0, 4.0]
    above, below = math.nextafter(4.0, 5.0), math.nextafter(2.0, 1.0)
    assert [compare.judged(then, [first, 6.0, 7.0]) for first in (4.0, above)] == ["", "slower"]
    assert [compare.judged(then, [0.5, 1.0, third]) for third in (2.0, below)] == ["", "faster"]


def test_differences_of_machine_and_versions():
    new = document([1.0, 1.0, 1.0], processor="engine", packages={"numpy": "2.0", "jax": "1.0"}, system="", python="",
                   anynorm="0.1.0")  # fmt: skip
    old = new | {"machine": document([])["machine"] | {"system": "", "python": "", "anynorm": "0.1.0"}}
    old["arguments"] = {"threads_used": 2}
    assert compare.differences(new, new) == []
    told = ["processor: abacus -> engine", "threads: 2 -> 1", "jax: none -> 1.0", "numpy: 1.0 -> 2.0"]
    assert compare.differences(old, new) == told


def test_a_busy_machine_is_said_to_be():
    least = report.BUSY * 4
    assert report.busy(document([], cores=4, load=math.nextafter(least, 0))) is None
    assert report.busy(document([], cores=4, load=None)) is None
    assert "a load of 2 on 4 cores" in report.busy(document([], cores=4, load=least))


def test_lines_have_ratios_of_the_same_rounds():
    timed = {"copy": [1.0, 2.0, 3.0], "anynorm": [2.0, 2.0, 2.0], "NumPy expression": [4.0, 6.0, 10.0]}
    record = document([])["contests"][0]
    results = {name: {"seconds": value, "quartiles": value} for name, value in timed.items()}
    found = {line.name: line for line in report.lines(record | {"results": results})}
    assert found["anynorm"].of_copy == 1.0
    assert found["anynorm"].bandwidth == 2 * 3 * 8 * 4 / 2.0
    assert found["NumPy expression"].beside == 3.0
    assert found["copy"].beside is found["copy"].of_streaming is None


def test_each_rival_takes_part_or_there_is_a_reason():
    norms, libraries = ("layer_norm", "rms_norm", "scale_norm"), list(plan.LIBRARIES)
    (contest,) = plan.contests(norms[2:], ["float32"], [(3, 8)], libraries)
    assert set(contest.rivals) | {contest.baseline} == set(plan.rivals()) - {"ONNX Runtime"}
    assert plan.reasons(norms, ["float32"], libraries) == {}
    assert plan.reasons(norms[:2], ["float32"], libraries) == {"scikit-learn": "which has no such norm"}
    assert set(plan.reasons(norms, ["float64"], libraries)) == {"JAX", "anynorm on JAX"}


def test_rounds_share_the_time_that_is_left():
    budget = plan.Budget(100.0, time.perf_counter())
    assert 20 < budget.rounds(2).seconds <= 25
    late = plan.Budget(1.0, time.perf_counter() - 2).rounds(2)
    assert (late.least, late.seconds) == (plan.LEAST_ROUNDS, 0.0)


@pytest.mark.parametrize(("numbers", "threads"), [(5, 1), (127, 2), (SHARED_NBYTES // 4 + 35, 2)])
def test_a_streaming_copy_is_a_copy(numbers, threads):
    x = np.random.default_rng(0).standard_normal((1, numbers)).astype(np.float32)
    case = Case("rms_norm", "float32", x.shape)
    np.testing.assert_array_equal(streaming_copy(case, threads, x, None, None)(), x)


def holding(nbytes):
    def call():
        held = np.ones(nbytes, np.uint8)
        return held[: nbytes // 2].copy()

    return call


@pytest.mark.skipif(sys.platform != "linux", reason="Linux tells the largest size of a process")
def test_memory_beyond_the_result():
    held = 64 << 20
    assert abs(resident(holding(held)) - held) < 4 << 20
    kept = np.ones(held, np.uint8)
    assert resident(lambda: kept) < 4 << 20


@pytest.mark.parametrize("suffix", [".svg", ".png"])
def test_a_picture_shows_each_call(tmp_path, suffix):
    path = tmp_path / f"x{suffix}"
    shown = document([1.0, 2.0, 3.0], name="ONNX Runtime")
    shown["contests"] += document([1.0, 2.0, 3.0], name="copy")["contests"]
    plot.draw(shown, path)
    content = path.read_bytes()
    assert content.startswith(b"<?xml" if suffix == ".svg" else b"\x89PNG")
    point = (9.6e-5, 2e9 / 24)  # MB, nanoseconds per number
    assert plot.series(shown["contests"]) == {"ONNX Runtime": [point], "copy": [point]}


def test_nothing_of_a_rival_is_imported_by_the_command():
    heavy = {"torch", "jax", "llvmlite", "sklearn", "matplotlib"}
    code = f"import sys, anynorm._cli.bench; print({heavy} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "set()\n"


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_a_table_is_drawn_on_a_terminal(monkeypatch):
    rows = [["[red]x", "1 us"], ["y", "20 us"]]
    shown = {}
    for file in (Terminal(), io.StringIO()):
        monkeypatch.setattr(sys, "stdout", file)
        print_table("[b]title", ("call", "time"), rows, [1])
        shown[file.isatty()] = re.sub(r"\x1b\[[0-9;]*m", "", file.getvalue())
    assert shown[False] == "\n[b]title\n  call     time\n  [red]x   1 us\n  y       20 us\n"
    assert "[b]title" in shown[True]
    monkeypatch.setattr(sys, "stdout", file := io.StringIO())
    print_table("title", ("call", "time", "use"), [["x", "1 us", "a few"], ["y", "20 us", "z"]], text=(0, 2))
    assert file.getvalue() == "\ntitle\n  call   time  use\n  x      1 us  a few\n  y     20 us  z\n"
    assert re.search(r"│ \[red\]x +│ +1 us │\n│ y +│ 20 us │", shown[True])


@pytest.mark.parametrize(
    ("packages", "advice"), [({"llvmlite": "1.0"}, ""), ({}, "; pip install llvmlite for the fused ones")]
)
def test_kernels_that_could_be_faster_are_named(packages, advice):
    shown = document([], packages=packages)
    shown["contests"][0]["results"]["anynorm"]["kernel"] = "definition"
    assert report.remarks(shown) == [f"kernels of anynorm: definition{advice}"]


def test_case_names():
    assert report.title({"case": Case("rms_norm", "float32", (4096, 1024))._asdict()}) == (
        "rms_norm float32 4096 x 1024, 16.8 MB"
    )
