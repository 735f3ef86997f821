"""The benchmark of starts: it times what is right, and says what takes longer than promised."""

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import start
from benchmarks.start import Folders, Start, measure, summary


def test_it_runs(tmp_path):
    folder, file = Path(start.__file__).parent.parent, tmp_path / "start.json"
    command = [sys.executable, "-m", "benchmarks.start", "--quick", "--only", "float32", "-o", file]
    ended = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    document = json.loads(file.read_text())
    assert {"processor", "cores", "packages"} <= set(document["machine"])
    calls = ["first call, float32", "first call ever, float32"]
    assert list(document["starts"] | document["skipped"]) == ["import numpy", *calls]
    for result in document["starts"].values():
        assert len(result["seconds"]) == 1
        assert result["median"] > 0
    assert [line.split(" |")[0] for line in ended.stdout.splitlines()[2:5]] == [
        f"| {one}" for one in document["starts"]
    ]


def test_plain_numpy_is_right(tmp_path):
    known = start.starts(tmp_path)["the same by plain NumPy"]
    start.check(known, tmp_path)
    wrong = known._replace(arguments=("-c", known.arguments[1].replace("1e-5", "1e-3")))
    with pytest.raises(RuntimeError, match="AssertionError"):
        start.check(wrong, tmp_path)


def test_starts_are_compared_with_starts(tmp_path):
    known = start.starts(tmp_path)
    assert {one.beyond for one in known.values()} <= {None, *known}
    assert {one.most_beyond for name, one in known.items() if name.startswith(start.FIRST_CALL)} == {0.12}
    assert {one.most for name, one in known.items() if name.startswith(start.FIRST_CALL_EVER)} == {1.0}
    assert all(one.cold == name.startswith(start.FIRST_CALL_EVER) for name, one in known.items())


def test_what_fails_is_not_timed(tmp_path):
    wrong = Start(("-c", "x = 1"), check="\nassert x == 2, 'wrong'")
    warm = Start(("-c", "import os; open(os.environ['ANYNORM_CACHE_DIR'] + '/kernel', 'w')"))
    known = {"wrong": wrong, "kept": warm._replace(cold=True), "not kept": Start(("-c", ""), cold=True), "warm": warm}
    results = measure(known, 2, Folders(tmp_path))
    assert results["wrong"] == {"failed": "AssertionError: wrong"}
    assert results["not kept"] == {"failed": "nothing was compiled, or it was not kept"}
    assert [len(results[name]["seconds"]) for name in ("kept", "warm")] == [2, 2]
    # One folder for each start with an empty one: two checked, one of them timed twice; one for all others.
    assert sorted(one.name for one in tmp_path.iterdir()) == ["kernels", *(f"kernels-{number}" for number in range(4))]


@pytest.mark.parametrize(
    ("promised", "seconds", "misses"),
    [
        ({"most": 1.0}, 1.0, False),
        ({"most": 1.0}, math.nextafter(1.0, 2.0), True),
        ({"most_beyond": 0.5}, 1.0, False),
        ({"most_beyond": 0.5}, math.nextafter(1.0, 2.0), True),
        ({}, 100.0, False),
    ],
)
def test_the_bound(promised, seconds, misses):
    found = summary(Start((), "import numpy", **promised), [seconds], {"import numpy": {"seconds": [0.5]}})
    assert (found["median"], found["beyond"], found["misses"]) == (seconds, seconds - 0.5, misses)


def test_medians_are_of_differences_within_a_round():
    found = summary(Start((), "import numpy"), [1.0, 5.0, 4.0], {"import numpy": {"seconds": [0.5, 4.0, 2.0]}})
    assert (found["median"], found["beyond"]) == (4.0, 1.0)


def test_nothing_is_beyond_what_failed():
    assert "beyond" not in summary(Start((), "import numpy"), [1.0], {"import numpy": {"failed": "no"}})
