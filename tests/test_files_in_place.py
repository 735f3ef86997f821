"""Files normalized in place: killed wherever a run may be, the same command completes them, each row once."""

import errno
import os
from pathlib import Path
from unittest import mock

import numpy as np
import pytest

import anynorm
from anynorm import cli
from anynorm._files import in_place, journal
from tests.files import assert_few_ulp, assert_one_line, assert_refused, assert_same_bits, save_x
from tests.processes import script

pytestmark = [
    pytest.mark.usefixtures("folder"),
    pytest.mark.skipif(os.name != "posix", reason="SIGKILL and locks as POSIX has them"),
]

JOURNAL = ".x.npy.anynorm-journal"

# Runs a command in a child of its own again and again, each time killed one step later, and the command once more
# after each; a step is a wait for the disk, or half of what is written into the journal or the file.
KILLED = """
import itertools, os, shutil, signal, sys
from pathlib import Path
from anynorm import cli
from anynorm._files import in_place, raw
from anynorm._files.journal import Journal

in_place.BLOCK_NBYTES = raw.BLOCK_NBYTES = 64
command, written, step = sys.argv[1].split(), Path(sys.argv[2]), sys.argv[3]

def half(write):  # the method that writes its last argument
    def halved(*arguments):
        if next(count) == kill_at:
            write(*arguments[:-1], arguments[-1][: len(arguments[-1]) // 2])
            os.kill(os.getpid(), signal.SIGKILL)
        write(*arguments)
    return halved

def half_record(self, start, told, data):
    if next(count) == kill_at:
        packed = b"".join(bytes(part) for part in journal._packed(told, data))
        self._file.seek(start)
        self._file.write(packed[: len(packed) - len(data) // 2 - 1])
        self._file.flush()
        os.kill(os.getpid(), signal.SIGKILL)
    put_at(self, start, told, data)

def killed_sync(descriptor):
    if next(count) == kill_at:
        os.kill(os.getpid(), signal.SIGKILL)

def run(at):
    global kill_at, count, put_at, journal
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    from anynorm._files import journal
    kill_at, count, put_at = at, itertools.count(), Journal._put_at
    if step == "block":
        in_place._JournaledSink._put = half(in_place._JournaledSink._put)
    elif step == "record":
        Journal._put_at = half_record
    os.fsync = killed_sync if step == "sync" else lambda descriptor: None  # which is for a loss of power
    os._exit(cli.main(command))

originals = {path: path.read_bytes() for path in Path().iterdir()}
def renew():
    for path in Path().iterdir():
        path.unlink()
    for path, content in originals.items():
        path.write_bytes(content)

assert run(-1) == 0
old, new = originals[written], written.read_bytes()
half_way = 0
for kill_at in itertools.count():
    renew()
    status = run(kill_at)
    if status == 0:
        break
    assert status == -signal.SIGKILL, status
    now = written.read_bytes()
    half_way += now not in (old, new)
    assert run(-1) == 0
    assert written.read_bytes() == new
    changed = [path for path in originals if path != written and path.read_bytes() != originals[path]]
    assert not changed, changed
    left = set(Path().iterdir()) - set(originals)
    assert left <= {Path(f".{written}.anynorm-journal")}, left
print(kill_at, half_way)
"""


def save_weight(features):
    np.save("w.npy", np.random.default_rng(1).standard_normal(features) + 2)


@pytest.mark.parametrize("step", ["sync", "record", "block"])
@pytest.mark.parametrize(("axis", "order"), [("-1", "C"), ("0", "C"), ("-1", "F")])
def test_killed_at_each_step(step, axis, order):
    save_x((12, 6), order=order)
    save_weight(12 if axis == "0" else 6)
    command = f"normalize x.npy --in-place --norm rms --axis {axis} --weight w.npy"
    kills, half_way = map(int, killed(command, "x.npy", step))
    assert kills > 4
    assert half_way > 2


@pytest.mark.parametrize(
    ("command", "written"),
    [
        ("normalize x.npy --in-place --norm layer --dtype float64", "x.npy"),
        ("normalize x.npy y.npy --force --norm layer --axis 0", "y.npy"),
        ("normalize x.npy y.npy --norm scale --force", "y.npy"),
    ],
)
def test_killed_where_a_whole_file_takes_the_place(command, written):
    save_x((20, 6))
    Path("y.npy").write_bytes(b"precious")
    kills, half_way = map(int, killed(command, written, "sync"))
    assert kills > 1
    assert half_way == 0


def killed(command, written, step):
    code = f"import sys; sys.argv[1:] = {[command, written, step]!r}\n{KILLED}"
    return script(code, ANYNORM_KERNEL="definition")


def in_place_command(*options):
    return cli.main(["normalize", "x.npy", "--in-place", "--norm", "layer", *options])


class StoppedError(BaseException):
    """Stands for SIGKILL: nothing cleans up after it."""


@pytest.fixture
def stop_at_third_block(small_blocks):
    """A function that runs a command until its third block is to be written."""

    def stop(*options, error=StoppedError):
        put, calls = in_place._JournaledSink._put, iter(range(100))

        def third(*arguments):
            if next(calls) == 2:
                raise error
            put(*arguments)

        with mock.patch.object(in_place._JournaledSink, "_put", third):
            return in_place_command(*options)

    return stop


