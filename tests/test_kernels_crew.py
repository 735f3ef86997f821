"""Helpers that wait and work without Python: nothing is left undone, done twice, or touched too late."""

import ctypes
import gc
import threading
import time

import numpy as np
import pytest

import anynorm
from anynorm import _threads
from anynorm._kernels.cpu.compiler.entries import Kernel
from anynorm._kernels.cpu.kernels.task import Task
from anynorm._kernels.cpu.language.dtypes import INTERPRETED
from anynorm._kernels.cpu.threads.crew import Crew, launch
from tests.backends import as_dtype, needs_llvmlite
from tests.test_kernels_layout import assert_bits, normalize, parameters_of, rows_of
from tests.test_kernels_sharing import shared  # noqa: F401  a fixture

if INTERPRETED:
    pytest.skip("kernels that are not compiled are shared among Python's threads", allow_module_level=True)
pytestmark = [needs_llvmlite, pytest.mark.usefixtures("shared")]
NORMS = ("layer_norm", "rms_norm", "scale_norm")


@pytest.fixture(autouse=True)
def forced():
    # Of what ran before in this process, helpers may be left that were not told to end, or that are still ending.
    anynorm.set_threads(None)
    assert_all_end(helpers_alive())
    with anynorm.use_kernel("cpu"):
        yield


@pytest.fixture
def program():
    """The program of all crews, once a kernel has been compiled; and the words for it."""
    from anynorm._kernels.cpu.threads import program as crew_program

    found = crew_program.program()
    if found is None:
        pytest.skip("there are no semaphores without a name here, so there are no crews")
    return found


def helpers_alive():
    return [thread for thread in threading.enumerate() if thread.name == "anynorm"]


def assert_all_end(threads):
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive()


def run(norm, x, *parameters, axis, in_place=False):
    """Normalize rows that lie as they are, or, along axis 0, as columns."""
    given = x.copy() if axis else np.ascontiguousarray(x.T)
    y = normalize(norm, given, *parameters, axis=axis, **({"out": given} if in_place else {}))
    return y if axis else np.ascontiguousarray(y.T)


PLACES = {"first": [0], "last": [99], "ends": [0, 99], "borders": [24, 25, 49, 50], "all": slice(None)}


@pytest.mark.parametrize("threads", [2, 3, 8])
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


def test_an_exception_behind_a_job_leaves_the_crew_in_order(monkeypatch):
    from anynorm._kernels.cpu.launch import norm as call

    def interrupted(*_):
        raise KeyboardInterrupt

    x = rows_of("float64", 33, 100)
    expected = normalize("layer_norm", x)
    x[50] = np.arange(33) * 1e300
    anynorm.set_threads(2)
    with monkeypatch.context() as patched:
        patched.setattr(call.rescue, "normalize_row", interrupted)
        for _ in range(3):
            with pytest.raises(KeyboardInterrupt):
                normalize("layer_norm", x)
    x = rows_of("float64", 33, 100)
    assert_bits(normalize("layer_norm", x), expected)


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
        before = helpers_alive()
        anynorm.set_threads(threads)
        assert_all_end(before)
        normalize("layer_norm", x)
        assert len(helpers_alive()) == threads - 1


def test_helpers_that_have_nothing_to_do_take_no_time():
    x = rows_of("float32", 33, 100)
    anynorm.set_threads(4)
    for _ in range(50):
        normalize("layer_norm", x)
    assert len(helpers_alive()) == 3
    time.sleep(0.1)
    before = time.process_time()
    time.sleep(1)
    # Three that look for work all the time would take 3 seconds on three cores, and 1 on a single one.
    assert time.process_time() - before < 0.5


def crew_of(helpers, monkeypatch, present):
    """A crew in which so many helpers are called, and as many are there as are present."""
    crew = Crew(present)
    crew.helpers = helpers
    monkeypatch.setattr(_threads, "helpers", lambda start, count: crew)
    return crew


def test_no_call_waits_for_a_helper_that_does_not_come(program, monkeypatch):
    x = rows_of("float32", 33, 100)
    expected = normalize("layer_norm", x)
    crew = crew_of(3, monkeypatch, 0)
    anynorm.set_threads(4)
    for _ in range(100):
        assert_bits(normalize("layer_norm", x), expected)
    # It comes at last, finds nothing to do and touches nothing: neither the arrays nor the jobs are there any more.
    gc.collect()
    late = [threading.Thread(target=program.help, args=(crew._memory,), daemon=True) for _ in range(3)]
    for helper in late:
        helper.start()
    for _ in range(100):
        assert_bits(normalize("layer_norm", x), expected)
    crew.shutdown()
    assert_all_end(late)
    assert_bits(normalize("layer_norm", x), expected)  # by those who still hold the crew


def test_a_caller_that_finds_the_crew_at_work_does_without(monkeypatch):
    from anynorm._kernels.cpu.threads import program as crew_program

    x = rows_of("float32", 33, 100)
    expected = normalize("layer_norm", x)
    crew = crew_of(1, monkeypatch, 1)
    anynorm.set_threads(2)
    busy = ctypes.c_int64.from_address(ctypes.addressof(crew._memory) + crew_program.BUSY)
    busy.value = 1
    assert_bits(normalize("layer_norm", x), expected)
    assert busy.value == 1
    busy.value = 0
    assert_bits(normalize("layer_norm", x), expected)
    assert busy.value == 0
    crew.shutdown()


def test_a_job_is_made_known_when_all_of_it_is_there():
    # A helper takes a piece as soon as it sees that one is left, and counts it off what is undone. Were the number of
    # pieces left stored before that of those undone, one could be counted off too early, and the caller wait for good:
    # within a few nanoseconds, which no test meets.
    from anynorm._kernels.cpu.threads import program as crew_program

    publishing = crew_program._PROGRAM.split("define i64 @run(")[1].split("\npublish:\n")[1].split("\ncall:\n")[0]
    stores = [line.split() for line in publishing.splitlines() if "store" in line]
    *before, last = [line[line.index("ptr", 3) + 1].strip(",") for line in stores]
    assert sorted(before) == ["%asleep", "%job_at", "%results_at", "%undone"]
    assert last == "%left"
    assert stores[-1][1] == "atomic"
    assert "seq_cst" in " ".join(stores[-1])


def test_each_unit_is_done_once_whoever_does_it(program, monkeypatch):
    # Pieces are noted by a function of Python's: that needs no kernel, and takes the time that it is told to.
    done, threads_seen, met = [], set(), threading.Barrier(3)

    def piece(_, first, last):
        if threading.get_ident() not in threads_seen:
            threads_seen.add(threading.get_ident())
            met.wait(60)  # until all three take part
        done.append((first, last))
        return last if first % 2 else first  # every second piece is left

    kind = ctypes.CFUNCTYPE(ctypes.c_int64, ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64)(piece)
    kernel = Kernel(ctypes.cast(kind, ctypes.c_void_p).value, kind)
    crew = crew_of(2, monkeypatch, 2)
    anynorm.set_threads(3)
    left = []
    launch(kernel, Task(), 12, 1 << 20, 1 << 30, lambda first, last: left.append((first, last)), None)
    assert sorted(done) == [(i, i + 1) for i in range(12)]
    assert left == [(i, i + 1) for i in range(0, 12, 2)]
    assert len(threads_seen) == 3
    crew.shutdown()
