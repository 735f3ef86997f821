"""Standard input and output: streams in .npy format, into pipes and files that others have opened."""

import io
import os
import subprocess
import sys
import threading
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from numpy.lib import format as npy

import anynorm
from anynorm import cli
from anynorm._files import boxes
from anynorm._files.pipeline import pipelined
from tests.backends import thorough_but
from tests.files import assert_one_line, assert_same_bits, save_x

pytestmark = pytest.mark.usefixtures("folder")


class Bytes(io.TextIOWrapper):
    """Standard input or output that is no file, and cannot be told to go elsewhere."""

    def __init__(self, content=b""):
        super().__init__(Pipe(content))


class Pipe(io.BytesIO):
    name = "pipe"

    def seekable(self):
        return False

    def seek(self, *_):
        raise io.UnsupportedOperation("seek")


@pytest.mark.parametrize("order", ["C", "F"])
def test_streams(small_blocks, monkeypatch, order):
    x = save_x((30, 6) if order == "C" else (6, 30), order=order)
    monkeypatch.setattr(sys, "stdin", Bytes(Path("x.npy").read_bytes()))
    monkeypatch.setattr(sys, "stdout", out := Bytes())
    axis = "-1" if order == "C" else "0"
    assert cli.main(["normalize", "-", "-", "--norm", "rms", "--axis", axis, "--dtype", "float64"]) == 0
    want = anynorm.rms_norm(x.astype("float64"), axis=int(axis))
    assert_same_bits(np.load(io.BytesIO(out.buffer.getvalue())), want)


@pytest.mark.parametrize(
    ("change", "options", "message"),
    [
        (lambda npy: npy[:-1], [], "pipe ends too early"),
        (lambda npy: npy + b"x", [], "holds more than its header says"),
        (lambda npy: npy[:50], [], "standard input is not a readable .npy file: it ends within its header"),
        (lambda npy: npy[:7], [], "standard input is not a readable .npy file: it ends within its header"),
        (lambda npy: npy[:2], [], "standard input is not a readable .npy file: it ends within its header"),
        (lambda npy: b"", [], "standard input is not a readable .npy file: it is empty"),
        (lambda npy: npy, ["--axis", "0"], "name a file in place of -"),
    ],
)
def test_streams_that_do_not_fit(small_blocks, monkeypatch, capsys, folder, change, options, message):
    save_x((30, 6))
    monkeypatch.setattr(sys, "stdin", Bytes(change(Path("x.npy").read_bytes())))
    assert cli.main(["normalize", "-", "y.npy", "--norm", "layer", *options]) == 1
    assert_one_line(capsys.readouterr().err, message)
    assert [path.name for path in folder.iterdir()] == ["x.npy"]


def run_into(monkeypatch, content, how, *options):
    """Status of a command that reads a stream, and what its output has in the end, in one of four ways."""
    monkeypatch.setattr(sys, "stdin", Bytes(content))
    command = ["normalize", "-", "-", "--norm", "scale", *options]
    if how == "OUT":
        status = cli.main(["normalize", "-", "y.npy", *command[3:]])
        return status, Path("y.npy").read_bytes() if Path("y.npy").exists() else None
    if how != "|":
        Path("y.npy").write_bytes(b"before")
        with open("y.npy", {">": "w", ">>": "a"}[how]) as file:
            monkeypatch.setattr(sys, "stdout", file)
            status = cli.main(command)
        return status, Path("y.npy").read_bytes()
    ours, theirs = os.pipe()
    found = []
    with open(ours, "rb") as reader, open(theirs, "w") as writer:
        thread = threading.Thread(target=lambda: found.append(reader.read()))
        thread.start()
        monkeypatch.setattr(sys, "stdout", writer)
        status = cli.main(command)
        writer.close()
        thread.join()
    return status, found[0]


@pytest.mark.parametrize("how", [">", ">>", "|", "OUT"])
def test_each_kind_of_output(small_blocks, monkeypatch, how):
    x = save_x((30, 6))
    status, out = run_into(monkeypatch, Path("x.npy").read_bytes(), how)
    assert status == 0
    before = b"before" if how == ">>" else b""
    assert out.startswith(before)
    assert_same_bits(np.load(io.BytesIO(out[len(before) :])), anynorm.scale_norm(x))


