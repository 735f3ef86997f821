"""Files normalized in place: killed wherever a run may be, there is the old file or the new one."""

import errno
import os
import re
import stat
from pathlib import Path

import numpy as np
import pytest

import anynorm
from anynorm import cli
from anynorm._files import target
from anynorm._files.job import ArrayJob
from anynorm._files.target import replacing
from tests.files import (
    assert_few_ulp,
    assert_one_line,
    assert_refused,
    assert_same_bits,
    contents,
    in_place,
    meanwhile,
    save_x,
)  # fmt: skip
from tests.processes import script

pytestmark = [
    pytest.mark.usefixtures("folder"),
    pytest.mark.skipif(os.name != "posix", reason="SIGKILL, links and locks as POSIX has them"),
]


@pytest.mark.parametrize("options", [("--axis=-1",), ("--axis=0",), ("--axis=-1", "--dtype=float64")])
def test_result(small_blocks, folder, options):
    x = save_x((30, 6))
    assert in_place(*options) == 0
    if "--dtype=float64" in options:
        assert_same_bits(np.load("x.npy"), anynorm.layer_norm(x.astype("float64")))
    else:
        assert_few_ulp(np.load("x.npy"), anynorm.layer_norm(x, axis=int(options[0][7:])))
    assert os.listdir(folder) == ["x.npy"]


# Runs a command in a child of its own again and again, each time killed one step later: at a write of half a block, a
# wait for the disk, or just before or after the file is renamed.
KILLED = """
import itertools, os, signal, sys
from pathlib import Path
from anynorm import cli
from anynorm._files.formats import raw

raw.BLOCK_NBYTES = 64
command, written = sys.argv[1].split(), Path(sys.argv[2])

def killed(function, half=lambda *arguments: None):
    def step(*arguments):
        if next(count) == kill_at:
            half(*arguments)
            os.kill(os.getpid(), signal.SIGKILL)
        function(*arguments)
        if next(count) == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)
    return step

def half_a_block(sink, box, y):
    sink._file.write(bytes(y.reshape(-1).view("uint8"))[: y.nbytes // 2])
    sink._file.flush()

def run(at):
    global kill_at, count
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    kill_at, count = at, itertools.count()
    raw.RawSink.write = killed(raw.RawSink.write, half_a_block)
    os.replace = killed(os.replace)
    os.fsync = killed(lambda descriptor: None)  # which is for a loss of power
    os._exit(cli.main(command))

original = written.read_bytes()
others = {path: path.read_bytes() for path in Path().iterdir() if path != written}
assert run(-1) == 0
new, found = written.read_bytes(), {"old": 0, "new": 0}
for kill_at in itertools.count():
    written.write_bytes(original)
    status = run(kill_at)
    if status == 0:
        break
    assert status == -signal.SIGKILL, status
    now = written.read_bytes()
    found[{original: "old", new: "new"}[now]] += 1
    written.write_bytes(original)
    assert run(-1) == 0
    assert written.read_bytes() == new
    assert {path: path.read_bytes() for path in Path().iterdir() if path != written} == others
print(found["old"], found["new"])
"""


@pytest.mark.parametrize(
    ("command", "written"),
    [
        ("normalize x.npy --in-place --norm rms", "x.npy"),
        pytest.param("normalize x.npy --in-place --norm layer --axis 0", "x.npy", marks=pytest.mark.thorough),
        pytest.param("normalize x.npy y.npy --force --norm scale", "y.npy", marks=pytest.mark.thorough),
    ],
)
def test_killed_at_each_step(command, written):
    save_x((12, 6))
    Path("y.npy").write_bytes(b"precious")
    code = f"import sys; sys.argv[1:] = {[command, written]!r}\n{KILLED}"
    old, new = map(int, script(code, ANYNORM_KERNEL="definition"))
    assert old > 8
    assert new == 3  # after the file is renamed, and at the wait for its folder


