"""The arithmetic of the GPU benchmark, its check of results, and what it says where there is no GPU."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import anynorm
import benchmarks
from anynorm._bench.cases import Case
from anynorm._bench.inputs import derivative, formula
from anynorm._forced import forced
from benchmarks.gpu import __main__ as command
from benchmarks.gpu import calls, check, measure, table, timing, work
from tests.backends import has_cuda

pytestmark = pytest.mark.usefixtures("by_the_definition")
SMALL = Case("layer_norm", "float32", (64, 1024))


@pytest.fixture
def by_the_definition():
    """As no GPU's kernels are there; those of the CPU would have to be compiled."""
    with anynorm.use_kernel("definition"):
        yield


def run(*arguments):
    folder = Path(benchmarks.__file__).parent.parent
    command = [sys.executable, "-m", "benchmarks.gpu", *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)


def test_every_length_of_rows_is_timed_in_two_dtypes():
    full = work.once(work.everything())
    assert len(set(map(str, full))) == len(full)
    for norm in ("layer_norm", "rms_norm"):
        for dtype in ("float32", "bfloat16"):
            of_rows = [one.case for one in full if (one.case.norm, one.case.dtype, one.what) == (norm, dtype, "y")]
            assert set(work.FEATURES) <= {case.features for case in of_rows if case.nbytes == work.NBYTES}
    assert {one.what for one in full} == set(work.ARRAYS_MOVED)
    assert all(one.case.nbytes >= work.NBYTES for one in full if one.what != "call" and one.case.axis == -1)


def test_the_quick_selection_is_a_part_of_the_full_one():
    quick, full = (work.once(of()) for of in (work.quick, work.everything))
    assert {str(one) for one in quick} <= {str(one) for one in full}
    assert {one.what for one in quick} == {one.what for one in full}


@pytest.mark.parametrize(("what", "arrays"), [("y", 2), ("dx", 3), ("gradients", 3), ("step", 5), ("add", 4)])
def test_what_has_to_be_moved(what, arrays):
    assert work.Work(SMALL, what).nbytes == arrays * 64 * 1024 * 4


def test_buffers_exceed_the_cache():
    one = work.Work(SMALL)
    assert work.buffers(one, 50 << 20) * one.nbytes >= work.ROTATED * (50 << 20)
    assert work.buffers(work.rows_of("rms_norm", "float32", 4096), 1) == 2
    assert work.buffers(work.Work(SMALL, "call"), 50 << 20) == 2


def test_summary():
    assert timing.summary([3.0, 1.0, 2.0], 4_000_000, 4.0) == {"ms": 2.0, "GB/s": 2.0, "of copy": 0.5}


def test_short_calls_share_two_events_and_the_host_is_ahead():
    assert timing.pace(1e-4, 2e-4).calls == 5
    assert timing.pace(1e-4, 1.0).calls == 1
    assert timing.pace(1e-6, 1e-6).calls == timing.MOST_CALLS
    assert timing.pace(1e-4, 2e-4).delay > 5 * 1e-4


def test_arrays_take_turns_and_results_are_kept_for_one():
    alive = set()

    class Result:
        def __init__(self, *given):
            self.given = given
            alive.add(given)

        def __del__(self):
            alive.discard(self.given)

    call = timing.rotating(Result, [1, 2], [3, 4])
    assert call().given == (1, 3)
    assert call().given == (2, 4)
    assert alive == {(1, 3), (2, 4)}


@pytest.mark.parametrize("norm", ["layer_norm", "rms_norm", "scale_norm"])
def test_the_formula_is_that_of_the_other_benchmarks(norm):
    import torch

    case = Case(norm, "float64", (6, 5))
    rng = np.random.default_rng(0)
    x, dy, (weight, bias) = rng.standard_normal((6, 5)), rng.standard_normal((6, 5)), rng.standard_normal((2, 5))
    given = [torch.from_numpy(one) for one in (x, dy, weight, bias)]
    (y,) = check.expected(work.Work(case), *given)
    np.testing.assert_allclose(y, formula(case, x, weight, bias), rtol=1e-13)
    if norm == "scale_norm":
        return
    dx, dweight, *dbias = check.expected(work.Work(case, "gradients"), *given)
    right, share = derivative(case, x, weight, dy)
    np.testing.assert_allclose(dx, right, atol=1e-13)
    np.testing.assert_allclose(dweight, share.sum(0), atol=1e-13)
    assert len(dbias) == (norm == "layer_norm")


