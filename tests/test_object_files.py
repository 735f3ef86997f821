"""Compiled kernels on disk: what is damaged, or another user may have written, counts as absent."""

import os
import sys
import threading
import time
import types
from pathlib import Path
from unittest import mock

import pytest

from anynorm._kernels import object_files
from anynorm._kernels.cuda import compile as compiling
from anynorm._kernels.cuda.task import NOTHING, Choice
from tests.processes import in_threads

needs_owners = pytest.mark.skipif(not hasattr(os, "getuid"), reason="Windows knows no owners of this kind")
CODE = b"machine code" * 100


@pytest.fixture
def place(tmp_path, monkeypatch):
    """The folder, which is not there yet."""
    monkeypatch.setenv("ANYNORM_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def file(place):
    """A file that was written."""
    assert object_files.write("rows", CODE) is None
    (found,) = place.iterdir()
    return found


def age(path, seconds):
    then = time.time() - seconds
    os.utime(path, (then, then))


def names_in(place):
    return {path.name.partition(".")[0] for path in place.iterdir()}


def test_what_is_written_is_read(file):
    assert object_files.read("rows") == CODE
    assert object_files.read("columns") is None
    assert object_files.write("rows", b"other code") is None
    assert object_files.read("rows") == b"other code"


def test_a_folder_that_is_named(tmp_path):
    assert object_files.write("rows", CODE, tmp_path / "named") is None
    assert object_files.read("rows", tmp_path / "named") == CODE
    assert object_files.read("rows", tmp_path) is None


@pytest.mark.parametrize("content", ["cut", "short", "empty", "longer", "changed", "unsigned", "renamed", "folder"])
def test_a_damaged_file_is_absent_and_replaced(file, place, content):
    whole = file.read_bytes()
    damaged = {
        "cut": whole[:-1],
        "short": whole[:10],
        "empty": b"",
        "longer": whole + b"9",
        "changed": whole[:-1] + b"9",
        "unsigned": bytes(32) + whole[32:],
    }
    if content == "folder":
        file.unlink()
        file.mkdir()
        assert object_files.read("rows") is None
        assert "irectory" in object_files.write("rows", CODE)  # and nothing is raised
        assert [path.name for path in place.iterdir()] == [file.name]
        return
    if content == "renamed":
        object_files.write("columns", b"code of another kernel")
        next(path for path in place.iterdir() if "columns" in path.name).replace(file)
    else:
        file.write_bytes(damaged[content])
    assert object_files.read("rows") is None
    assert object_files.write("rows", CODE) is None
    assert object_files.read("rows") == CODE


@needs_owners
def test_a_file_that_others_can_write_is_absent_and_replaced(file):
    for mode, found in ((0o620, None), (0o602, None), (0o644, CODE), (0o600, CODE), (0o755, CODE)):
        file.chmod(mode)
        assert object_files.read("rows") == found
    file.chmod(0o666)
    object_files.write("rows", CODE)
    assert object_files.read("rows") == CODE


@needs_owners
def test_a_folder_that_others_can_write_is_not_used(file, place):
    for mode in (0o720, 0o702, 0o777):
        place.chmod(mode)
        with mock.patch("pathlib.Path.open") as opened:  # of another's pipe it would never end
            assert object_files.read("rows") is None
        assert not opened.called
        assert object_files.write("columns", CODE) == f"other users can write to {place}; chmod go-w closes it"
    place.chmod(0o755)
    assert object_files.read("rows") == CODE
    assert names_in(place) == {"rows"}


@needs_owners
def test_a_new_folder_in_one_that_others_can_write(place):
    place.parent.chmod(0o777)
    assert object_files.write("rows", CODE) is None
    assert object_files.read("rows") == CODE


@needs_owners
def test_whose_a_file_is(monkeypatch):
    def distrusted(uid, mode):
        return object_files.distrusted(Path("x"), types.SimpleNamespace(st_uid=uid, st_mode=mode))

    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert [distrusted(1000, 0o100644), distrusted(0, 0o40755), distrusted(1000, 0o40700)] == [None] * 3
    assert [distrusted(1001, 0o100600), distrusted(65534, 0o40755)] == ["x belongs to another user"] * 2
    assert "can write to x" in distrusted(0, 0o100664)


@needs_owners
@pytest.mark.parametrize("umask", [0, 0o077])
def test_a_new_folder_is_closed_to_others_and_who_opens_it_lets_files_be_read(umask, place):
    before = os.umask(umask)
    try:
        assert object_files.write("rows", CODE) is None
    finally:
        os.umask(before)
    assert place.stat().st_mode & 0o777 == 0o700
    assert [path.stat().st_mode & 0o777 for path in place.iterdir()] == [0o644]


def test_nothing_is_kept_where_nothing_can_be_written(place):
    place.write_text("no folder")
    assert object_files.write("rows", CODE).startswith(f"{place}: ")
    assert object_files.read("rows") is None


def test_nothing_is_left_of_a_file_that_does_not_fit(file, place, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pathlib.Path.replace", full)
    assert object_files.write("rows", b"new code") == f"{place}: No space left on device"
    assert object_files.read("rows") == CODE
    assert list(place.iterdir()) == [file]
    monkeypatch.setattr("pathlib.Path.replace", mock.Mock(side_effect=KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        object_files.write("rows", b"new code")
    assert list(place.iterdir()) == [file]


def test_nothing_is_kept_where_there_is_no_home(place, monkeypatch):
    monkeypatch.delenv("ANYNORM_CACHE_DIR")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.delenv("LOCALAPPDATA", raising=False)
    monkeypatch.setattr("pathlib.Path.home", mock.Mock(side_effect=RuntimeError("Could not determine home directory.")))
    assert object_files.folder() is None
    assert object_files.write("rows", CODE) == "there is no home folder"
    assert object_files.read("rows") is None


def test_which_folder_it_is(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    monkeypatch.setenv("ANYNORM_CACHE_DIR", "~/named")
    monkeypatch.setenv("XDG_CACHE_HOME", "~/cached")
    monkeypatch.delenv("LOCALAPPDATA", raising=False)
    assert object_files.folder() == tmp_path / "named"
    monkeypatch.setenv("ANYNORM_CACHE_DIR", "")
    assert object_files.folder() == tmp_path / "cached" / "anynorm"
    monkeypatch.delenv("XDG_CACHE_HOME")
    for platform, parts in (("linux", [".cache"]), ("darwin", ["Library", "Caches"]), ("win32", ["AppData", "Local"])):
        monkeypatch.setattr(sys, "platform", platform)
        assert object_files.folder() == tmp_path.joinpath(*parts, "anynorm")
    monkeypatch.setenv("LOCALAPPDATA", str(tmp_path / "local"))
    assert object_files.folder() == tmp_path / "local" / "anynorm"


def test_what_was_not_used_for_longest_makes_room(place, monkeypatch):
    nbytes = 32 + len(CODE)
    monkeypatch.setattr(object_files, "_MOST_NBYTES", 3 * nbytes)
    place.mkdir(0o700)
    (place / "thesis.txt").write_bytes(bytes(4 * nbytes))  # of the user's own, in a folder that was named
    for number, name in enumerate(["first", "second", "third"]):
        object_files.write(name, CODE)
        age(place / f"{name}{object_files.SUFFIX}", 500_000 - number)
    assert names_in(place) == {"thesis", "first", "second", "third"}  # as much as may be
    assert object_files.read("first") == CODE  # which is noted
    object_files.write("fourth", CODE)
    assert names_in(place) == {"thesis", "first", "third", "fourth"}
    monkeypatch.setattr(object_files, "_MOST_NBYTES", 3 * nbytes - 1)
    object_files.write("fifth", CODE)
    assert names_in(place) == {"thesis", "fourth", "fifth"}


def test_use_is_noted_once_a_day(file):
    for seconds, is_noted in ((object_files._USED_SECONDS - 60, False), (object_files._USED_SECONDS + 60, True)):
        age(file, seconds)
        assert object_files.read("rows") == CODE
        assert (file.stat().st_mtime > time.time() - 60) == is_noted
    age(file, object_files._USED_SECONDS + 60)
    with mock.patch("os.utime", side_effect=PermissionError):  # of root's file, or where nothing can be written
        assert object_files.read("rows") == CODE


def test_a_file_that_was_written_meanwhile_stays(file, place, monkeypatch):
    # Another process writes it between the look at the folder and the removal.
    age(file, 10)
    monkeypatch.setattr(object_files, "_MOST_NBYTES", 1)
    real = Path.stat

    def stat(path, **options):
        if path == file:
            os.utime(path)
        return real(path, **options)

    monkeypatch.setattr("pathlib.Path.stat", stat)
    object_files.write("columns", CODE)
    assert names_in(place) == {"rows", "columns"}


def test_what_killed_processes_have_left_is_removed(file, place):
    old, new, others = (place / f"{name}-part" for name in (f"a{object_files.SUFFIX}", f"b{object_files.SUFFIX}", "c"))
    for path, seconds in ((old, 3660), (new, 3540), (others, 3660)):
        path.write_bytes(b"the beginning")
        age(path, seconds)
    object_files.write("columns", CODE)
    assert not old.exists()
    assert new.exists()  # its process may live
    assert others.exists()


def test_many_at_once(place, monkeypatch):
    # All write and read and remove the same few names.
    monkeypatch.setattr(object_files, "_MOST_NBYTES", 4 * (32 + len(CODE)))
    wrong = []

    def work(number):
        for step in range(20):
            name = f"kernel{(number + step) % 8}"
            reason = object_files.write(name, CODE)
            found = object_files.read(name)
            if reason is not None or found not in (CODE, None):
                wrong.append((reason, found))

    in_threads(work, range(8))
    assert wrong == []
    assert 1 <= len(list(place.iterdir())) <= 8


def test_cuda_kernels_are_compiled_once(place, monkeypatch):
    built = iter(range(100))  # what is compiled is a number that counts, without NVRTC
    monkeypatch.setattr(compiling, "build", lambda given: (str(next(built)).encode(), ""))
    monkeypatch.setattr(compiling, "_version", lambda: (13, 0))
    monkeypatch.setattr(compiling, "_architectures", lambda: (80, 90))

    def compiled():
        return int(compiling.compiled(Choice("float32", 2, NOTHING, NOTHING, False, True, False), 128, "sm_90"))

    assert [compiled(), compiled()] == [0, 0]
    (file,) = place.iterdir()
    file.write_bytes(b"damaged")
    assert [compiled(), compiled()] == [1, 1]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes here")
def test_a_named_pipe_is_no_file_and_is_not_waited_for(file):
    file.unlink()
    os.mkfifo(file)
    found = []
    reader = threading.Thread(target=lambda: found.append(object_files.read("rows")), daemon=True)
    reader.start()
    reader.join(20)
    assert found == [None]
    assert object_files.write("rows", CODE) is None
    assert object_files.read("rows") == CODE
