"""Helpers that wait and work without Python: the kernels leave nothing undone, and do nothing twice."""

import gc
import threading
import time

import numpy as np
import pytest

import anynorm
from tests.backends import as_dtype, needs_llvmlite, thorough_but
from tests.crews import assert_helpers, helpers_alive, needs_crew
from tests.test_kernels_crew_tasks import spin  # noqa: F401  a fixture
from tests.test_kernels_layout import assert_bits, normalize, parameters_of, rows_of
from tests.test_kernels_sharing import shared  # noqa: F401  a fixture

pytestmark = [
    needs_llvmlite,
    needs_crew,
    pytest.mark.usefixtures("shared"),
]
NORMS = ("layer_norm", "rms_norm", "scale_norm")


@pytest.fixture(autouse=True)
def forced():
    anynorm.set_threads(None)
    gc.collect()
    assert_helpers(0)
    with anynorm.use_kernel("cpu"):
        yield


def run(norm, x, *parameters, axis, in_place=False):
    """Normalize rows that lie as they are, or, along axis 0, as columns."""
    given = x.copy() if axis else np.ascontiguousarray(x.T)
    y = normalize(norm, given, *parameters, axis=axis, **({"out": given} if in_place else {}))
    return y if axis else np.ascontiguousarray(y.T)


PLACES = {"first": [0], "last": [99], "ends": [0, 99], "borders": [24, 25, 49, 50], "all": slice(None)}


@pytest.mark.usefixtures("spin")
@pytest.mark.parametrize("threads", thorough_but(3, of=[2, 3, 8]))
@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize(("dtype", "axis"), [("bfloat16", 1), ("bfloat16", 0), ("float64", 1)])
def test_rows_that_a_kernel_leaves_to_others(dtype, axis, place, threads):
    numbers = np.random.default_rng(0).standard_normal((100, 33))
    numbers[PLACES[place]] *= 1e30 if dtype == "bfloat16" else 1e300
    x = as_dtype(numbers, dtype)
    for norm in NORMS:
        parameters = parameters_of(norm, dtype, 33)
        expected = np.concatenate([normalize(norm, row[None], *parameters) for row in x])
        anynorm.set_threads(threads)
        assert_bits(run(norm, x, *parameters, axis=axis), expected)
        # In place, a row that is normalized twice shows.
        assert_bits(run(norm, x, *parameters, axis=axis, in_place=True), expected)


@pytest.mark.parametrize("axis", [0, 1])
def test_weights_that_a_kernel_leaves_to_others(axis):
    x, weight = rows_of("bfloat16", 33, 100), np.full(33, 1e-30).astype(rows_of("bfloat16", 1, 1).dtype)
    expected = np.concatenate([normalize("rms_norm", row[None], weight) for row in x])
    anynorm.set_threads(3)
    assert_bits(run("rms_norm", x, weight, axis=axis, in_place=True), expected)


def test_an_exception_behind_a_task_leaves_the_crew_in_order(monkeypatch):
    from anynorm._kernels.cpu.launch import norm

    def interrupted(*_):
        raise KeyboardInterrupt

    x = rows_of("float32", 33, 100)
    expected = normalize("layer_norm", x)
    x[50] = np.arange(33) * 1e30
    anynorm.set_threads(2)
    monkeypatch.setattr(norm, "_fallbacks", {})
    with monkeypatch.context() as patched:
        patched.setattr(norm, "_in_float64", interrupted)
        for _ in range(3):
            with pytest.raises(KeyboardInterrupt):
                normalize("layer_norm", x)
    x = rows_of("float32", 33, 100)
    assert_bits(normalize("layer_norm", x), expected)


@pytest.mark.usefixtures("spin")
def test_many_callers_and_other_numbers_of_threads_at_once():
    x = [rows_of(dtype, 33, 200 + i) for i, dtype in enumerate(["float16", "float32", "float64", "bfloat16"] * 8)]
    expected = [np.concatenate([normalize("layer_norm", row[None]) for row in rows]) for rows in x]
    wrong, waiting = [], threading.Barrier(33)

    def work(i):
        try:
            with anynorm.use_kernel("cpu"):
                waiting.wait(60)
                for _ in range(100):
                    if normalize("layer_norm", x[i]).tobytes() != expected[i].tobytes():
                        wrong.append(i)
        except BaseException as error:
            wrong.append(error)

    anynorm.set_threads(3)
    callers = [threading.Thread(target=work, args=(i,)) for i in range(32)]
    for caller in callers:
        caller.start()
    waiting.wait(60)
    turn = 0
    while any(caller.is_alive() for caller in callers):
        turn += 1
        anynorm.set_threads(1 + turn % 5)
        time.sleep(0.001)
    assert wrong == []


def test_helpers_are_as_many_as_asked_for_and_end_when_others_are():
    x = rows_of("float32", 33, 100)
    for threads in (4, 2, 5, 1):
        anynorm.set_threads(threads)
        assert_helpers(0)
        normalize("layer_norm", x)
        assert helpers_alive() == threads - 1


def test_helpers_that_have_nothing_to_do_take_no_time():
    x = rows_of("float32", 33, 100)
    anynorm.set_threads(4)
    for _ in range(50):
        normalize("layer_norm", x)
    assert helpers_alive() == 3
    time.sleep(0.1)
    before = time.process_time()
    time.sleep(1)
    # Three that look for work all the time would take 3 seconds on three cores, and 1 on a single one.
    assert time.process_time() - before < 0.5