@pytest.mark.parametrize("what", ["y", "dx", "gradients", "step", "add"])
def test_every_call_does_the_work_and_a_wrong_one_is_found(what):
    import torch

    norm = "rms_norm" if what == "add" else "layer_norm"
    one = work.Work(Case(norm, "float32", (32, 64)), what)
    torch.manual_seed(0)
    weight, bias = (torch.randn(64).requires_grad_(what in ("gradients", "step")) for _ in range(2))
    x, other = torch.randn(2, 32, 64)
    wanted = check.expected(one, x, other, weight, bias)
    found = calls.calls(one, weight, bias)
    assert {"anynorm", "torch"} <= set(found)
    for call in found.values():
        got = call(x, other)
        assert check.wrong(one, got, wanted) is None
        got = got if isinstance(got, tuple) else (got,)
        assert "is off by" in check.wrong(one, tuple(array * 1.001 for array in got), wanted)
        assert "is off by nan" in check.wrong(one, tuple(array * torch.nan for array in got), wanted)
        assert check.wrong(one, (*got, x), wanted) == f"{len(wanted) + 1} results for {len(wanted)}"


def test_channels_first_is_checked_along_its_axis():
    import torch

    one = work.Work(Case("layer_norm", "float32", (2, 16, 3, 5), axis=1))
    x, (weight, bias) = torch.randn(2, 16, 3, 5), torch.randn(2, 16)
    wanted = check.expected(one, x, None, weight, bias)
    found = calls.calls(one, weight, bias)
    assert list(found) == ["anynorm", "torch", "torch contiguous"]
    assert [check.wrong(one, call(x, None), wanted) for call in found.values()] == [None] * 3
    assert found["torch contiguous"](x, None).is_contiguous()


def test_a_line_says_how_many_times_as_long_a_rival_takes():
    ours, torchs = (timing.summary([ms], 2 * SMALL.nbytes, 100.0) for ms in (0.01, 0.015))
    results = {"anynorm": ours, "torch": torchs, "Liger": {"wrong": "result 0 is off by 1"}}
    assert command.line(work.Work(SMALL), results) == (
        "layer_norm float32 64x1024: 10.0 us 52 GB/s 52%, torch 1.50x, Liger result 0 is off by 1"
    )
    results = {"anynorm": {"failed": "TypeError: no"}, "torch": torchs}
    assert command.line(work.Work(SMALL), results) == "layer_norm float32 64x1024: anynorm TypeError: no, torch 35%"
    results = {"anynorm CuPy": {"ms": 0.02, "synchronized ms": 0.03}, "torch": {"ms": 0.01, "synchronized ms": 0.025}}
    assert command.line(work.Work(SMALL, "call"), results) == (
        "layer_norm float32 64x1024 call: anynorm CuPy 20.0/30.0 us, torch 10.0/25.0 us"
    )


def test_the_kernel_is_forced_while_it_is_checked_and_not_while_it_is_timed():
    import torch

    one, seen = work.Work(SMALL._replace(shape=(4, 8)), "call"), []
    xs, (weight, bias) = [torch.randn(4, 8) for _ in range(2)], torch.randn(2, 8)

    def norm(x, other):
        seen.append(forced())
        return torch.nn.functional.layer_norm(x, (8,), weight, bias)

    with anynorm.use_kernel(None):
        failed, timed = measure._checked(one, {"anynorm": norm, "torch": norm}, xs, xs, weight, bias)
        assert failed == {}
        for call in timed.values():
            call()
        assert seen == ["cuda", None, None, None]
        ours = {"anynorm CuPy": calls.ours(one, weight, bias)}
        failed, timed = measure._checked(one, ours, xs, xs, weight, bias)
    assert timed == {}
    assert "kernel cuda was asked for and refuses this call" in failed["anynorm CuPy"]["failed"]


def test_nothing_is_forced_when_cases_are_timed(monkeypatch, capsys):
    seen, results = [], {"anynorm": {"ms": 0.01, "synchronized ms": 0.02}}
    monkeypatch.setattr("sys.argv", ["benchmarks.gpu", "--quick", "--only", "call"])
    monkeypatch.setattr(command, "why_not", lambda: None)
    monkeypatch.setattr(command, "describe", lambda: {"cache": 1, "cases": []})
    monkeypatch.setattr(measure, "copies", lambda *given: 1.0)
    monkeypatch.setattr(measure, "run", lambda *given: seen.append(forced()) or results)
    with anynorm.use_kernel(None):
        command.main()
    assert seen == [None]
    assert capsys.readouterr().out == "layer_norm float32 64x1024 call: anynorm 10.0/20.0 us\n"


