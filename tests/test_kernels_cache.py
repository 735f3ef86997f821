"""Compiled kernels are kept on disk where that is possible, and do without where it is not."""

import ctypes
import logging
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from anynorm._kernels.cpu.compiler import waiting
from tests.backends import needs_compiled, thorough_but
from tests.processes import PACKAGE, script

pytestmark = needs_compiled
# The kernel for moments is the one that compiles fastest. What it is compiled from is imported where it is not on disk.
FIND_MEAN = """
import sys, numpy, anynorm
print(anynorm.moments(numpy.asarray([1.0, 5.0])).mean[0], "anynorm._kernels.cpu.kernels.moments" in sys.modules)
"""
NORMALIZE = "import numpy, anynorm\nprint(anynorm.scale_norm(numpy.asarray([3.0, 4.0], numpy.float32), 5.0)[0])\n"
COMPILED, READ = ["3.0", "True"], ["3.0", "False"]


@pytest.mark.parametrize("place", thorough_but("named", "nowhere", of=["named", "home", "nowhere"]))
def test_a_folder_that_can_or_cannot_be_written(place, tmp_path):
    folder = tmp_path / "folder"
    if place == "nowhere":  # a file where a folder would go stops even a user who may write anywhere
        folder.write_text("not a folder")
    environment = {"ANYNORM_CACHE_DIR": "" if place == "home" else str(folder), "XDG_CACHE_HOME": str(folder)}
    assert script(FIND_MEAN, **environment) == COMPILED
    assert script(FIND_MEAN, **environment) == (COMPILED if place == "nowhere" else READ)
    assert bool(list(tmp_path.rglob("moments*"))) == (place != "nowhere")


@pytest.mark.parametrize("length", [0, 100])
def test_a_file_that_was_cut_short_is_written_anew(length, tmp_path):
    environment = {"ANYNORM_CACHE_DIR": str(tmp_path)}
    assert script(FIND_MEAN, **environment) == COMPILED
    (file,) = tmp_path.glob("moments*")
    whole = file.read_bytes()
    file.write_bytes(whole[:length])
    assert script(FIND_MEAN, **environment) == COMPILED
    assert file.read_bytes() == whole
    assert script(FIND_MEAN, **environment) == READ


def test_kernels_that_have_changed_are_compiled_anew(tmp_path):
    shutil.copytree(PACKAGE, tmp_path / "anynorm", ignore=shutil.ignore_patterns("__pycache__"))
    environment = {"ANYNORM_CACHE_DIR": str(tmp_path / "kept")}
    assert script(NORMALIZE, path=tmp_path, **environment) == ["3.0"]
    factors = tmp_path / "anynorm" / "_kernels" / "cpu" / "kernels" / "factors.py"
    changed = factors.read_text().replace("return task.scale if", "return task.scale + task.scale if")
    assert changed != factors.read_text()
    factors.write_text(changed)
    assert script(NORMALIZE, path=tmp_path, **environment) == ["6.0"]


def test_kernels_of_a_package_in_a_zip_file(tmp_path):
    with zipfile.ZipFile(tmp_path / "packed.zip", "w") as packed:
        for path in PACKAGE.rglob("*"):
            if path.suffix in (".py", ".cu", ".cuh"):
                packed.write(path, Path("anynorm") / path.relative_to(PACKAGE))
    environment = {"ANYNORM_CACHE_DIR": str(tmp_path / "kept")}
    code = FIND_MEAN + "print('packed.zip' in anynorm.__file__)"
    assert script(code, path=tmp_path / "packed.zip", **environment) == [*COMPILED, "True"]
    assert script(code, path=tmp_path / "packed.zip", **environment) == [*READ, "True"]


def test_cold_processes_at_once(tmp_path):
    environment = os.environ | {"ANYNORM_CACHE_DIR": str(tmp_path), "PYTHONPATH": str(PACKAGE.parent)}
    command = [sys.executable, "-P", "-c", FIND_MEAN]
    started = [subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    assert {process.communicate(timeout=300)[0].split()[0] for process in started} == {"3.0"}
    assert [path.suffix for path in tmp_path.iterdir()] == [".anynorm"]
    assert script(FIND_MEAN, ANYNORM_CACHE_DIR=str(tmp_path)) == READ


@pytest.fixture
def compiled(tmp_path, monkeypatch, caplog):
    """Compile a function for so many seconds, by a clock that stands still otherwise; return what was said so far."""
    from anynorm._kernels.cpu.compiler import machine_code

    clock, numbers = [0.0], iter(range(100))
    monkeypatch.setenv("ANYNORM_CACHE_DIR", str(tmp_path / "kept"))
    monkeypatch.setattr(waiting, "_compiled_seconds", [])
    monkeypatch.setattr(waiting, "_is_said", False)
    monkeypatch.setattr(machine_code.time, "perf_counter", lambda: clock[0])
    caplog.set_level(logging.INFO, logger="anynorm")

    def compile_for(seconds, name=None):
        number = next(numbers)
        name = name or f"find{number}"

        def write():
            clock[0] += seconds
            return f"define i64 @{name}() {{ ret i64 {number} }}"

        found = ctypes.CFUNCTYPE(ctypes.c_int64)(machine_code.load(name, write))()
        return found, [(record.name, record.levelname, record.getMessage()) for record in caplog.records]

    return compile_for


def test_a_wait_of_a_second_is_not_spoken_of(compiled, tmp_path):
    assert compiled(1.0) == (0, [])


def test_a_longer_wait_is_spoken_of_once(compiled, tmp_path):
    assert compiled(0.75) == (0, [])
    number, said = compiled(0.5)
    where = f"(kept in {tmp_path / 'kept'})"
    message = f"compiling 2 CPU kernels took 1.2 s {where}; `anynorm warm` does it beforehand"
    assert (number, said) == (1, [("anynorm", "INFO", message)])
    assert compiled(5.0) == (2, said)


def test_what_is_read_is_not_spoken_of(compiled, monkeypatch):
    assert compiled(0.9, "find") == (0, [])
    assert compiled(0.9, "find") == (0, [])


@pytest.mark.skipif(not hasattr(os, "getuid"), reason="Windows knows no modes of this kind")
def test_it_is_said_why_nothing_is_kept(compiled, tmp_path):
    place = tmp_path / "kept"
    place.mkdir()
    place.chmod(0o777)
    assert compiled(0.75) == (0, [])
    ((_, _, message),) = compiled(0.5)[1]
    reason = f"other users can write to {place}; chmod go-w closes it"
    advice = "`anynorm warm --to DIR` does it for ANYNORM_CACHE_DIR=DIR"
    assert message == f"compiling 2 CPU kernels took 1.2 s (not kept on disk: {reason}); {advice}"
