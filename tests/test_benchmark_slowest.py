"""The search for slow calls: both calls of a case do the same, in every way that arrays may lie, and it runs."""

import json
import math
import subprocess
import sys
from itertools import product
from pathlib import Path

import numpy as np
import pytest

import anynorm
from anynorm._bench.cases import EPS
from benchmarks.slowest import __main__ as slowest
from benchmarks.slowest import arrays, draw, numpy_calls, timing, torch_calls

FOLDER = Path(slowest.__file__).parents[2]


def case_of(what, norm="layer_norm", dtype="float32", order="C", size=1.0):
    return draw.Case(what, norm, dtype, (3, 20, 2), (1,), order, size, norm != "scale_norm", norm == "layer_norm", 1e-5)


@pytest.mark.parametrize(
    ("what", "norm"),
    [
        *product(("y", "out", "in place", "vjp", "given"), EPS),
        *product(("add",), ("layer_norm", "rms_norm")),
        ("moments", "layer_norm"),
    ],
)
def test_the_plain_expression_is_the_same(what, norm):
    for dtype in draw.DTYPES:
        case = case_of(what, norm, dtype)
        for which in range(2 if dtype == "float16" else 1):
            given = [numpy_calls.calls(case, arrays.arrays_of(case)) for _ in range(2)]
            with anynorm.use_kernel("definition"):
                found = given[0][0]()
            expected = given[1][1][which]()
            assert timing.difference(case, found, timing.copied(expected)) == ""


@pytest.mark.parametrize("norm", list(EPS))
@pytest.mark.parametrize("what", draw.WHAT_OF_TENSORS)
def test_torch_does_the_same(what, norm):
    for dtype in ("bfloat16", "float32"):
        case = case_of(what, norm, dtype)
        with anynorm.use_kernel("definition"):
            ours, (theirs,) = torch_calls.calls(case, arrays.arrays_of(case))
            assert timing.difference(case, ours(), timing.copied(theirs())) == ""


def test_what_differs_is_seen():
    case = case_of("vjp")
    y = np.ones(case.shape)
    lost = y.copy()
    lost[0, 0, 0] = math.nan
    assert timing.difference(case, (y, None), (y, None)) == ""
    assert timing.difference(case, (y, y * 1.01), (y, y)) == "result 1 is off by 0.01"
    assert timing.difference(case, y, y[:, :1]).startswith("result 0 has shape")
    for size in (1.0, 1e30):
        assert timing.difference(case._replace(size=size), lost, y) == "result 0 is not finite"
        assert timing.difference(case._replace(size=size), y, lost) == ""
    assert timing.difference(case._replace(size=1e30), y, 2 * y) == ""


@pytest.mark.parametrize("order", sorted(set(draw.ORDERS)))
def test_arrays_lie_as_they_are_said_to(order):
    shape, strides = (4, 5, 6), set()
    for seed in range(20):
        made = arrays.laid_out(np.arange(120.0).reshape(shape), order, np.random.default_rng(seed))
        np.testing.assert_array_equal(made, np.arange(120.0).reshape(shape))
        strides.add(made.strides)
    expected = {
        "C": {(240, 48, 8)},
        "Fortran": {(8, 32, 160)},
        "offset": {(240, 48, 8)},
        "every second": {(480, 48, 8), (480, 96, 8), (480, 96, 16)},
        "reversed": {(-240, 48, 8), (240, -48, 8), (240, 48, -8)},
        "padded": {(360, 72, 8)},
        "power of two": {(320, 64, 8)},
    }
    if order == "swapped":
        assert len(strides) > 2
    else:
        assert strides == expected[order]
    if order == "offset":
        assert made.ctypes.data == made.base.ctypes.data + 8


@pytest.mark.parametrize("tensors", [False, True])
def test_cases_are_of_every_kind_and_no_larger_than_asked(tensors):
    drawn = [draw.draw(0, number, tensors, 1 << 14) for number in range(1000)]
    assert drawn == [draw.draw(0, number, tensors, 1 << 14) for number in range(1000)]
    assert drawn != [draw.draw(1, number, tensors, 1 << 14) for number in range(1000)]
    assert {one.what for one in drawn} == set(draw.WHAT_OF_TENSORS if tensors else draw.WHAT)
    assert {one.norm for one in drawn} == set(EPS)
    assert {one.order for one in drawn} == set(draw.ORDERS) - ({"reversed"} if tensors else set())
    for dtype in {one.dtype for one in drawn}:
        assert {one.size for one in drawn if one.dtype == dtype} == {1.0, "mean", "mixed", *draw.SIZES[dtype]}
    assert {one.dtype for one in drawn} == set(draw.DTYPES) | ({"bfloat16"} if tensors else set())
    assert max(math.prod(one.shape) for one in drawn) <= 2 << 14
    assert {len(one.axes) for one in drawn} == {1, 2}
    assert any(one.axes[-1] < len(one.shape) - 1 for one in drawn)


@pytest.mark.parametrize("tensors", [[], ["--tensors"]])
def test_it_runs(tensors, tmp_path):
    file = tmp_path / "slowest.json"
    command = [sys.executable, "-m", "benchmarks.slowest", *tensors, "--cases", "3", "--most-elements", "100"]
    ended = subprocess.run(
        [*command, "--seconds", "0", "-o", file], cwd=FOLDER, capture_output=True, text=True, check=False
    )
    assert ended.returncode == 0, ended.stderr
    document = json.loads(file.read_text())
    assert {"processor", "cores", "packages"} <= set(document["machine"])
    assert [one["number"] for one in document["cases"]] == [0, 1, 2]
    assert all(one["ratio"] > 0 for one in document["cases"])
    assert "of 3 are slower by more than 1.5" in ended.stdout.splitlines()[-1]
    printed = [float(line.split(" ")[1]) for line in ended.stdout.splitlines()[2:5]]
    assert printed == sorted(printed, reverse=True)


def test_a_ratio_is_of_anynorms_time():
    ours, plain, ratio = timing.timed(lambda: sum(range(20000)), lambda: None, 0.0)
    assert ours > plain
    assert ratio > 1
