"""What a crew does with a task: each piece once, nothing after the call, and no time taken for nothing."""

import gc
import threading
import weakref

import pytest

from anynorm import _threads
from anynorm._kernels.cpu.threads import crew as crew_module
from anynorm._kernels.cpu.threads.crew import LEAST_SHARED_NBYTES, SPIN_NANOSECONDS
from anynorm._kernels.cpu.threads.functions import program
from anynorm._kernels.cpu.threads.memory import word
from tests.crews import (
    NBYTES,
    ROWS,
    UNITS,
    Task,
    crew_of,
    helpers_alive,
    kernel_of,
    needs_crew,
    never,
    share,
)

pytestmark = [needs_crew, pytest.mark.usefixtures("no_helpers")]


@pytest.fixture(params=[0, SPIN_NANOSECONDS, 10**12], ids=["sleep at once", "spin", "never sleep"])
def spin(request, monkeypatch):
    monkeypatch.setattr(crew_module, "processors", lambda: float("inf") if request.param else 1.0)
    monkeypatch.setattr(crew_module, "SPIN_NANOSECONDS", request.param)


def nothing(first, last):
    return last


@pytest.mark.usefixtures("spin")
def test_each_unit_is_done_once_whoever_does_it():
    done, threads_seen, met, resumed = [], set(), threading.Barrier(3), []

    def every_second_piece(first, last):
        if threading.get_ident() not in threads_seen:
            threads_seen.add(threading.get_ident())
            met.wait(60)  # until all three take part
        done.append((first, last))
        return last if first % 2 else first

    kernel = kernel_of(every_second_piece)
    share(kernel, Task(), UNITS, ROWS, NBYTES, 3, lambda *piece: resumed.append(piece), None)
    assert sorted(done) == [(i, i + 1) for i in range(UNITS)]
    assert resumed == [(i, i + 1) for i in range(0, UNITS, 2)]
    assert len(threads_seen) == 3
    assert helpers_alive() == 2


@pytest.mark.usefixtures("spin")
@pytest.mark.parametrize("threads", [2, 5])
def test_one_task_after_the_other(threads):
    done = []
    kernel = kernel_of(lambda first, last: done.append((first, last)) or last)
    for turn in range(300):
        done.clear()
        units = 2 + turn % 30
        share(kernel, Task(), units, ROWS, NBYTES, threads, never, None)
        assert sorted(i for first, last in done for i in range(first, last)) == list(range(units))


@pytest.mark.parametrize("reached", [-1, 0, 1, 7])
def test_the_rest_of_a_piece_is_resumed(reached):
    resumed = []
    kernel = kernel_of(lambda first, last: last if first else reached)
    share(kernel, Task(), 16, 1, LEAST_SHARED_NBYTES, 2, lambda *units: resumed.append(units), None)
    assert resumed == [(max(reached, 0), 8)]


def test_the_program_is_compiled_once_and_kept_on_disk(tmp_path, monkeypatch):
    from anynorm._kernels.cpu.compiler import machine_code

    def compiled_again(text):
        raise AssertionError

    monkeypatch.setenv("ANYNORM_CACHE_DIR", str(tmp_path))
    program.__wrapped__()
    assert len(list(tmp_path.iterdir())) == 1
    monkeypatch.setattr(machine_code, "compile_module", compiled_again)
    read = program.__wrapped__()
    monkeypatch.setattr(crew_module, "program", lambda: read)
    done = []
    kernel = kernel_of(lambda first, last: done.append(first) or last)
    share(kernel, Task(), UNITS, ROWS, NBYTES, 3, never, None)
    assert sorted(done) == [*range(UNITS)]


def test_a_task_is_made_known_when_all_of_it_is_there(monkeypatch):
    # A helper takes a piece as soon as it sees that one is left, and counts it off what is undone. Were the number of
    # pieces left stored before that of those undone, one could be counted off too early, and the caller wait for good:
    # within a few nanoseconds, which no test meets.
    from anynorm._kernels.cpu.threads import program as source

    stores, at = [], source._Crew.at

    def named(crew, name):
        place = at(crew, name)
        place.name = name
        return place

    def recorded(store):
        return lambda place, value: stores.append((store.__name__, getattr(place, "name", ""))) or store(place, value)

    monkeypatch.setattr(source._Crew, "at", named)
    for store in (source.store_integer, source.store_atomic):
        monkeypatch.setattr(source, store.__name__, recorded(store))
    source.module()
    names = [name for _, name in stores]
    known = names.index("left")
    assert stores[known] == ("store_atomic", "left")
    publishing = names[names.index("kernel") : known]
    assert sorted(publishing) == ["asleep", "kernel", "pieces", "reached", "task", "undone", "units"]


