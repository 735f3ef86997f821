"""Compiled kernels are kept on disk where that is possible, and do without where it is not."""

import shutil

import pytest

from tests.backends import needs_llvmlite, thorough_but
from tests.processes import PACKAGE, script

pytestmark = needs_llvmlite
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
    changed = factors.read_text().replace("alike(scale, norm) / norm", "alike(scale + scale, norm) / norm")
    assert changed != factors.read_text()
    factors.write_text(changed)
    assert script(NORMALIZE, path=tmp_path, **environment) == ["6.0"]
