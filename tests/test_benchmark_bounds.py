"""The benchmark of what is promised: every rival is there, it runs, and what it says is met is met."""

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest

from anynorm._bench.rivals import RIVALS
from benchmarks import bounds
from benchmarks.bounds import Bound


@pytest.mark.parametrize("name", list(bounds.ROWS))
def test_contests_are_known_and_differ(name):
    row = bounds.ROWS[name]
    for quick in (False, True):
        found = list(row.contests(quick))
        assert len(set(map(str, found))) == len(found)
        assert {rival for contest in found for rival in (contest.baseline, *contest.rivals)} <= set(RIVALS)
        for bound in row.bounds:
            cases = [one.case for one in found if bound.rival in one.rivals and one.case.norm == bound.norm]
            assert {case.dtype for case in cases} >= {bound.dtype}
            assert len([case for case in cases if case.dtype == bound.dtype]) == (1 if quick else len(row.shapes))


def test_large_arrays_are_of_4_mb_and_more():
    assert all(4 * rows * features >= 4 << 20 for rows, features in bounds.LARGE)
    assert {256, 8192} <= {features for _, features in bounds.LARGE} <= set(range(256, 8193))


@pytest.mark.parametrize(
    ("ratios", "met"),
    [
        ((2.0, 2.5, 3.0), "met"),
        ((1.0, 2.5, 3.0), "met"),
        ((math.nextafter(1.0, 0.0), 2.5, 3.0), "missed"),
        ((2.0, math.nextafter(2.5, 0.0), 3.0), "missed"),
        ((), "not timed"),
    ],
)
def test_what_is_met(ratios, met):
    found = [(ratio, str(place)) for place, ratio in enumerate(ratios)]
    told = bounds.line(Bound("layer_norm", "torch", 2.5, 1.0), found)
    assert told[-1] == met
    if ratios:
        assert told[2:6] == ["2.50", "2.5", f"{ratios[0]:.2f} at 0", "1"]


def test_what_is_not_promised_is_not_missed():
    found = [(0.5, "1 x 1"), (3.0, "2 x 2")]
    assert bounds.line(Bound("rms_norm", "copy", None, 0.5), found)[-1] == "met"
    assert bounds.line(Bound("rms_norm", "copy", 1.0, None), found)[-1] == "met"


def test_it_runs(tmp_path):
    folder, file = Path(bounds.__file__).parent.parent, tmp_path / "bounds.json"
    command = [sys.executable, "-m", "benchmarks.bounds", "copies", "--quick", "--seconds", "0.1", "-o", file]
    ended = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    document = json.loads(file.read_text())["rows"]["copies"]
    assert {"processor", "cores", "packages"} <= set(document["machine"])
    for bound in bounds.ROWS["copies"].bounds:
        ((ratio, shape),) = bounds.ratios(bound, document)
        assert ratio > 0
        assert shape == "64 x 768"
    assert [line.split("|")[2].strip() for line in ended.stdout.splitlines()[-4:]] == ["copy", "streaming copy"] * 2