def test_it_does_not_run_where_a_kernel_is_forced(monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("anynorm._kernels.cuda._MISSING", None)
    assert command.why_not() == (
        "a kernel is forced, so that no call is repeated as it is for users; unset ANYNORM_KERNEL"
    )
    with anynorm.use_kernel(None):
        assert command.why_not() is None


def record(case, what, **results):
    return case._asdict() | {"what": what, "results": results}


def took(ms, part=1.0):
    return {"ms": ms, "GB/s": 100.0, "of copy": part}


@pytest.mark.parametrize(
    ("case", "what", "results", "short"),
    [
        (SMALL, "y", {"anynorm": took(1.0, 0.9), "torch": took(0.98)}, 0),
        (SMALL, "y", {"anynorm": took(1.0, 0.89)}, 1),
        (SMALL, "y", {"anynorm": took(1.0), "quack": took(0.97)}, 1),
        (SMALL, "dx", {"anynorm": took(1.0, 0.8)}, 0),
        (SMALL, "dx", {"anynorm": took(1.0, 0.79)}, 1),
        (SMALL, "step", {"anynorm": took(1.0, 0.1), "torch": took(1.0)}, 0),
        (SMALL, "y", {"anynorm": {"failed": "TypeError: no"}, "torch": took(1.0)}, 1),
        (SMALL._replace(norm="scale_norm"), "y", {"anynorm": took(1.0), "torch": took(3.0), "compiled": took(1.0)}, 0),
        (SMALL._replace(norm="scale_norm"), "y", {"anynorm": took(1.0), "torch": took(2.9)}, 1),
        (SMALL._replace(shape=(8, 64, 5), axis=1), "y", {"anynorm": took(1.0, 0.1), "torch": took(2.0)}, 0),
        (SMALL._replace(shape=(8, 64, 5), axis=1), "y", {"anynorm": took(1.0, 0.1), "torch": took(1.9)}, 1),
        (SMALL, "call", {"anynorm CuPy": {"ms": 1.0}, "torch": {"ms": 1.0}, "compiled": {"ms": 0.1}}, 0),
        (SMALL, "call", {"anynorm CuPy": {"ms": 1.0}, "torch": {"ms": 0.97}}, 1),
    ],
)
def test_what_is_short_of_what_is_aimed_at(case, what, results, short):
    assert len(list(table.shortfalls(record(case, what, **results)))) == short


def test_the_table():
    document = {"card": "A card", "driver": "1", "cuda": "13.0", "versions": {"torch": "2"}, "copy GB/s": {}}
    on_host = {"ms": 0.01, "synchronized ms": 0.02}
    document["copy GB/s"] = {str(64 << 20): {"copy_": 2800.0, "neg": 2700.0}}
    document["cases"] = [
        record(SMALL, "y", anynorm=took(0.05, 0.95), torch=took(0.06), quack={"wrong": "result 0 is off by 1"}),
        record(SMALL, "step", anynorm={"failed": "TypeError"}, torch=took(0.06)),
        record(SMALL, "call", anynorm=on_host, torch=on_host),
    ]
    assert "\n".join(table.table(document)).split("\n") == [
        "- A card, driver 1, CUDA 13.0, torch 2",
        "- a copy of 64 MiB moves 2800 GB/s",
        "",
        "| | us | GB/s | of a copy | torch | quack |",
        "|---|---|---|---|---|---|",
        "| layer_norm float32 64x1024 | 50.0 | 100 | 95% | 1.20 | wrong |",
        "| layer_norm float32 64x1024 step | failed |  |  |  |  |",
        "",
        "layer_norm float32 64x1024 call: us until it returns, and until its result is there",
        "",
        "- anynorm: 10.0, 20.0",
        "- torch: 10.0, 20.0",
        "",
        "Short of what is aimed at:",
        "- layer_norm float32 64x1024 step: failed",
    ]


@pytest.mark.skipif(has_cuda(), reason="there is a GPU")
def test_it_ends_with_a_sentence_where_there_is_no_gpu():
    ended = run("--quick")
    assert ended.returncode == 1
    assert ended.stderr == "the GPU benchmark cannot run: torch sees no NVIDIA GPU\n"


def test_a_name_that_no_case_has():
    ended = run("--only", "batch_norm")
    assert ended.returncode == 1
    assert ended.stderr == "no case has 'batch_norm' in its name; names are like layer_norm float32 64x1024 call\n"


def test_the_list_of_cases_is_what_it_prints():
    ended = run("--list", "--only", "call")
    assert (ended.returncode, ended.stderr) == (0, "")
    assert ended.stdout == "layer_norm float32 64x1024 call\n"
