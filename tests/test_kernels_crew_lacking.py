"""Threads and semaphores that helpers need and that cannot be had."""

import threading

import pytest

import anynorm
from anynorm import _threads
from tests.backends import needs_llvmlite
from tests.test_kernels_crew import assert_all_end, forced, helpers_alive  # noqa: F401  # a fixture
from tests.test_kernels_layout import assert_bits, normalize, rows_of
from tests.test_kernels_sharing import shared  # noqa: F401  # a fixture

pytestmark = [needs_llvmlite, pytest.mark.usefixtures("shared")]


@pytest.mark.parametrize("startable", [0, 1])
def test_threads_that_cannot_be_started(startable, monkeypatch):
    start, started = threading.Thread.start, []

    def start_some(thread):
        started.append(thread)
        if len(started) > startable:
            raise RuntimeError("can't start new thread")
        start(thread)

    x = rows_of("float32", 33, 100)
    expected = normalize("layer_norm", x)
    anynorm.set_threads(3)
    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", start_some)
        for _ in range(3):
            assert_bits(normalize("layer_norm", x), expected)
    assert len(started) == startable + 1
    anynorm.set_threads(None)


def test_an_interrupt_while_helpers_are_started_lets_those_go_that_were(monkeypatch):
    start, started = threading.Thread.start, []

    def start_one(thread):
        started.append(thread)
        if len(started) == 2:
            raise KeyboardInterrupt
        start(thread)

    x = rows_of("float32", 33, 100)
    anynorm.set_threads(3)
    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", start_one)
        with pytest.raises(KeyboardInterrupt):
            normalize("layer_norm", x)
    assert_all_end(started[:1])
    normalize("layer_norm", x)
    assert len(helpers_alive()) == 2


def test_where_there_are_no_semaphores_pythons_threads_do_it(monkeypatch):
    from anynorm._kernels.cpu.threads import program as crew_program

    x = rows_of("bfloat16", 33, 100)
    expected = normalize("layer_norm", x)
    monkeypatch.setattr(crew_program, "program", lambda: None)
    anynorm.set_threads(3)
    assert_bits(normalize("layer_norm", x), expected)
    assert _threads._helpers[0] is _threads._pool_of


def test_a_library_without_semaphores(monkeypatch):
    from anynorm._kernels.cpu.threads import program as crew_program

    def no_library(name):
        raise TypeError("there is none on Windows")

    crew_program.program.cache_clear()
    try:
        with monkeypatch.context() as patched:
            patched.setattr(crew_program.ctypes, "CDLL", no_library)
            assert crew_program.program() is None
    finally:
        crew_program.program.cache_clear()
