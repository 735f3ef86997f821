"""How the command line ends when it is stopped: status 130, one line, nothing left behind."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

import anynorm
from anynorm._cli import terminal
from anynorm._files.job import ArrayJob
from tests.files import assert_one_line, assert_same_bits, contents, normalize, save_x, start

pytestmark = pytest.mark.usefixtures("folder")
posix = pytest.mark.skipif(os.name != "posix", reason="signals and limits as POSIX has them")


# Ctrl-C is given back its meaning, which a shell takes from jobs in its background, and SIGHUP, which nohup takes.
SLOW = """
import signal, time
from anynorm._files.job import ArrayJob
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)
ArrayJob.normalize = lambda *_: (print("ready", flush=True), time.sleep(60))
"""


@posix
@pytest.mark.parametrize(
    ("sent", "options"),
    [("SIGINT", []), ("SIGTERM", ["--force"]), pytest.param("SIGHUP", [], marks=pytest.mark.thorough)],
)
def test_stopped_on_the_way(folder, sent, options):
    save_x((1000, 6))
    if options:
        Path("y.npy").write_bytes(b"precious")
    before = contents(folder)
    process = start("x.npy", "y.npy", *options, first=SLOW)
    assert process.stdout.readline() == "ready\n"
    assert len(list(folder.glob(".anynorm-*.part"))) == 1
    process.send_signal(getattr(signal, sent))
    _, error = process.communicate(timeout=50)
    assert process.returncode == 130
    assert_one_line(error, "interrupted; nothing was written")
    assert contents(folder) == before


@pytest.mark.parametrize("late", [False, True])
def test_an_interrupt_at_the_rename_does_not_say_that_nothing_was_written(monkeypatch, capsys, folder, late):
    x = save_x()
    before = contents(folder)
    really = os.replace

    def replace(part, to):
        if late:
            really(part, to)
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", replace)
    assert normalize() == (0 if late else 130)
    if late:
        assert_same_bits(np.load("y.npy"), anynorm.layer_norm(x))
        assert capsys.readouterr().err.startswith("wrote y.npy: 9 x 6 float32, 216 bytes in ")
    else:
        assert_one_line(capsys.readouterr().err, "interrupted; nothing was written")
        assert contents(folder) == before


@posix
def test_sighup_stays_ignored_under_nohup():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with terminal.terminable():
            os.kill(os.getpid(), signal.SIGHUP)
    finally:
        signal.signal(signal.SIGHUP, before)


class Dying:
    def __del__(self):
        signal.raise_signal(signal.SIGINT)


def ignored():
    """Python ignores what is raised where nobody can catch it, and says so."""
    Dying()


def printed():
    """A library in C that cannot hand on an error prints it."""
    try:
        signal.raise_signal(signal.SIGINT)
    except KeyboardInterrupt as error:
        sys.excepthook(type(error), error, error.__traceback__)


def turned():
    """A library may make another error of it."""
    try:
        signal.raise_signal(signal.SIGINT)
    except KeyboardInterrupt:
        raise ValueError("the library was cancelled") from None


@posix
@pytest.mark.parametrize("interrupt", [ignored, printed, turned])
def test_an_interrupt_that_does_not_come_through_ends_it_still(monkeypatch, capsys, folder, interrupt):
    save_x((10, 6))
    before = contents(folder)
    really = ArrayJob.normalize

    def normalizing(*arguments):
        interrupt()
        return really(*arguments)

    monkeypatch.setattr(ArrayJob, "normalize", normalizing)
    monkeypatch.setattr(sys, "unraisablehook", sys.__unraisablehook__)  # in place of the one that pytest listens with
    handler = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell has it ignored in the background
    try:
        assert normalize() == 130
    finally:
        signal.signal(signal.SIGINT, handler)
    assert capsys.readouterr().err == "anynorm: interrupted; nothing was written\n"
    assert contents(folder) == before


@posix
def test_a_stream_that_has_no_more_to_say_is_not_waited_for(folder):
    save_x((2000, 600))
    whole = (folder / "x.npy").read_bytes()
    process = start("-", "y.npy", stdin=subprocess.PIPE)
    process.stdin.buffer.write(whole[: len(whole) // 2])
    process.stdin.flush()
    while not list(folder.glob(".anynorm-*.part")):
        time.sleep(0.01)
    process.terminate()
    assert process.wait(timeout=50) == 130
    assert process.stderr.read() == "anynorm: interrupted; nothing was written\n"
    assert [path.name for path in folder.iterdir()] == ["x.npy"]
    for stream in (process.stdin, process.stdout, process.stderr):
        stream.close()


@posix
def test_an_output_that_takes_no_more_is_not_waited_for(folder):
    save_x((2000, 600))
    process = start("x.npy", "-", text=False)
    assert process.stdout.read(1) == b"\x93"
    process.terminate()
    assert process.wait(timeout=50) == 130
    assert process.stderr.read() == b"anynorm: interrupted\n"
    for stream in (process.stdout, process.stderr):
        stream.close()


@posix
def test_an_interrupt_while_libraries_are_imported(folder):
    save_x()
    first = """
import signal, sys, importlib.abc
signal.signal(signal.SIGINT, signal.default_int_handler)
class Slow(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name == "anynorm._cli.options": signal.raise_signal(signal.SIGINT)
sys.meta_path.insert(0, Slow())
"""
    process = start("x.npy", "y.npy", first=first)
    _, error = process.communicate(timeout=50)
    assert (process.returncode, error) == (130, "anynorm: interrupted\n")
    assert [path.name for path in folder.iterdir()] == ["x.npy"]


@posix
def test_there_is_a_bar_and_it_is_gone_when_it_is_stopped():
    pty, termios = (pytest.importorskip(name, reason="no pseudo-terminals here") for name in ("pty", "termios"))
    pytest.importorskip("rich", reason="the bar is rich's")
    save_x()
    ours, theirs = pty.openpty()
    with open(ours, "rb", 0) as shown, open(theirs, "wb", 0) as terminal_of_it:
        termios.tcsetwinsize(terminal_of_it, (24, 80))
        process = start("x.npy", "y.npy", first=SLOW, stderr=terminal_of_it)
        assert process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=50)
        os.set_blocking(ours, False)
        said = shown.read(1 << 16)
    assert process.returncode == 130
    assert b"x.npy" in said
    assert b"/216 bytes" in said
    assert said.endswith(b"anynorm: interrupted; nothing was written\r\n")
    assert said.rindex(b"\x1b[?25h") > said.rindex(b"\x1b[?25l")  # the cursor is there again
