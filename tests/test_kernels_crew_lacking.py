"""Threads and semaphores that helpers need and that cannot be had."""

import gc
import sys

import pytest

import anynorm
from anynorm import _threads
from anynorm._kernels.cpu.threads import functions, memory
from tests.backends import needs_llvmlite
from tests.crews import assert_helpers, needs_crew
from tests.processes import PREPARE, script
from tests.test_kernels_crew import forced  # noqa: F401  # a fixture
from tests.test_kernels_layout import assert_bits, normalize, rows_of
from tests.test_kernels_sharing import shared  # noqa: F401  # a fixture

pytestmark = [needs_llvmlite, pytest.mark.usefixtures("shared")]


@needs_crew
def test_threads_that_cannot_be_started(monkeypatch):
    x = rows_of("float32", 33, 100)
    expected = normalize("layer_norm", x)
    anynorm.set_threads(3)
    with monkeypatch.context() as patched:
        patched.setattr(memory, "STACK_NBYTES", 1 << 60)
        for _ in range(3):
            assert_bits(normalize("layer_norm", x), expected)
        assert_helpers(0)
    anynorm.set_threads(3)
    assert_bits(normalize("layer_norm", x), expected)
    assert_helpers(2)


@needs_crew
def test_no_memory_for_a_crew(monkeypatch):
    x = rows_of("float32", 33, 100)
    anynorm.set_threads(3)

    class Full:
        def aligned_alloc(self, alignment, nbytes):
            return None

    with monkeypatch.context() as patched:
        patched.setattr(memory, "system", Full)
        with pytest.raises(MemoryError):
            normalize("layer_norm", x)
    normalize("layer_norm", x)
    assert_helpers(2)


@needs_crew
def test_an_interrupt_behind_the_start_of_helpers_lets_them_go(monkeypatch):
    x = rows_of("float32", 33, 100)
    anynorm.set_threads(3)

    def interrupted(others):
        if others is not None:
            raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(_threads, "_replace", interrupted)
        with pytest.raises(KeyboardInterrupt):
            normalize("layer_norm", x)
    gc.collect()
    assert_helpers(0)
    normalize("layer_norm", x)
    assert_helpers(2)


def no_library(name):
    raise TypeError("there is none on Windows")


class Library:
    """One that lacks what macOS does."""

    def __init__(self, name):
        self.aligned_alloc = self.sem_init = self.pthread_attr_setstacksize = lambda *_: -1

    def __getattr__(self, name):
        if name == "sem_trywait":
            raise AttributeError(name)
        return lambda *_: -1


class Failing(Library):
    """One whose semaphores need a name."""

    def __getattr__(self, name):
        return lambda *_: -1


@pytest.mark.parametrize("library", [no_library, Library, Failing])
def test_where_there_are_no_semaphores_pythons_threads_do_it(library, monkeypatch):
    x = rows_of("bfloat16", 33, 100)
    expected = normalize("layer_norm", x)
    anynorm.set_threads(3)
    functions.program.cache_clear()
    memory.system.cache_clear()
    try:
        with monkeypatch.context() as patched:
            patched.setattr(memory.ctypes, "CDLL", library)
            assert_bits(normalize("layer_norm", x), expected)
        assert _threads._helpers[0] is _threads._pool_of
    finally:
        functions.program.cache_clear()
        memory.system.cache_clear()


@needs_crew
def test_a_small_stack_of_pythons_threads_is_not_for_helpers():
    code = "threading.stack_size(32 << 10)\nfor _ in range(9): anynorm.layer_norm(x)\nprint('done')"
    assert script(PREPARE + code, ANYNORM_THREADS="3") == ["done"]


@needs_crew
@pytest.mark.skipif(sys.implementation.name != "cpython", reason="asks CPython's own tests for an interpreter")
def test_an_interpreter_within_another_ends_in_spite_of_helpers():
    code = """
import warnings
warnings.simplefilter("ignore")
try:
    from _testcapi import run_in_subinterp
except ImportError:
    print("done")  # there is no other way to one in which NumPy can be imported
else:
    inner = "import warnings; warnings.simplefilter('ignore')\\nimport numpy, anynorm\\n"
    inner += "anynorm.set_threads(3)\\nfor _ in range(9): anynorm.layer_norm(numpy.ones((2000, 1000), 'float32'))\\n"
    print("done" if run_in_subinterp(inner) == 0 else "failed")
"""
    assert script(code) == ["done"]
