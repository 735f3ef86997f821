"""Threads, forks and processes of every kind."""

import os
import signal
import sys

import numpy as np
import pytest

import anynorm
from tests.backends import HAS_LLVMLITE, TORCH, as_dtype, needs_llvmlite, thorough_but
from tests.processes import PACKAGE, PREPARE, in_threads, script

NORMS = ("layer_norm", "rms_norm", "scale_norm")
linux = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
forking = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")


@pytest.mark.parametrize("threads", thorough_but(8, of=[8, 32]))
def test_many_threads_on_mixed_shapes(threads):
    rng = np.random.default_rng(threads)
    jobs = []
    for i in range(3 * threads):
        shape = [(1, 33), (7, 100), (40, 33), (600, 700), (3, 5000)][i % 5]
        dtype = ["float16", "bfloat16", "float32", "float64"][i % 4]
        x = as_dtype(rng.standard_normal(shape) * 10.0 ** rng.uniform(-3, 3), dtype)
        x, axis = (x, -1) if i % 3 else (np.ascontiguousarray(x.T), 0)
        norm = getattr(anynorm, NORMS[i % 7 % 3])
        read = np.asarray
        if i % 2:
            x, read = TORCH.make(x), TORCH.read
        jobs.append((norm, x, axis, read, read(norm(x, axis=axis)).tobytes()))
    wrong = []

    def work(seed):
        order = np.random.default_rng(seed)
        try:
            for _ in range(100):
                norm, x, axis, read, expected = jobs[order.integers(len(jobs))]
                if read(norm(x, axis=axis)).tobytes() != expected:
                    wrong.append((norm, x.shape, axis))
        except BaseException as error:
            wrong.append(error)

    in_threads(work, range(threads))
    assert wrong == []


def test_the_first_calls_of_many_threads_at_once():
    code = """
results = []
threads = [threading.Thread(target=lambda: (check(), results.append(1))) for _ in range(8)]
for thread in threads: thread.start()
for thread in threads: thread.join()
print(len(results))
"""
    assert script(PREPARE + code, ANYNORM_THREADS="2") == ["8"]


@forking
@pytest.mark.parametrize("threads", thorough_but("3", of=["1", "3"]))
def test_forks_after_use(threads):
    # Threads do not survive a fork, so each child needs some of its own.
    code = """
import warnings
warnings.simplefilter("ignore", DeprecationWarning)  # newer Pythons warn of forks beside threads, as this one is
check()
children = []
for _ in range(4):
    pid = os.fork()
    if pid == 0:
        try:
            check()
            inner = os.fork()
            if inner == 0:
                check()
                os._exit(0)
            assert os.waitstatus_to_exitcode(os.waitpid(inner, 0)[1]) == 0
            os._exit(0)
        finally:
            os._exit(1)
    children.append(pid)
check()
print(*(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in children))
check()
"""
    assert script(PREPARE + code, ANYNORM_THREADS=threads) == ["0"] * 4


@forking
@pytest.mark.parametrize("forks", thorough_but(50, of=[50, 200]))
def test_many_forks_while_another_thread_is_at_work(forks):
    # The other thread, its helpers, and what it holds are not there in the child.
    code = (
        f"forks = {forks}"
        + """
import warnings
warnings.simplefilter("ignore", DeprecationWarning)
small, expected = x[:400], anynorm.layer_norm(x[:400]).tobytes()
check()
over = threading.Event()
def call():
    while not over.is_set(): anynorm.layer_norm(x)
caller = threading.Thread(target=call)
caller.start()
failed = 0
for _ in range(forks):
    pid = os.fork()
    if pid == 0:
        try:
            os._exit(anynorm.layer_norm(small).tobytes() != expected)
        finally:
            os._exit(2)
    failed += os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) != 0
over.set()
caller.join()
check()
print(failed)
"""
    )
    assert script(PREPARE + code, ANYNORM_THREADS="3") == ["0"]


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="needs a timer that sends signals")
def test_interrupts_at_any_time():
    code = """
import signal
check()
expected = anynorm.layer_norm(x).tobytes()
def interrupt(*_): raise KeyboardInterrupt
signal.signal(signal.SIGALRM, interrupt)
interrupts = 0
while interrupts < 100:
    try:
        signal.setitimer(signal.ITIMER_REAL, 1e-4 + 4e-5 * interrupts)
        while True:
            y = anynorm.layer_norm(x)
    except KeyboardInterrupt:
        interrupts += 1
signal.signal(signal.SIGALRM, signal.SIG_IGN)
assert anynorm.layer_norm(x).tobytes() == expected
print(interrupts)
"""
    assert script(PREPARE + code, ANYNORM_THREADS="3") == ["100"]


@pytest.mark.parametrize("turn", thorough_but(0, of=range(3)))
@pytest.mark.parametrize("daemon", [True, False])
def test_the_process_ends_while_helpers_wait_or_work(daemon, turn):
    code = f"""
check()
over = threading.Event()
def call():
    while not over.is_set(): anynorm.layer_norm(x)
threading.Thread(target=call, daemon={daemon}).start()
for _ in range(10): anynorm.layer_norm(x)
{"" if daemon else "over.set()"}
print("ended")
"""
    assert script(PREPARE + code, ANYNORM_THREADS="3") == ["ended"]