@pytest.mark.parametrize("in_place", [True, False])
def test_a_new_file_is_on_disk_before_it_is_renamed_and_its_name_after(monkeypatch, folder, in_place):
    save_x((30, 6))
    steps = []

    def sync(descriptor):
        found = os.fstat(descriptor)
        steps.append("folder" if stat.S_ISDIR(found.st_mode) else ("file", found.st_ino, found.st_size))

    def replace(part, to):
        steps.append(("rename", os.stat(part).st_ino))
        os.rename(part, to)

    monkeypatch.setattr(os, "fsync", sync)
    monkeypatch.setattr(os, "replace", replace)
    arguments = ["x.npy", "--in-place"] if in_place else ["x.npy", "y.npy"]
    assert cli.main(["normalize", *arguments, "--norm", "layer"]) == 0
    written = Path(arguments[-1] if not in_place else "x.npy").stat()
    assert steps == [("file", written.st_ino, written.st_size), ("rename", written.st_ino), "folder"]


def test_all_files_of_a_folder_are_on_disk_before_it_is_renamed(monkeypatch, folder):
    synced, renamed = [], []
    monkeypatch.setattr(os, "fsync", lambda descriptor: synced.append(os.fstat(descriptor).st_ino))
    monkeypatch.setattr(target, "sync_folder", lambda path: renamed.append((path, set(synced))))
    with target.replacing_folder(Path("y.zarr"), False) as part:
        Path(part, "c").mkdir()
        Path(part, "c", "0").write_bytes(b"chunk")
        inodes = {path.stat().st_ino for path in (part, Path(part, "c"), Path(part, "c", "0"))}
    ((synced_folder, before),) = renamed
    assert inodes <= before
    assert synced_folder == folder


def test_names_cannot_be_foreseen_and_nothing_that_is_there_is_opened(monkeypatch, folder):
    save_x()
    opened, really = [], os.open

    def record(path, flags, mode=0o777, **others):
        # Elsewhere the kernel may be compiled meanwhile, and kept.
        if flags & (os.O_WRONLY | os.O_RDWR) and Path(path).absolute().parent == folder:
            opened.append((Path(path).name, flags, mode))
        return really(path, flags, mode, **others)

    monkeypatch.setattr(os, "open", record)
    assert in_place() == 0
    assert in_place() == 0
    assert len({name for name, *_ in opened}) == 2
    for name, flags, mode in opened:
        assert flags & os.O_EXCL
        assert flags & os.O_CREAT
        assert mode == 0o600  # until it has that of the old file
        assert re.fullmatch(r"\.anynorm-[0-9a-f]{16}-[0-9a-f]{16}\.part", name)  # the latter are drawn
    assert os.listdir(folder) == ["x.npy"]


def test_links_and_pipes_among_what_killed_runs_have_left_are_not_followed(folder):
    x = save_x()
    Path("precious").write_bytes(b"precious")
    Path("kept").mkdir()
    Path("kept", "precious").write_bytes(b"precious")
    prefix = target._prefix_of(Path("x.npy"))
    Path(f"{prefix}1.part").symlink_to("precious")
    Path(f"{prefix}2.part").symlink_to("kept")
    os.mkfifo(f"{prefix}3.part")  # which nobody writes into
    before = contents(folder / "kept") | {folder / "precious": b"precious"}
    assert in_place() == 0
    assert_same_bits(np.load("x.npy"), anynorm.layer_norm(x))
    assert {path: path.read_bytes() for path in before} == before
    assert sorted(os.listdir(folder)) == [f"{prefix}1.part", f"{prefix}2.part", "kept", "precious", "x.npy"]


def test_a_symbolic_link_stays_and_what_it_leads_to_is_replaced(folder):
    x = save_x()
    Path("x.npy").chmod(0o640)
    Path("link.npy").symlink_to("x.npy")
    assert in_place(source="link.npy") == 0
    assert Path("link.npy").is_symlink()
    assert_same_bits(np.load("x.npy"), anynorm.layer_norm(x))
    assert Path("x.npy").stat().st_mode & 0o777 == 0o640
    assert sorted(os.listdir(folder)) == ["link.npy", "x.npy"]