@pytest.mark.parametrize("how", [">", ">>", "|", "OUT"])
def test_a_stream_that_ends_too_early(small_blocks, monkeypatch, capsys, how):
    """What was written stays, where it cannot be taken back, and no reader takes it for the whole."""
    x = save_x((30, 6))
    status, out = run_into(monkeypatch, Path("x.npy").read_bytes()[:-200], how)
    assert status == 1
    assert_one_line(capsys.readouterr().err, "ends too early")
    if how == "OUT":
        assert out is None
        return
    out = out.removeprefix(b"before")
    rows = np.frombuffer(out[128:], "float32").reshape(-1, 6)
    assert_same_bits(rows, anynorm.scale_norm(x)[: len(rows)])
    with pytest.raises(ValueError, match=r"reshape|array data"):
        np.load(io.BytesIO(out))


def test_space_is_reserved_for_new_files_alone(monkeypatch):
    save_x((30, 6))
    reserved = []
    monkeypatch.setattr(os, "posix_fallocate", lambda *arguments: reserved.append(arguments[2]), raising=False)
    for how, nbytes in (("OUT", [30 * 6 * 4]), (">", []), (">>", []), ("|", [])):
        assert run_into(monkeypatch, Path("x.npy").read_bytes(), how)[0] == 0
        assert reserved == nbytes
        reserved.clear()


@pytest.mark.parametrize("source", ["x.npy", "-"])
def test_an_output_that_is_the_source_is_refused(small_blocks, monkeypatch, capsys, source):
    save_x((30, 6))
    before = Path("x.npy").read_bytes()
    with open("x.npy") as given, open("x.npy", "a") as file:
        monkeypatch.setattr(sys, "stdin", given)
        monkeypatch.setattr(sys, "stdout", file)
        assert cli.main(["normalize", source, "-", "--norm", "layer"]) == 1
    assert_one_line(capsys.readouterr().err, "standard output is the file that is read")
    assert Path("x.npy").read_bytes() == before


@pytest.mark.parametrize("command", ["normalize x.npy - --norm layer", "show x.npy", "info"])
@pytest.mark.skipif(os.name != "posix", reason="SIGPIPE as POSIX has it")
def test_an_output_whose_reader_has_gone_ends_quietly(monkeypatch, capfd, command):
    save_x((3000, 6))
    ours, theirs = os.pipe()
    os.close(ours)
    with open(theirs, "w") as writer:
        monkeypatch.setattr(sys, "stdout", writer)
        assert cli.main(command.split()) == 141
    assert capfd.readouterr().err == ""


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a full disk as Linux has one")
@pytest.mark.parametrize(
    ("command", "unbuffered"),
    [
        ("normalize x.npy - --norm layer", "1"), ("show x.npy", ""),
        pytest.param("normalize x.npy - --norm layer", "", marks=pytest.mark.thorough),
        pytest.param("show x.npy", "1", marks=pytest.mark.thorough),
    ],
)  # fmt: skip
def test_an_output_that_is_full(monkeypatch, command, unbuffered):
    monkeypatch.setenv("PYTHONUNBUFFERED", unbuffered)
    monkeypatch.setenv("ANYNORM_KERNEL", "definition")
    save_x((3, 6))
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "anynorm", *command.split()], stdout=full, stderr=subprocess.PIPE, text=True,
            check=False,
        )  # fmt: skip
    assert done.returncode == 1
    assert_one_line(done.stderr, "No space left on device")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a full disk as Linux has one")
def test_rows_that_are_counted_on_an_error_output_that_is_full(monkeypatch):
    x = save_x((3, 6))
    x[1] = np.nan
    np.save("x.npy", x)
    full = open("/dev/full", "w", buffering=1)  # noqa: SIM115
    monkeypatch.setattr(sys, "stderr", full)
    assert cli.main(["normalize", "x.npy", "y.npy", "--norm", "layer"]) == 0
    assert cli.main(["normalize", "x.npy", "y.npy", "--norm", "layer"]) == 1
    with pytest.raises(OSError, match="No space left"):
        full.close()
    assert_same_bits(np.load("y.npy"), anynorm.layer_norm(x))