@pytest.mark.parametrize("method", [pytest.param("fork", marks=forking), "spawn"])
def test_multiprocessing(method, tmp_path):
    (tmp_path / "work.py").write_text(PREPARE + "\ndef work(number):\n    check()\n    return number\n")
    code = f"""
import multiprocessing, warnings
warnings.simplefilter("ignore", DeprecationWarning)  # newer Pythons warn of forks beside threads, as this one is
import work
if __name__ == "__main__":
    work.check()
    with multiprocessing.get_context({method!r}).Pool(3) as pool:
        print(*pool.map(work.work, range(6), chunksize=1))
"""
    path = os.pathsep.join([str(PACKAGE.parent), str(tmp_path)])
    assert script(code, path=path, ANYNORM_THREADS="2") == list("012345")


@pytest.mark.parametrize("written", ["0", "-1", "two", "1.5", " ", "1_0", "²"])
def test_a_number_of_threads_that_is_none(written, monkeypatch):
    monkeypatch.setenv("ANYNORM_THREADS", written)
    small, large = np.ones((2, 100), np.float32), np.ones((1000, 300), np.float32)
    anynorm.layer_norm(small)  # takes one thread and asks for no number
    for call in (anynorm.get_threads, *([lambda: anynorm.layer_norm(large)] if HAS_LLVMLITE else [])):  # kernels ask
        with pytest.raises(ValueError, match="ANYNORM_THREADS must be a number of threads, got"):
            call()


def test_set_threads():
    default = anynorm.get_threads()
    assert default >= 1
    try:
        for wrong in (0, -1):
            with pytest.raises(ValueError, match="threads must be 1 or more"):
                anynorm.set_threads(wrong)
        for wrong in (True, 1.5, "2", [2]):
            with pytest.raises(TypeError, match="threads must be an int or None"):
                anynorm.set_threads(wrong)
        assert anynorm.get_threads() == default
        anynorm.set_threads(7)
        assert anynorm.get_threads() == 7
    finally:
        anynorm.set_threads(None)
    assert anynorm.get_threads() == default


@linux
@pytest.mark.parametrize("threads", thorough_but(2, of=[1, 2, 5]))
def test_never_more_threads_than_asked_for(threads):
    code = f"""
most = 0
def tasks(): return len(os.listdir("/proc/self/task"))
anynorm.layer_norm(x[:2])
before, python_before = tasks(), threading.active_count()
anynorm.set_threads({threads})
for _ in range(30):
    anynorm.layer_norm(x)
    most = max(most, tasks() - before)
    assert threading.active_count() - python_before <= {threads} - 1
print(most)
"""
    # The caller is one of them. The threads of a BLAS are not used at all.
    (most,) = script(PREPARE + code)
    assert int(most) <= threads - 1


AT_THE_END = ("atexit.register(check)", "weakref.finalize(anynorm, check)")


@pytest.mark.parametrize("wrapped", thorough_but(AT_THE_END[0], of=AT_THE_END))
def test_calls_while_the_interpreter_ends(wrapped):
    code = PREPARE.replace("def check():", "def check():\n    print('begun')")
    code += f"import atexit, weakref\n{wrapped}\natexit.register(check)\nsys.stdout.reconfigure(line_buffering=True)\n"
    assert script(code + "check()", ANYNORM_THREADS="3") == ["begun"] * 3
    assert script(code, ANYNORM_THREADS="3") == ["begun"] * 2


def test_calls_after_the_main_thread_has_ended():
    code = """
import time
def late():
    time.sleep(0.5)
    check()
    print("done")
threading.Thread(target=late).start()
"""
    assert script(PREPARE + code, ANYNORM_THREADS="3") == ["done"]


def test_without_llvmlite_the_definition_runs_and_explain_says_what_to_install():
    code = """
import sys, importlib.abc
class Block(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "llvmlite": raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Block())
"""
    code += PREPARE
    code += """
check()
assert anynorm.explain(x).kernel == "definition"
assert "pip install llvmlite" in anynorm.explain(x).refused["cpu"]
try:
    with anynorm.use_kernel("cpu"): anynorm.layer_norm(x)
except RuntimeError as error:
    assert "pip install" in str(error)
    print("refused")
"""
    assert script(code) == ["refused"]


@linux
@needs_llvmlite
@pytest.mark.parametrize("norm", thorough_but("layer_norm", of=NORMS))
@pytest.mark.parametrize("axis", [-1, 0])
def test_memory_beyond_the_result(axis, norm):
    # Each thread works in less than 100 KB on its stack; measured are 0 to 200 KB more. The rest of 2 MiB is room for
    # what Python and the allocator take meanwhile. A copy of x would be 200 MB, one of a piece of a thread's work 25.
    code = f"""
import numpy, anynorm
def peak(): return int(next(l for l in open("/proc/self/status") if l.startswith("VmHWM")).split()[1]) << 10
x = numpy.ones((50_000, 1000), numpy.float32)
out = numpy.zeros_like(x)
out[...] = 1  # all of it is there
anynorm.set_threads(2)
small = numpy.ones((2000, 1000), numpy.float32)
anynorm.{norm}(small, axis={axis}, out=numpy.empty_like(small))  # compiles, and starts the threads
before = peak()
anynorm.{norm}(x, axis={axis}, out=out)
print(peak() - before)
"""
    (grown,) = script(code)
    assert int(grown) < 2 << 20
