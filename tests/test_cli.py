"""The command line: its refusals, and what each run leaves on disk."""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest

import anynorm
from anynorm import cli
from anynorm._files.target import replacing
from tests.files import (
    assert_few_ulp,
    assert_one_line,
    assert_refused,
    assert_same_bits,
    contents,
    normalize,
    save_x,
)  # fmt: skip

pytestmark = pytest.mark.usefixtures("folder")
posix = pytest.mark.skipif(os.name != "posix", reason="file modes, symlinks, signals and limits as POSIX has them")


@pytest.mark.parametrize("axis", [0, 1])
def test_overwrites_only_with_force(small_blocks, folder, capsys, axis):
    x = save_x((30, 6))
    Path("y.npy").write_bytes(b"precious")
    assert_refused(capsys, folder, "--force", "x.npy", "y.npy", "--norm", "layer", "--axis", str(axis))
    assert normalize("--axis", str(axis), "--force") == 0
    assert_few_ulp(np.load("y.npy"), anynorm.layer_norm(x, axis=axis))
    assert sorted(os.listdir(folder)) == ["x.npy", "y.npy"]


@posix
@pytest.mark.parametrize("spelled", ["x.npy", "./x.npy", "folder/../x.npy", "hard.npy", "soft.npy", "in.zarr/y.zarr"])
def test_a_target_that_is_the_source_is_refused(folder, capsys, spelled):
    save_x()
    Path("folder").mkdir()
    Path("in.zarr").mkdir()
    os.link("x.npy", "hard.npy")
    os.symlink("x.npy", "soft.npy")
    source = "in.zarr" if "zarr" in spelled else "x.npy"
    message = "lies within" if "zarr" in spelled else "--in-place"
    assert_refused(capsys, folder, message, source, spelled, "--norm", "layer", "--force")


# The first command imports what it takes, for others may not be allowed to read all that root is.
AS_NOBODY = """
import os, sys
from anynorm import cli
cli.main(["normalize", "x.npy", "y.npy", "--norm", "layer", "--dry-run"])
os.geteuid() or os.setuid(65534)
sys.exit(sum(cli.main(["normalize", "x.npy", target, "--norm", "layer"]) for target in ("y.npy", "--in-place")))
"""


@posix
def test_a_folder_that_is_read_only(monkeypatch):
    # Not below pytest's own folder, which is closed to others, as whom root has to run this.
    with tempfile.TemporaryDirectory() as name:
        monkeypatch.chdir(name)
        monkeypatch.setenv("ANYNORM_KERNEL", "definition")
        save_x()
        before = contents(Path(name))
        os.chmod(name, 0o555)
        Path("x.npy").chmod(0o666)
        try:
            command = [sys.executable, "-c", AS_NOBODY]
            done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=50)
            assert done.returncode == 2, done.stderr
            for line in done.stderr.splitlines(keepends=True):
                assert_one_line(line, f"{Path(name).resolve()}: Permission denied")
            assert contents(Path(name)) == before
        finally:
            os.chmod(name, 0o755)


def test_what_a_killed_run_has_left_is_removed_by_the_next(small_blocks, folder):
    save_x((30, 6))
    with replacing(Path("y.npy"), False) as held:
        left = Path(held.name).with_name(Path(held.name).name[:30] + "0123.part")
        left.write_bytes(b"left by a process that was killed")
        assert normalize() == 0
        assert not left.exists()
        assert Path(held.name).exists()  # for its process lives
        Path("y.npy").unlink()
    assert sorted(os.listdir(folder)) == ["x.npy", "y.npy"]


@posix
@pytest.mark.parametrize("dangling", [False, True])
def test_symlink_and_mode_stay(folder, dangling):
    x = save_x()
    target = Path("elsewhere", "target.npy")
    target.parent.mkdir()
    if not dangling:
        target.write_bytes(b"old")
        target.chmod(0o604)
    Path("y.npy").symlink_to(target)
    before = os.umask(0o027)
    try:
        assert normalize("--force") == 0
    finally:
        os.umask(before)
    assert Path("y.npy").readlink() == target
    assert_same_bits(np.load(target), anynorm.layer_norm(x))
    assert target.stat().st_mode & 0o777 == (0o640 if dangling else 0o604)
    assert sorted(path.name for path in folder.rglob("*.npy*")) == ["target.npy", "x.npy", "y.npy"]


def test_no_rich(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "rich", None)
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    save_x()
    assert normalize() == 0
    out, error = capsys.readouterr()
    assert out == ""
    assert error.startswith("wrote y.npy: 9 x 6 float32")


def test_info(monkeypatch, capsys):
    for missing in ("torch", "rich"):
        monkeypatch.setitem(sys.modules, missing, None)
    monkeypatch.setattr("anynorm._kernels.cuda._MISSING", None)
    monkeypatch.setattr("ctypes.CDLL", {"libcuda.so.1": None, "nvcuda.dll": None}.__getitem__)
    assert cli.main(["info"]) == 0
    out, error = capsys.readouterr()
    lines = [line.strip().split(maxsplit=1) for line in out.splitlines()]
    assert error == ""
    assert out.startswith(f"anynorm {anynorm.__version__}, Python ")
    assert ["numpy", np.__version__] in lines
    assert ["torch", "not installed; pip install torch"] in lines
    assert ["definition", "the array API definition: any library, any device; active"] in lines
    assert [line for line in out.splitlines() if line.strip().startswith("cuda ") and line.endswith("; active")]
    assert ["rich", "not installed; pip install rich (progress bars)"] in lines


def test_info_without_an_nvidia_driver_advises_no_package_for_gpus(monkeypatch, capsys):
    def missing(name):
        raise OSError(f"{name}: cannot open shared object file")

    monkeypatch.setattr("ctypes.CDLL", missing)
    assert cli.main(["info"]) == 0
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.strip().startswith("cuda ")]
    assert line.endswith("; no NVIDIA driver is installed")


def test_version(capsys):
    with pytest.raises(SystemExit, match="0"):
        cli.main(["--version"])
    assert capsys.readouterr().out == f"anynorm {anynorm.__version__}\n"


@posix
def test_an_input_that_is_no_regular_file_is_not_waited_for(capsys, folder):
    save_x()
    os.mkfifo("pipe.npy")
    for arguments in ("pipe.npy y.npy", "x.npy y.npy --weight pipe.npy"):
        assert cli.main(["normalize", *arguments.split(), "--norm", "layer"]) == 1
        assert_one_line(capsys.readouterr().err, "pipe.npy is not a regular file")
    assert sorted(path.name for path in folder.iterdir()) == ["pipe.npy", "x.npy"]


@posix
def test_an_out_that_is_no_regular_file_is_left_as_it_is(capsys, folder):
    save_x()
    os.mkfifo("pipe.npy")
    os.symlink("loop.npy", "loop.npy")
    for name, message in (("pipe.npy", "not a regular file"), ("loop.npy", "loop")):
        assert cli.main(["normalize", "x.npy", name, "--norm", "layer", "--force"]) == 1
        assert_one_line(capsys.readouterr().err, message)
    assert Path("pipe.npy").is_fifo()
    assert Path("loop.npy").is_symlink()
    assert sorted(path.name for path in folder.iterdir()) == ["loop.npy", "pipe.npy", "x.npy"]
