"""The helpers of a crew: how many there are, when they look for work, and what is left when they end."""

import ctypes
import errno
import gc
import threading

import pytest

from anynorm._kernels.cpu.threads import crew as crew_module
from anynorm._kernels.cpu.threads.crew import SPIN_NANOSECONDS, Crew
from anynorm._kernels.cpu.threads.functions import program
from anynorm._kernels.cpu.threads.memory import new_memory, thread_attributes, word
from tests.crews import (
    NBYTES,
    ROWS,
    UNITS,
    Task,
    assert_helpers,
    crew_of,
    helpers_alive,
    kernel_of,
    needs_crew,
    never,
    share,
)

pytestmark = [needs_crew, pytest.mark.usefixtures("no_helpers")]


def test_no_call_waits_for_a_helper_that_does_not_come(monkeypatch):
    done = []
    kernel = kernel_of(lambda first, last: done.append(first) or last)
    crew = crew_of(3, monkeypatch, 0)
    for _ in range(100):
        share(kernel, Task(), UNITS, ROWS, NBYTES, 4, never, None)
    assert done == [*range(UNITS)] * 100
    # It comes at last, finds nothing to do and touches nothing: neither kernels nor tasks are there any more.
    word(crew._memory, "kernel").value = word(crew._memory, "task").value = 0
    assert program().hire(crew._memory, thread_attributes(), 3) == 3
    for _ in range(100):
        share(kernel, Task(), UNITS, ROWS, NBYTES, 4, never, None)
    assert sorted(done) == sorted([*range(UNITS)] * 200)
    crew.shutdown()
    assert_helpers(0)
    share(kernel, Task(), UNITS, ROWS, NBYTES, 4, never, None)  # by those who still hold the crew
    assert sorted(done) == sorted([*range(UNITS)] * 201)


@pytest.mark.parametrize(("granted", "spins"), [(4.0, True), (3.0, True), (2.99, False), (2.0, False), (0.5, False)])
def test_threads_look_for_work_only_where_each_is_granted_a_processor(granted, spins, monkeypatch):
    monkeypatch.setattr(crew_module, "processors", lambda: granted)
    crew = Crew(2)
    assert word(crew._memory, "spin").value == (SPIN_NANOSECONDS if spins else 0)


@pytest.mark.parametrize("spin_nanoseconds", [0, 1, SPIN_NANOSECONDS])
def test_who_sleeps_at_once_gives_way_to_nobody(spin_nanoseconds):
    # A helper that finds nothing looks again, and gives way to others in between; so does a caller that waits.
    yields, looked = [], threading.Event()
    count = ctypes.CFUNCTYPE(ctypes.c_int)(lambda: yields.append(looked.set()) or 0)
    memory = new_memory(spin_nanoseconds)
    word(memory, "sched_yield").value = ctypes.cast(count, ctypes.c_void_p).value
    try:
        assert program().hire(memory, thread_attributes(), 1) == 1
        begun, kernel, reached = threading.Event(), None, (ctypes.c_int64 * 3)()

        def wait_for_each_other(first, last):
            if threading.current_thread() is threading.main_thread():
                begun.wait(60)
            else:
                begun.set()
                looked.wait(0.05)
            return last

        kernel = kernel_of(wait_for_each_other)
        task = Task()
        for _ in range(3):
            begun.clear()
            program().run(memory, kernel.address, ctypes.addressof(task), 2, 2, reached, 1)
    finally:
        program().retire(memory)
        assert_helpers(0)
        program().leave(memory)
    assert bool(yields) == (spin_nanoseconds > 0)


def test_helpers_end_when_nobody_refers_to_their_crew():
    crew = Crew(3)
    assert helpers_alive() == 3
    del crew
    gc.collect()
    assert_helpers(0)


def test_a_crew_of_as_many_threads_as_can_be_started():
    create = ctypes.CFUNCTYPE(ctypes.c_int, *[ctypes.c_void_p] * 4)
    real, calls = create(("pthread_create", ctypes.CDLL(None))), []

    def create_one(*arguments):
        calls.append(arguments)
        return real(*arguments) if len(calls) == 1 else errno.EAGAIN

    memory, fails = new_memory(0), create(create_one)
    word(memory, "pthread_create").value = ctypes.cast(fails, ctypes.c_void_p).value
    assert program().hire(memory, thread_attributes(), 3) == 1
    assert len(calls) == 2
    assert word(memory, "present").value == 2  # the helper, and this test
    program().retire(memory)
    assert_helpers(0)
    program().leave(memory)


def test_the_last_to_leave_frees_the_memory():
    freed = []
    free = ctypes.CFUNCTYPE(None, ctypes.c_void_p)(freed.append)
    memory = new_memory(0)
    word(memory, "free").value = ctypes.cast(free, ctypes.c_void_p).value
    program().hire(memory, thread_attributes(), 2)
    program().leave(memory)
    assert freed == []
    program().retire(memory)
    assert_helpers(0)
    assert freed == [memory]
    ctypes.CFUNCTYPE(None, ctypes.c_void_p)(("free", ctypes.CDLL(None)))(memory)
