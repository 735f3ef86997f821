"""`anynorm warm` compiles beforehand, for others to read; `anynorm info` says what is there."""

import os
import signal
import subprocess
import sys
import tempfile
import time
from concurrent.futures import Future
from pathlib import Path

import pytest

from anynorm import cli
from anynorm._cli import info, warm
from anynorm._kernels import cpu, object_files
from anynorm._kernels.cpu.beforehand import _module, compilables
from anynorm._kernels.cpu.compiler.entries import variants
from anynorm._kernels.cpu.language.dtypes import CODES
from tests.backends import needs_llvmlite, thorough_but
from tests.files import assert_one_line
from tests.processes import script

pytestmark = needs_llvmlite
posix = pytest.mark.skipif(os.name != "posix", reason="users, file modes and signals as POSIX has them")
ALL = list(compilables(CODES))
# Those that compile fastest.
FEW = [ALL[0], next(one for one in ALL if one[0] == "moments")]


@pytest.fixture
def few(monkeypatch):
    """As if there were no others."""
    for module in (warm, info):
        monkeypatch.setattr(module, "compilables", lambda dtypes: iter(FEW))


def said(capsys, *arguments):
    assert cli.main(["warm", *map(str, arguments)]) == 0
    out, error = capsys.readouterr()
    assert out == ""
    return error


def refused(capsys, *arguments):
    assert cli.main(["warm", *map(str, arguments)]) == 1
    out, error = capsys.readouterr()
    assert out == ""
    return error


def test_all_kernels_are_compiled_each_once():
    assert len(set(ALL)) == len(ALL)
    assert {name for name, _ in ALL} >= {"rows", "columns", "float64", "moments", "given", "derivative"}
    for dtype, code in CODES.items():
        assert {one for one in ALL if one[1] is not None and one[1].code == code} == set(variants(dtype))
    assert len(list(compilables(["float64", "float64"]))) == len(list(compilables(["float64"])))


# Calls of every kind, each of which says what it loads.
CALLS = """
import numpy, torch, anynorm
from anynorm._kernels.cpu.compiler import machine_code
load = machine_code.load
def loaded(name, write):
    print(name)
    return load(name, write)
machine_code.load = loaded
anynorm.set_threads(2)
x = numpy.ones((600, 300), "float32")
anynorm.rms_norm(x)
for values in (x[:2].copy(), torch.ones(2, 300)):
    for _ in range(3):
        anynorm.rms_norm(values)
anynorm.rms_norm(numpy.ones((3, 4, 70), "float32"), axis=1)
anynorm.scale_norm(x.astype("float64"))
anynorm.layer_norm(x, moments=anynorm.moments(x))
y, pull = anynorm.rms_norm_vjp(x)
pull(y)
"""


def test_all_that_is_loaded_is_compiled_beforehand():
    pytest.importorskip("torch", reason="tensors need torch")
    symbols = {_module(one)[0] for one in ALL}
    loaded = set(script(CALLS))
    assert len(loaded) >= 8
    assert loaded <= symbols
    # What all kernels share is loaded by such calls, too; for tensors from torch 2.10 on.
    assert {name for name, variant in ALL if variant is None} - {"fast_path_tensor"} <= loaded


def test_a_folder_for_others(few, tmp_path, capsys):
    place = tmp_path / "new" / "kernels"
    before = os.umask(0o077)
    try:
        error = said(capsys, "--to", place)
    finally:
        os.umask(before)
    assert error.startswith("compiled 2 kernels for this processor in ")
    assert f" kB in {place}; set ANYNORM_CACHE_DIR={place} to use them\n" in error
    if os.name == "posix":
        assert [one.stat().st_mode & 0o777 for one in (place.parent, place)] == [0o755] * 2
        assert [one.stat().st_mode & 0o777 for one in place.iterdir()] == [0o644] * 2
    written = {one: one.stat().st_mtime_ns for one in place.iterdir()}
    error = said(capsys, "--to", place)
    assert error.startswith("nothing to compile: 2 kernels for this processor are there, ")
    assert {one: one.stat().st_mtime_ns for one in place.iterdir()} == written
    next(iter(written)).write_bytes(b"damaged")
    assert said(capsys, "--to", place, "--threads", "1").startswith("compiled 1 kernel for this processor in ")
    assert said(capsys, "--to", place, "--quiet") == ""