@pytest.mark.parametrize("unbuffered", thorough_but("1", of=["", "1"]))
@pytest.mark.skipif(os.name != "posix", reason="a largest size of files as POSIX has it")
def test_an_output_that_takes_a_part(monkeypatch, unbuffered):
    """A write to a raw file, which is what Python makes of an unbuffered output, then succeeds with fewer bytes."""
    monkeypatch.setenv("PYTHONUNBUFFERED", unbuffered)
    monkeypatch.setenv("ANYNORM_KERNEL", "definition")
    # By the process itself: what sets it between fork and exec would fork with the threads of JAX about.
    code = (
        "import resource, sys; from anynorm.cli import main; "
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000)); sys.exit(main(sys.argv[1:]))"
    )
    save_x((30, 30))
    with open("y.npy", "w") as file:
        done = subprocess.run(
            [sys.executable, "-c", code, "normalize", "x.npy", "-", "--norm", "layer"],
            stdout=file, stderr=subprocess.PIPE, text=True, check=False,
        )  # fmt: skip
    assert done.returncode == 1
    assert_one_line(done.stderr, "File too large")


@pytest.mark.parametrize(
    ("rows", "message"), [(10**12, "ends too early"), (10**19, "is not a readable .npy file: its shape is")]
)
def test_a_stream_that_claims_to_be_long(monkeypatch, capsys, rows, message):
    npy.write_array_header_1_0(header := io.BytesIO(), {"descr": "<f4", "fortran_order": False, "shape": (rows, 768)})
    monkeypatch.setattr(sys, "stdin", Bytes(header.getvalue() + bytes(64)))
    monkeypatch.setattr(sys, "stdout", Bytes())
    assert cli.main(["normalize", "-", "-", "--norm", "layer"]) == 1
    assert_one_line(capsys.readouterr().err, message)


@pytest.mark.parametrize("endless", [False, True])
def test_reads_are_waited_for_after_an_interrupt_unless_they_may_take_for_ever(endless):
    begun, go_on, done = threading.Event(), threading.Event(), threading.Event()

    def read(item, buffer):
        if item == 1:
            begun.set()
            go_on.wait(60)
            done.set()

    def compute(item, x):
        begun.wait(60)
        if not endless:
            threading.Timer(0.05, go_on.set).start()
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pipelined([0, 1], read, compute, lambda item, y: None, [None, None], endless=endless)
    assert done.is_set() is not endless
    go_on.set()
    assert done.wait(60)


def test_blocks_are_cut_when_they_are_read():
    """However many there are, as in an array of petabytes; lists of those of these 8 MB take 100 MB."""
    tracemalloc.start()
    try:
        ranges = boxes.cut_runs((10**6, 2), 4, 8)
        (first,) = next(boxes.groups(ranges, (1,)))
        _, peak_nbytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert first == (slice(0, 1), slice(0, 2))
    assert [len(one) for one in ranges] == [10**6, 1]
    assert peak_nbytes < 10_000


@pytest.mark.parametrize("shape", [(7, 3, 5), (7,), (1, 1), (0, 3), (2, 0)])
@pytest.mark.parametrize("nbytes", [4, 12, 40, 120, 1000])
def test_blocks_cover_an_array_once_in_order(shape, nbytes):
    index = np.arange(np.prod(shape), dtype="int32").reshape(shape)
    ranges = boxes.cut_runs(shape, index.itemsize, nbytes)
    for axes in [(0,), (len(shape) - 1,)]:
        pieces = [index[box] for group in boxes.groups(ranges, axes) for box in group]
        assert all(piece.nbytes <= nbytes and piece.size for piece in pieces)
        assert np.array_equal(np.concatenate([index[:0].ravel(), *(piece.ravel() for piece in pieces)]), index.ravel())


@pytest.mark.parametrize(
    ("closed", "command", "message"),
    [
        ("stdin", "- y.npy --norm layer", "standard input is closed"),
        ("stdout", "x.npy - --norm layer", "standard output is closed"),
        ("stdout", "x.npy --norm layer -o y.npy --json", "standard output is closed"),
        ("stderr", "x.npy none/y.npy --norm layer", None),
    ],
)
def test_streams_that_are_closed(monkeypatch, capsys, closed, command, message):
    save_x()
    monkeypatch.setattr(sys, closed, None)
    assert cli.main(["normalize", *command.split()]) == 1
    if message:
        assert_one_line(capsys.readouterr().err, message)
