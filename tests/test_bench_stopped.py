"""`anynorm bench`, stopped: it ends, and so do its processes."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from anynorm._bench.cases import Case
from anynorm._bench.rivals import RIVALS
from anynorm._bench.worker import Worker
from tests.files import assert_one_line
from tests.test_bench import TINY


def children(pid):
    return [int(one) for one in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


@pytest.mark.skipif(not Path(f"/proc/self/task/{os.getpid()}/children").exists(), reason="Linux tells the children")
def test_an_interrupt_ends_it_and_its_processes():
    command = [sys.executable, "-m", "anynorm", "bench", *TINY[:2], "--shape", "20000x2000", *TINY[4:]]
    handler = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell has it ignored in the background
    process = subprocess.Popen(command, stdout=-1, stderr=-1, text=True, start_new_session=True)
    signal.signal(signal.SIGINT, handler)
    try:
        deadline = time.monotonic() + 50
        while len(started := children(process.pid)) < 4 and time.monotonic() < deadline:
            time.sleep(0.02)
        os.killpg(process.pid, signal.SIGINT)  # as from a terminal, to all of them
        error = process.communicate(timeout=50)[1]
    finally:
        process.kill()
    assert len(started) >= 4
    assert process.returncode == 130
    assert_one_line(error[error.rindex("anynorm: ") :], "interrupted")
    assert "Traceback" not in error
    assert not [pid for pid in started if Path(f"/proc/{pid}/exe").exists()]


@pytest.mark.skipif(not hasattr(signal, "pthread_sigmask"), reason="signals as POSIX has them")
def test_an_interrupt_waits_until_a_process_has_started(monkeypatch):
    from multiprocessing.popen_spawn_posix import Popen

    launch, done = Popen._launch, []

    def launched(self, process):
        other = threading.Thread(target=os.kill, args=(os.getpid(), signal.SIGINT))
        other.start()  # in which the signal is not blocked
        other.join()
        launch(self, process)
        done.append(True)

    monkeypatch.setattr(Popen, "_launch", launched)
    handler = signal.signal(signal.SIGINT, signal.default_int_handler)
    worker = Worker("NumPy", RIVALS["NumPy"], 1, {})
    try:
        with pytest.raises(KeyboardInterrupt):
            worker.start()
    finally:
        signal.signal(signal.SIGINT, handler)
        worker.kill()
        worker.join()
    assert done


@pytest.mark.skipif(not hasattr(signal, "pthread_sigmask"), reason="signals as POSIX has them")
def test_a_process_that_starts_is_deaf_to_ctrl_c():
    worker = Worker("NumPy", RIVALS["NumPy"], 1, {})
    worker.start()
    try:
        os.kill(worker._process.pid, signal.SIGINT)
        assert worker.prepare(Case("scale_norm", "float32", (3, 8)))["error"] < 1e-6
    finally:
        worker.kill()
        worker.join()