def test_the_cache_folder(few, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("ANYNORM_CACHE_DIR", "")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert f" in {tmp_path / 'anynorm'}; no setting is needed\n" in said(capsys)
    assert len(list((tmp_path / "anynorm").iterdir())) == 2
    monkeypatch.setenv("ANYNORM_CACHE_DIR", str(tmp_path / "anynorm"))
    error = said(capsys, "--to", tmp_path / "anynorm")
    assert "; ANYNORM_CACHE_DIR names it already\n" in error


@posix
def test_a_folder_that_others_cannot_come_to(few, tmp_path, capsys):
    for one, mode in ((tmp_path, 0o700), (tmp_path / "closed", 0o750), (tmp_path / "closed" / "in", 0o711)):
        one.mkdir(exist_ok=True)
        one.chmod(mode)
    error = said(capsys, "--to", tmp_path / "closed" / "in")
    line = next(line for line in error.splitlines() if "other users" in line)
    assert line.startswith(
        f"other users cannot read it: chmod a+rx {tmp_path / 'closed' / 'in'} {tmp_path / 'closed'} "
    )
    assert not warm._closed_to_others(Path("/"))


# What it imports, others may not be allowed to read.
AS_NOBODY = """
import os, numpy, anynorm
from anynorm._kernels import object_files
from anynorm._kernels.cpu.beforehand import kept_nbytes
from anynorm._kernels.cpu.compiler import machine_code
from anynorm._kernels.cpu.launch import given
kept_nbytes(("crew", None), object_files.folder())
os.setuid(65534)
def compiled(text):
    raise AssertionError("compiled again")
machine_code.compile_module = compiled
print(os.access(os.environ["ANYNORM_CACHE_DIR"], os.W_OK), anynorm.moments(numpy.asarray([1.0, 5.0], "f")).mean[0])
"""


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root may become another user")
def test_built_by_root_and_used_by_nobody(capsys, monkeypatch):
    found = [one for one in ALL if one[0] == "moments" and one[1].code == CODES["float32"] and not one[1].has_layout]
    monkeypatch.setattr(warm, "compilables", lambda dtypes: iter(found))
    # Not below pytest's own folder, which is closed to others.
    with tempfile.TemporaryDirectory() as name:
        os.chmod(name, 0o755)
        place = Path(name) / "kernels"
        assert "cannot read" not in said(capsys, "--to", place)
        place.chmod(0o555)
        environment = {"ANYNORM_CACHE_DIR": str(place), "HOME": "/nonexistent", "ANYNORM_KERNEL": "cpu"}
        assert script(AS_NOBODY, **environment) == ["False", "3.0"]


def test_what_cannot_be_written(few, tmp_path, capsys, monkeypatch):
    file = tmp_path / "file"
    file.write_text("precious")
    for place in (file, file / "in"):
        assert_one_line(refused(capsys, "--to", place), f"compiled kernels cannot be kept: {file} is not a folder")
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    message = f"compiled kernels cannot be kept: {tmp_path} cannot be written to"
    assert_one_line(refused(capsys, "--to", tmp_path / "new"), message)
    monkeypatch.undo()
    monkeypatch.setattr(warm, "_compile", lambda wanted, place: iter([f"{place}: No space left on device"]))
    assert_one_line(refused(capsys, "--to", tmp_path / "new"), "No space left on device")
    assert file.read_text() == "precious"


def test_a_folder_that_can_only_be_read(few, tmp_path, capsys, monkeypatch):
    said(capsys, "--to", tmp_path)
    monkeypatch.setattr(object_files, "unwritable", lambda place: f"{place} cannot be written to")
    assert said(capsys, "--to", tmp_path).startswith("nothing to compile: 2 kernels for this processor are there, ")
    next(tmp_path.iterdir()).unlink()
    message = f"compiled kernels cannot be kept: {tmp_path} cannot be written to"
    assert_one_line(refused(capsys, "--to", tmp_path), message)


@posix
def test_a_folder_that_others_can_write(few, tmp_path, capsys):
    tmp_path.chmod(0o775)
    assert_one_line(refused(capsys, "--to", tmp_path), f"other users can write to {tmp_path}; chmod go-w closes it")
    assert list(tmp_path.iterdir()) == []


def test_where_nothing_can_be_compiled(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(object_files, "folder", lambda: None)
    assert_one_line(refused(capsys), "there is no home folder to keep compiled kernels in; name a folder with --to")
    monkeypatch.setattr(warm, "INTERPRETED", True)
    assert_one_line(refused(capsys), "nothing is compiled while ANYNORM_INTERPRET is set; unset it")
    monkeypatch.setattr(warm, "INTERPRETED", False)
    monkeypatch.setattr(cpu, "_MISSING", "llvmlite is not installed; pip install llvmlite")
    message = "the CPU kernels cannot be compiled: llvmlite is not installed; pip install llvmlite"
    assert_one_line(refused(capsys, "--to", tmp_path / "new"), message)
    assert list(tmp_path.iterdir()) == []


def test_a_dtype_that_there_is_not(capsys):
    with pytest.raises(SystemExit, match="2"):
        cli.main(["warm", "--dtype", "float23"])
    assert "did you mean float32?" in capsys.readouterr().err


@pytest.mark.parametrize(("threads", "kernels", "processes"), [(31, 40, 31), (33, 40, 32), (8, 7, 7), (8, 9, 8)])
def test_how_many_processes(threads, kernels, processes, monkeypatch, tmp_path):
    begun = []

    class Pool:
        def __init__(self, count, *_):
            begun.append(count)

        def submit(self, *_):
            future = Future()
            future.set_result(None)
            return future

        def shutdown(self, **_):
            pass

    monkeypatch.setattr(warm, "ProcessPoolExecutor", Pool)
    monkeypatch.setattr(warm, "compilables", lambda dtypes: ALL[:kernels])
    assert cli.main(["warm", "--to", str(tmp_path), "--threads", str(threads)]) == 0
    assert begun == [processes]


@posix
@pytest.mark.parametrize("sent", thorough_but("SIGINT", "SIGKILL", of=["SIGINT", "SIGTERM", "SIGKILL"]))
def test_stopped_on_the_way(sent, tmp_path):
    command = [sys.executable, "-m", "anynorm", "warm", "--to", str(tmp_path / "kernels"), "--threads", "2"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True)
    until = time.monotonic() + 100
    while not list(tmp_path.glob("kernels/*.anynorm")) and time.monotonic() < until:
        time.sleep(0.02)
    # As a terminal does: Ctrl-C comes to all processes, and the others to the one that was named.
    (os.killpg if sent == "SIGINT" else os.kill)(process.pid, getattr(signal, sent))
    _, error = process.communicate(timeout=100)  # which ends when none of its processes is left
    if sent == "SIGKILL":
        assert process.returncode == -signal.SIGKILL
    else:
        assert process.returncode == 130
        assert error == "anynorm: interrupted\n"
        assert not list(tmp_path.glob("kernels/*-part"))


def lines_of_info(capsys):
    assert cli.main(["info"]) == 0
    lines = [line.strip() for line in capsys.readouterr().out.splitlines()]
    begin = lines.index("compiled kernels") + 1
    return lines[begin : lines.index("", begin)]


def test_info_says_what_is_compiled(few, tmp_path, monkeypatch, capsys):
    place = tmp_path / "kernels"
    monkeypatch.setenv("ANYNORM_CACHE_DIR", str(place))
    named = f"{place}, as ANYNORM_CACHE_DIR says"
    none = "0 of 2 for this processor are there; anynorm warm compiles them"
    assert lines_of_info(capsys) == [named, "can be written to", none]
    said(capsys)
    assert lines_of_info(capsys) == [named, "can be written to", "2 of 2 for this processor are there"]
    next(place.iterdir()).write_bytes(b"damaged")
    assert lines_of_info(capsys)[2].startswith("1 of 2 ")
    monkeypatch.setattr(object_files, "unwritable", lambda place: "nothing can be written")
    assert lines_of_info(capsys)[1:] == [
        "only read: nothing can be written",
        "1 of 2 for this processor are there; anynorm warm --to DIR compiles them into another folder",
    ]


def test_info_says_where_code_is_looked_for(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("ANYNORM_CACHE_DIR", "")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(info, "INTERPRETED", True)
    folder = f"{tmp_path / 'anynorm'}, the cache folder; ANYNORM_CACHE_DIR sets another"
    interpreted = "none is used for the CPU while ANYNORM_INTERPRET is set"
    assert lines_of_info(capsys) == [folder, "can be written to", interpreted]
    monkeypatch.setattr(object_files, "unreadable", lambda place: "it belongs to another user")
    assert lines_of_info(capsys) == [folder, "not used: it belongs to another user", interpreted]
    monkeypatch.setattr(object_files, "folder", lambda: None)
    assert lines_of_info(capsys) == ["there is no home folder to keep them in; set ANYNORM_CACHE_DIR to one"]


@pytest.mark.parametrize("package", ["dask", "jax"])
def test_info_names_no_kernel_active_whose_library_is_missing(package, monkeypatch, capsys):
    kernels = {"dask": ["blocks", "pieces"], "jax": ["xla"]}[package]
    for is_there in (True, False):
        monkeypatch.setattr(info, "installed", lambda name, there=is_there: there or name != package)
        assert cli.main(["info"]) == 0
        lines = {line.split()[0]: line for line in capsys.readouterr().out.splitlines() if line.startswith("  ")}
        for kernel in kernels:
            assert lines[kernel].endswith("; active" if is_there else f"; {package} is not installed")
        assert lines["definition"].endswith("; active")
