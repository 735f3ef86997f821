"""A fork while another thread imports or compiles: the child has no such thread, and can do all the same."""

import contextlib
import os

import pytest

from anynorm import _forks
from tests.backends import needs_llvmlite
from tests.processes import script

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")

# A child that calls a norm whose kernel nobody has asked for yet; one that hangs is ended, with another status.
BEGIN = """
import faulthandler, os, sys, threading, time, warnings, numpy, anynorm
faulthandler.dump_traceback_later(60, exit=True)
warnings.simplefilter("ignore", DeprecationWarning)  # newer Pythons warn of forks beside threads, as this one is
begun = threading.Event()
def fork_and_ask():
    child = os.fork()
    if child == 0:
        import signal
        signal.alarm(20)
        y = anynorm.rms_norm(numpy.full((2, 33), 3, numpy.float16))
        os._exit(0 if (y == 1).all() else 1)
    return os.waitpid(child, 0)[1]
def call(x=numpy.arange(66, dtype=numpy.float32).reshape(2, 33)):
    anynorm.layer_norm(x)
"""
FORK = """
thread = threading.Thread(target=call)
thread.start()
begun.wait(20)
print(fork_and_ask())
thread.join()
print(fork_and_ask())
"""


@needs_llvmlite
def test_while_another_thread_compiles():
    code = """
from anynorm._kernels.cpu.compiler import entries
compiled = entries._compiled
def slowly(*arguments):
    if not begun.is_set():
        begun.set()
        time.sleep(0.5)
    return compiled(*arguments)
entries._compiled = slowly
"""
    assert script(BEGIN + code + FORK) == ["0", "0"]


@needs_llvmlite
def test_while_another_library_compiles():
    # It is in LLVM, and has LLVM's lock, for as long as what is called when that is taken.
    code = """
from llvmlite import binding
anynorm.layer_norm(numpy.ones((2, 33), numpy.float32))
def linger():
    if threading.current_thread() is thread and not begun.is_set():
        begun.set()
        time.sleep(0.5)
binding.ffi.register_lock_callback(linger, lambda: None)
call = binding.get_default_triple
"""
    assert script(BEGIN + code + FORK) == ["0", "0"]


@needs_llvmlite
@pytest.mark.parametrize("module", ["llvmlite.binding", "anynorm._kernels.cpu.launch.norm"])
def test_while_another_thread_imports(module):
    code = f"""
class Slow:
    def find_spec(self, name, *_):
        if name == {module!r} and not begun.is_set():
            begun.set()
            time.sleep(0.5)
sys.meta_path.insert(0, Slow())
"""
    assert script(BEGIN + code + FORK) == ["0", "0"]


@needs_llvmlite
def test_by_the_thread_that_compiles():
    code = """
from anynorm._kernels.cpu.compiler import entries
compiled = entries._compiled
def fork_within(*arguments):
    if not begun.is_set():
        begun.set()
        print(fork_and_ask())
    return compiled(*arguments)
entries._compiled = fork_within
call()
print(fork_and_ask())
"""
    assert script(BEGIN + code) == ["0", "0"]


@needs_llvmlite
def test_many_forks_while_another_thread_compiles(tmp_path):
    # Each child compiles, too, or reads what another one has written.
    code = """
from anynorm._kernels.cpu.compiler import machine_code
anynorm.layer_norm(numpy.ones((2, 33), numpy.float32))
def call():
    begun.set()
    numbers = iter(range(1_000_000))
    while not done.is_set():
        find(f"other{next(numbers)}")
def find(name):
    with unforked:
        address = machine_code.load(name, lambda: "define i64 @%s() { ret i64 3 }" % name)
    return ctypes.CFUNCTYPE(ctypes.c_int64)(address)()
thread = threading.Thread(target=call)
thread.start()
begun.wait(20)
children = []
for number in range(200):
    child = os.fork()
    if child == 0:
        signal.alarm(60)
        os._exit(find(f"find{number % 20}") - 3)
    children.append(child)
    if len(children) == 10:
        print(*(os.waitpid(child, 0)[1] for child in children))
        children.clear()
done.set()
thread.join()
"""
    begin = BEGIN.replace("import faulthandler", "import ctypes, signal, faulthandler")
    begin += "from anynorm._forks import unforked\ndone = threading.Event()\n"
    assert script(begin + code, ANYNORM_CACHE_DIR=str(tmp_path)) == ["0"] * 200
    assert len(list(tmp_path.glob("find*"))) == 20


class Recorded:
    """A lock of another kind, which says what becomes of it."""

    def __init__(self, seen, name, fails=False):
        self.seen, self.name, self.fails = seen, name, fails

    def __enter__(self):
        if self.fails:
            raise KeyboardInterrupt
        self.seen.append(self.name)

    def __exit__(self, *_):
        self.seen.append(-self.name)


@pytest.mark.parametrize("fails", [False, True])
def test_locks_are_let_go_of_in_turn_and_no_others(fails, monkeypatch):
    seen = []
    monkeypatch.setattr(_forks, "_locks", [Recorded(seen, 1), Recorded(seen, 2), Recorded(seen, 3, fails)])
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt) if fails else contextlib.nullcontext():
            _forks._before()
        _forks._after()
    assert seen == ([1, 2, -2, -1] if fails else [1, 2, 3, -3, -2, -1]) * 2
