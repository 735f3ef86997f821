"""Compiled kernels are kept on disk where that is possible, and do without where it is not."""

import shutil

import pytest

from tests.backends import needs_llvmlite, thorough_but
from tests.processes import PACKAGE, script

pytestmark = needs_llvmlite
# The kernel for moments is the one that compiles fastest.
FIND_MEAN = "import numpy, anynorm\nprint(anynorm.moments(numpy.asarray([1.0, 5.0])).mean[0])\n"
NORMALIZE = "import numpy, anynorm\nprint(anynorm.scale_norm(numpy.asarray([3.0, 4.0], numpy.float32), 5.0)[0])\n"


def copy_of_the_package(folder):
    shutil.copytree(PACKAGE, folder / "anynorm", ignore=shutil.ignore_patterns("__pycache__"))
    return folder


@pytest.mark.parametrize("place", thorough_but("nowhere", of=["package", "home", "nowhere"]))
def test_a_cache_that_can_or_cannot_be_written(place, tmp_path):
    # A file where a folder would go stops even a user who may write anywhere.
    folder, home = copy_of_the_package(tmp_path), tmp_path / "home"
    inside = folder / "anynorm" / "_kernels" / "cpu" / "__pycache__"
    home.mkdir()
    if place != "package":
        inside.write_text("not a folder")
    if place == "nowhere":
        shutil.rmtree(home)
        home.write_text("not a folder")
    environment = {
        "HOME": str(home),
        "XDG_CACHE_HOME": str(home),
        "NUMBA_CACHE_DIR": "",
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    code = FIND_MEAN + "print(anynorm.__file__)"
    for _ in range(2):
        assert script(code, path=folder, **environment) == ["3.0", str(folder / "anynorm" / "__init__.py")]
    written = list(tmp_path.rglob("*.nbc"))
    assert bool(written) == (place != "nowhere")
    assert all(inside in file.parents if place == "package" else home in file.parents for file in written)


def test_a_cache_that_was_cut_short(tmp_path):
    folder, place = copy_of_the_package(tmp_path), {"NUMBA_CACHE_DIR": ""}
    assert script(FIND_MEAN, path=folder, **place) == ["3.0"]
    for length in (0, 100):
        files = list(tmp_path.rglob("*.nb[ci]"))
        assert len(files) >= 2
        for file in files:
            file.write_bytes(file.read_bytes()[:length])
        assert script(FIND_MEAN, path=folder, **place) == ["3.0"]
        # And it is whole again.
        assert all(file.stat().st_size > 50 for file in files)


def test_kernels_that_have_changed_are_compiled_anew(tmp_path):
    # Numba itself looks at the file of a kernel alone, and not at those of the functions that it calls.
    folder = copy_of_the_package(tmp_path)
    assert script(NORMALIZE, path=folder) == ["3.0"]
    finish = folder / "anynorm" / "_kernels" / "cpu" / "finish.py"
    changed = finish.read_text().replace("alike(scale, norm) / norm", "alike(scale + scale, norm) / norm")
    assert changed != finish.read_text()
    finish.write_text(changed)
    assert script(NORMALIZE, path=folder) == ["6.0"]