def test_a_caller_that_finds_the_crew_at_work_does_without(monkeypatch):
    resumed = []
    crew = crew_of(1, monkeypatch, 1)
    busy = word(crew._memory, "busy")
    busy.value = 1
    share(kernel_of(never), Task(), UNITS, ROWS, NBYTES, 2, lambda *units: resumed.append(units), None)
    assert resumed == [(0, UNITS)]
    assert busy.value == 1
    busy.value = 0
    share(kernel_of(nothing), Task(), UNITS, ROWS, NBYTES, 2, never, None)
    assert busy.value == 0


def test_an_exception_leaves_the_crew_in_order():
    def interrupted(first, last):
        raise KeyboardInterrupt

    for _ in range(3):
        with pytest.raises(KeyboardInterrupt):
            share(kernel_of(lambda first, last: first), Task(), UNITS, ROWS, NBYTES, 2, interrupted, None)
    share(kernel_of(nothing), Task(), UNITS, ROWS, NBYTES, 2, never, None)


@pytest.mark.parametrize(
    ("nbytes", "units", "threads", "shared"),
    [
        (LEAST_SHARED_NBYTES, 2, 2, True), (LEAST_SHARED_NBYTES - 1, 2, 2, False), (LEAST_SHARED_NBYTES, 1, 2, False),
        (LEAST_SHARED_NBYTES, 2, 1, False),
    ],
)  # fmt: skip
def test_which_tasks_are_shared(nbytes, units, threads, shared):
    done, resumed = [], []
    kernel = kernel_of(lambda first, last: done.append((first, last)) or last)
    share(kernel, Task(), units, units, nbytes, threads, lambda *all_units: resumed.append(all_units), None)
    assert sorted(done) == ([(0, 1), (1, 2)] if shared else [])
    assert resumed == ([] if shared else [(0, units)])
    assert helpers_alive() == shared


PIECE_NBYTES, PIECE_ROWS = 64 << 10, 16


@pytest.mark.parametrize(
    ("rows", "nbytes", "pieces"),
    [
        (12 * PIECE_ROWS, 12 * PIECE_NBYTES, 12), (13 * PIECE_ROWS, 13 * PIECE_NBYTES, 12),
        (12 * PIECE_ROWS - 1, 12 * PIECE_NBYTES, 11), (12 * PIECE_ROWS, 12 * PIECE_NBYTES - 1, 11),
        (3 * PIECE_ROWS, 12 * PIECE_NBYTES, 3), (PIECE_ROWS, 12 * PIECE_NBYTES, 3), (1, 12 * PIECE_NBYTES, 3),
    ],
)  # fmt: skip
def test_pieces_are_large_and_a_few_for_each_thread(rows, nbytes, pieces):
    done = []
    kernel = kernel_of(lambda first, last: done.append((first, last)) or last)
    share(kernel, Task(), 1000, rows, nbytes, 3, never, None)
    assert len(done) == pieces


@pytest.mark.parametrize("address", [0, None])
def test_what_is_interpreted_is_shared_among_pythons_threads(address):
    kernel, done = kernel_of(never), []
    kernel.address = address
    share(kernel, Task(), UNITS, ROWS, NBYTES, 3, lambda *piece: done.append(piece), None)
    assert sorted(done) == [(i, i + 1) for i in range(UNITS)]
    assert _threads._helpers[0] is _threads._pool_of


class Memory:
    """Something that a task has the address of."""


def test_memory_is_held_while_another_thread_is_at_work():
    kernel, begun, goes_on, ended = kernel_of(never), threading.Event(), threading.Event(), threading.Event()
    kernel.address = 0
    memory = Memory()
    there = weakref.ref(memory)

    def resume(first, last):
        if threading.current_thread() is threading.main_thread():
            begun.wait(60)
            raise KeyboardInterrupt
        begun.set()
        goes_on.wait(60)
        assert there() is not None
        ended.set()

    class Interrupted:
        """A future that is not waited for: a second interrupt comes."""

        def cancel(self):
            return False

        def result(self):
            raise KeyboardInterrupt

    class Pool:
        def submit(self, take_pieces):
            threading.Thread(target=take_pieces).start()
            return Interrupted()

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(_threads, "helpers", lambda start, count: Pool())
        with pytest.raises(KeyboardInterrupt):
            share(kernel, Task(), 2, ROWS, NBYTES, 2, resume, memory)
    del memory
    gc.collect()
    assert there() is not None
    goes_on.set()
    assert ended.wait(60)
