"""The definition's table: it times what is right, and what it says misses the bound does."""

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest

import anynorm
from anynorm._bench import inputs
from anynorm._bench.cases import LAYERS, Case
from benchmarks import definition, libraries
from benchmarks.definition import Line

SHAPE = (4, 96)
LARGE = 10 << 20  # bytes of an array


def error(name, case):
    """The largest error of a rival's result."""
    rival = libraries.RIVALS[name]
    given = inputs.make_inputs(case, rival.library)
    with anynorm.use_kernel("definition"):
        result = rival.make(case, 1, *given)()
        return inputs.largest_error(case, *given, result() if callable(result) else result)


@pytest.mark.parametrize("who", ["plain", "definition"])
@pytest.mark.parametrize("library", definition.EAGER)
def test_every_library_is_right(who, library):
    for norm in definition.NORMS:
        assert error(f"{who} {library}", Case(norm, "float64", SHAPE)) <= inputs.TOLERANCE["float64"]


def test_the_definition_is_right_under_jit():
    assert error("definition JAX", Case("scale_norm", "float32", SHAPE)) <= inputs.TOLERANCE["float32"]


@pytest.mark.parametrize(
    ("norm", "dtype"), [("layer_norm", "float32"), ("rms_norm", "bfloat16"), ("scale_norm", "float32")]
)
def test_gradients_of_the_plain_expression_are_right(norm, dtype, monkeypatch):
    import jax

    monkeypatch.setattr(jax, "clear_caches", lambda: None)  # other tests have use for them
    case = Case(norm, dtype, SHAPE, of="dx")
    assert error("plain JAX", case) <= inputs.TOLERANCE[dtype]
    assert error("plain JAX, compiling", case._replace(of="model")) <= LAYERS * inputs.TOLERANCE[dtype]


def test_a_wrong_gradient_is_seen():
    case, allowed = Case("layer_norm", "float32", SHAPE, of="dx"), inputs.TOLERANCE["float32"]
    given = inputs.make_inputs(case, "numpy")
    with anynorm.use_kernel("definition"):
        gradients = anynorm.layer_norm_vjp(*given)[1](inputs.make_gradient(case, "numpy"))
    assert inputs.largest_error(case, *given, tuple(gradients)) <= allowed
    for wrong in range(3):
        changed = tuple(array * (1.001 if place == wrong else 1) for place, array in enumerate(gradients))
        assert inputs.largest_error(case, *given, changed) > allowed
    changed[0][0, 0] = math.nan
    assert math.isnan(inputs.largest_error(case, *given, changed))


@pytest.mark.parametrize(
    ("ratio", "temporaries", "misses"),
    [
        (3.0, (LARGE, 3 * LARGE), ""),
        (math.nextafter(3.0, 4.0), None, "time"),
        (1.0, (LARGE, 3 * LARGE + 1), "temporaries"),
        (1.0, (0, 3 * LARGE // 10), ""),  # no temporaries count as a tenth of x
        (4.0, (0, 3 * LARGE // 10 + 1), "time, temporaries"),
    ],
)
def test_the_bound(ratio, temporaries, misses):
    assert Line("", "", (1.0, 1.0), ratio, temporaries, LARGE).misses == misses


def test_buffers_of_a_fixed_size_are_within_the_bound():
    assert [Line("", "", temporaries=(0, count), nbytes=1000).misses for count in (1 << 20, (1 << 20) + 1)] == [
        "",
        "temporaries",
    ]


def test_contests_are_known_and_differ():
    for quick in (False, True):
        found = list(definition.contests(quick))
        assert len({(str(contest), contest.rivals) for contest in found}) == len(found)
        assert {name for contest in found for name in (contest.baseline, *contest.rivals)} == set(libraries.RIVALS)


def test_it_runs(tmp_path):
    folder, file = Path(definition.__file__).parent.parent, tmp_path / "definition.json"
    command = [sys.executable, "-m", "benchmarks.definition", "--quick", "--only", "32 4x96 [NumPy]", "-o", file]
    ended = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    document = json.loads(file.read_text())
    assert {"processor", "cores", "packages"} <= set(document["machine"])
    lines = list(definition.lines(document))
    assert [line.case for line in lines] == [f"{norm} float32 4x96" for norm in definition.NORMS]
    assert all(line.ratio and line.seconds and line.temporaries and not line.problem for line in lines)
    missing = sum(bool(line.misses) for line in lines)
    assert ended.stdout.splitlines()[-1] == f"{missing} of 3 lines miss the bound of 3."


def test_what_is_wrong_has_no_ratio():
    record = {"case": Case("rms_norm", "float32", SHAPE)._asdict(), "baseline": "plain"}
    timed = {"quartiles": [1.0, 1.0, 1.0], "ratio": 1.0}
    for plain, ours, problem in (
        (timed, {"wrong": "error 1, allowed 1e-05"}, "anynorm: wrong"),
        ({"failed": "MemoryError"}, {"quartiles": [1.0, 1.0, 1.0]}, "the plain expression: failed"),
    ):
        document = {"contests": [record | {"results": {"plain": plain, "definition": ours}}]}
        (line,) = definition.lines(document)
        assert line.misses == line.problem == problem