def test_a_file_with_two_names_is_refused(small_blocks, monkeypatch, capsys, folder):
    save_x((30, 6))
    os.link("x.npy", "other.npy")
    assert_refused(capsys, folder, "2 names (hard links)", "x.npy", "--in-place", "--norm", "layer")
    Path("other.npy").unlink()
    meanwhile(monkeypatch, lambda: os.link("x.npy", "other.npy"))
    assert in_place() == 1
    assert_one_line(capsys.readouterr().err, "2 names (hard links)")
    assert sorted(os.listdir(folder)) == ["other.npy", "x.npy"]
    Path("other.npy").unlink()
    assert in_place() == 0


def test_a_file_that_may_not_be_written_is_refused(monkeypatch, capsys, folder):
    save_x()
    monkeypatch.setattr(os, "access", lambda path, mode: mode != os.W_OK)  # root may write whatever the mode
    assert_refused(capsys, folder, "may not be written to", "x.npy", "--in-place", "--norm", "layer")


def test_owner_and_attributes_are_kept_or_the_file_refused(monkeypatch, capsys, folder):
    save_x()
    try:
        os.setxattr("x.npy", "user.note", b"kept")
        attributes = ["user.note"]
    except OSError:  # a file system without them
        attributes = []
    given = []
    monkeypatch.setattr(os, "fchown", lambda descriptor, *owner: given.append(owner))
    really = Path.stat

    def of_another(path, **options):
        found = list(really(path, **options))
        return os.stat_result(found[:4] + [found[4] + 1, found[5] + 1] + found[6:])

    with monkeypatch.context() as patched:
        patched.setattr(Path, "stat", of_another)
        patched.setattr("anynorm._files.original.Original.require_unchanged", lambda original: None)
        assert in_place() == 0
        assert given == [(os.getuid() + 1, really(Path("x.npy")).st_gid + 1)]
        assert [name for name in os.listxattr("x.npy") if name.startswith("user.")] == attributes

        def not_permitted(*_):
            raise PermissionError

        patched.setattr(os, "fchown", not_permitted)
        patched.setattr(ArrayJob, "normalize", lambda *_: pytest.fail("said before the work, not after it"))
        assert_refused(capsys, folder, "belongs to another user or group", "x.npy", "--in-place", "--norm", "layer")


def test_two_at_once_are_refused(small_blocks, capsys, folder):
    import fcntl

    x = save_x()
    with open("x.npy", "rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert_refused(capsys, folder, "by another process", "x.npy", "--in-place", "--norm", "layer")
    assert in_place() == 0
    assert_same_bits(np.load("x.npy"), anynorm.layer_norm(x))


def test_a_part_is_never_that_of_a_run_that_took_it_for_left_over(monkeypatch):
    really, taken = target.lock, []

    def lock(file):
        if not taken:  # another run was quicker
            taken.append(file.name)
            os.unlink(file.name)
        return really(file)

    monkeypatch.setattr(target, "lock", lock)
    with replacing(Path("y.npy"), False) as file:
        file.write(b"whole")
        assert file.name != taken[0]
    assert Path("y.npy").read_bytes() == b"whole"


def test_a_file_that_cannot_be_renamed_over_is_named(monkeypatch, capsys, folder):
    save_x()

    def busy(part, to):  # as where the file is a mount point
        raise OSError(errno.EBUSY, "Device or resource busy", part)

    monkeypatch.setattr(os, "replace", busy)
    message = f"{folder.resolve() / 'x.npy'}: Device or resource busy"
    assert_refused(capsys, folder, message, "x.npy", "--in-place", "--norm", "layer")


def test_rows_with_nan_may_leave_the_file_as_it_was(small_blocks, capsys, folder):
    x = save_x((30, 6))
    x[28, 3] = np.inf
    np.save("x.npy", x)
    assert_refused(capsys, folder, "row 28 of", "x.npy", "--in-place", "--norm", "layer", "--on-nan", "fail")