@pytest.mark.parametrize("axis", [0, 1])
def test_result(small_blocks, folder, axis):
    x = save_x((30, 6))
    assert in_place_command("--axis", str(axis)) == 0
    (assert_same_bits if axis else assert_few_ulp)(np.load("x.npy"), anynorm.layer_norm(x, axis=axis))
    assert sorted(os.listdir(folder)) == [JOURNAL, "x.npy"]
    assert Path(JOURNAL).stat().st_size < 1000


def test_a_file_that_is_done_is_left_until_it_changes(small_blocks, capsys):
    x = save_x()
    assert in_place_command() == 0
    assert in_place_command() == 0
    assert_one_line(capsys.readouterr().err, "is as this command has left it")
    once = anynorm.layer_norm(x)
    assert_same_bits(np.load("x.npy"), once)
    assert in_place_command("--eps", "7") == 0  # another command
    assert_same_bits(np.load("x.npy"), anynorm.layer_norm(once, eps=7.0))
    x = save_x()
    os.utime("x.npy", ns=(1, 1))  # two files written within one tick of the clock would look the same
    assert in_place_command("--eps", "7") == 0
    assert_same_bits(np.load("x.npy"), anynorm.layer_norm(x, eps=7.0))


def test_a_symlink_stays_and_names_one_file(small_blocks, capsys, folder):
    x = save_x()
    Path("link.npy").symlink_to("x.npy")
    assert cli.main(["normalize", "link.npy", "--in-place", "--norm", "layer"]) == 0
    assert Path("link.npy").is_symlink()
    assert in_place_command() == 0
    assert_one_line(capsys.readouterr().err, "is as this command has left it")
    assert_same_bits(np.load("x.npy"), anynorm.layer_norm(x))


def test_only_the_same_command_goes_on(stop_at_third_block, capsys, folder):
    x = save_x((30, 6))
    with pytest.raises(StoppedError):
        stop_at_third_block()
    said = "half normalized by another command; run that again first: anynorm normalize x.npy --in-place --norm layer"
    assert_refused(capsys, folder, said, "x.npy", "--in-place", "--norm", "layer", "--eps", "1")
    assert_refused(capsys, folder, "half normalized in place", "x.npy", "y.npy", "--norm", "layer")
    assert_refused(capsys, folder, "half normalized in place", "x.npy", "--moments")
    assert in_place_command() == 0
    assert_same_bits(np.load("x.npy"), anynorm.layer_norm(x))


def test_another_file_of_that_name_is_refused(stop_at_third_block, capsys, folder):
    save_x((30, 6))
    with pytest.raises(StoppedError):
        stop_at_third_block()
    Path("x.npy").rename("elsewhere.npy")
    save_x((30, 6))
    assert_refused(capsys, folder, "belongs to another file", "x.npy", "--in-place", "--norm", "layer")


def test_a_journal_that_is_none_is_refused(capsys, folder):
    save_x()
    Path(JOURNAL).write_bytes(b"a letter")
    assert_refused(capsys, folder, "is no journal of anynorm", "x.npy", "--in-place", "--norm", "layer")


@pytest.mark.parametrize(
    ("error", "status", "message"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), 1, "No space left on device; "),
        (KeyboardInterrupt(), 130, "interrupted; "),
    ],
)
def test_stopped_half_way_says_what_to_do(stop_at_third_block, capsys, error, status, message):
    x = save_x((30, 6))
    assert stop_at_third_block(error=error) == status
    assert_one_line(capsys.readouterr().err, f"{message}{Path('x.npy').resolve()} is half normalized, run the same")
    assert in_place_command() == 0
    assert_same_bits(np.load("x.npy"), anynorm.layer_norm(x))


def test_no_room_for_the_journal(small_blocks, capsys, folder, monkeypatch):
    save_x((30, 6))
    no_room = OSError(errno.ENOSPC, "No space left on device")
    monkeypatch.setattr(journal, "reserve", mock.Mock(side_effect=no_room))
    assert_refused(capsys, folder, "No space left on device", "x.npy", "--in-place", "--norm", "layer")


def test_stopped_before_the_first_block_leaves_nothing(small_blocks, capsys, folder, monkeypatch):
    save_x((30, 6))
    monkeypatch.setattr(journal.Journal, "put", mock.Mock(side_effect=OSError(errno.EIO, "Input/output error")))
    assert_refused(capsys, folder, "Input/output error", "x.npy", "--in-place", "--norm", "layer")


def test_rows_with_nan_of_both_runs_are_counted(stop_at_third_block, capsys, folder):
    x = save_x((30, 6))
    x[1, 2], x[28, 3], x[29, 5] = np.nan, np.inf, np.nan
    np.save("x.npy", x)
    assert_refused(capsys, folder, "row 1 of", "x.npy", "--in-place", "--norm", "layer", "--on-nan", "fail")
    with pytest.raises(StoppedError):
        stop_at_third_block()
    assert in_place_command() == 0
    error = capsys.readouterr().err
    assert_one_line(error, "3 rows hold NaN or Inf and are NaN throughout, the first is row 1 of")
    assert_same_bits(np.load("x.npy"), anynorm.layer_norm(x))


def test_two_at_once_are_refused(small_blocks, capsys, folder):
    import fcntl

    save_x()
    with open("x.npy", "rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert_refused(capsys, folder, "by another process", "x.npy", "--in-place", "--norm", "layer")
