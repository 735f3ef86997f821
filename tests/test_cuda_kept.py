"""Compiled kernels on disk: what is damaged, or another user may have written, is compiled anew."""

import os
import types
from unittest import mock

import pytest

from anynorm._kernels.cuda import compile as compiling
from anynorm._kernels.cuda import kept
from anynorm._kernels.cuda.task import NOTHING, Choice

CHOICE = Choice("float32", 2, NOTHING, NOTHING, False, True, False)
needs_owners = pytest.mark.skipif(not hasattr(os, "getuid"), reason="Windows knows no owners of this kind")


@pytest.fixture
def place(tmp_path, monkeypatch):
    """The folder; what is compiled is a number that counts, without NVRTC."""
    built = iter(range(100))
    monkeypatch.setenv("ANYNORM_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr(compiling, "build", lambda given: (str(next(built)).encode(), ""))
    monkeypatch.setattr(compiling, "_version", lambda: (13, 0))
    monkeypatch.setattr(compiling, "_architectures", lambda: (80, 90))
    return tmp_path / "cache"


def compiled():
    return int(compiling.compiled(CHOICE, 128, "sm_90"))


def test_what_is_kept_is_not_compiled_again(place):
    assert [compiled(), compiled()] == [0, 0]
    assert [file.suffix for file in place.iterdir()] == [".bin"]


def test_a_damaged_file_is_compiled_anew_once(place):
    compiled()
    (file,) = place.iterdir()
    whole = file.read_bytes()
    damaged = (b"", whole[:10], whole[:-1], whole[:-1] + b"9", bytes(32) + whole[32:])
    for number, content in enumerate(damaged, 1):
        file.write_bytes(content)
        assert [compiled(), compiled()] == [number, number]


@needs_owners
def test_what_others_can_write_is_not_trusted(place):
    compiled()
    (file,) = place.iterdir()
    for mode in (0o620, 0o602):
        file.chmod(mode)
        before = compiled()
        assert compiled() == before  # written anew, and nobody else's
    assert before == 2
    for mode in (0o720, 0o702):
        place.chmod(mode)
        with mock.patch("pathlib.Path.open") as opened:  # of another's pipe it would never end
            assert compiled() < compiled()
        assert not opened.called
    place.chmod(0o755)
    assert compiled() == before


@needs_owners
def test_whose_a_file_is():
    def found(uid, mode):
        return kept._is_safe(types.SimpleNamespace(st_uid=uid, st_mode=mode))

    mine = os.getuid()
    assert [found(mine, 0o100644), found(0, 0o40755), found(mine + 1, 0o100600)] == [True, True, False]


@needs_owners
def test_a_new_folder_is_closed_to_others(place):
    before = os.umask(0)
    try:
        assert compiled() == compiled()
    finally:
        os.umask(before)
    assert place.stat().st_mode & 0o777 == 0o700


def test_nothing_is_kept_where_nothing_can_be_written(place):
    place.write_text("no folder")
    assert [compiled(), compiled()] == [0, 1]


def test_nothing_is_kept_where_there_is_no_home(place, monkeypatch):
    monkeypatch.delenv("ANYNORM_CACHE_DIR")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr("pathlib.Path.home", mock.Mock(side_effect=RuntimeError("Could not determine home directory.")))
    assert [compiled(), compiled()] == [0, 1]
