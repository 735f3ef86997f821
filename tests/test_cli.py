"""The command line: its results bit for bit, its refusals, and what each run leaves on disk."""

import os
import re
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path
from unittest import mock

import numpy as np
import pytest

import anynorm
from anynorm import _files, cli

NORMS = {"layer": anynorm.layer_norm, "rms": anynorm.rms_norm, "scale": anynorm.scale_norm}
FLOATS = ("float16", "float32", "float64")

posix = pytest.mark.skipif(os.name != "posix", reason="file modes, symlinks, signals and limits as POSIX has them")


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def blocks(monkeypatch):
    """Blocks of 64 bytes, and mocks that count those written and those that moments are taken of."""
    monkeypatch.setattr(_files, "_BLOCK_NBYTES", 64)
    with (
        mock.patch.object(_files._Work, "_write", autospec=True, side_effect=_files._Work._write) as written,
        mock.patch.object(_files, "moments", side_effect=_files.moments) as measured,
    ):
        yield written, measured


@pytest.fixture(params=[False, True], ids=["new", "forced"])
def force(request):
    """The option to overwrite y.npy, which then exists, or neither of them."""
    if request.param:
        Path("y.npy").write_bytes(b"precious")
    return ["--force"] if request.param else []


def save_x(shape=(9, 6), dtype="float32", order="C"):
    x = np.asarray(np.random.default_rng(0).standard_normal(shape) + 3, dtype=dtype, order=order)
    np.save("x.npy", x)
    return x


def parametrized(norm, x, axis):
    """Options with files for each parameter of a norm, and the function with the same parameters."""
    if norm == "scale":
        return ["--scale", "2.5", "--eps", "20"], partial(NORMS[norm], scale=2.5, eps=20.0)
    shape = [x.shape[one] for one in sorted(one % x.ndim for one in axis)]
    weight, bias = np.random.default_rng(1).standard_normal((2, *shape))
    bias = np.asfortranarray(bias, dtype="float32")
    np.save("w.npy", weight)
    np.save("b.npy", bias)
    options = ["--weight", "w.npy", "--bias", "b.npy", "--eps", "20"]
    return options, partial(NORMS[norm], weight=weight, bias=bias, eps=20.0)


def normalize(*options, target="y.npy"):
    return cli.main(["normalize", "x.npy", target, "--norm", "layer", *options])  # of two norms, the last counts


def assert_same_bits(got, want):
    assert (got.dtype, got.shape) == (want.dtype, want.shape)
    assert got.tobytes() == want.tobytes()


def assert_few_ulp(got, want):
    """Each is within 2 ulp of the exact result."""
    assert (got.dtype, got.shape) == (want.dtype, want.shape)
    np.testing.assert_allclose(got, want, rtol=0, atol=4 * np.spacing(np.abs(want).max()))


def contents(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def assert_one_line(error, message):
    assert re.fullmatch(rf"anynorm: .*{re.escape(message)}.*\n", error)


def assert_refused(capsys, folder, message, *arguments):
    before = contents(folder)
    assert cli.main(["normalize", *arguments]) == 1
    assert_one_line(capsys.readouterr().err, message)
    assert contents(folder) == before


WHOLE = [
    ((9, 6), "C", (-1,)), ((9, 5, 6), "C", (-1,)), ((30, 3, 2), "C", (-2, -1)), ((30, 3, 2), "C", (1,)),
    ((6, 9), "F", (0,)), ((6, 5, 4), "F", (0,)), ((2, 3, 30), "F", (0, 1)), ((2, 3, 30), "F", (-2,)),
]  # fmt: skip
CUT = [
    ((150,), "C", (-1,)), ((3, 150), "C", (-1,)), ((30, 6), "C", (0,)), ((30, 6), "F", (-1,)), ((30, 6), "F", (0, 1)),
    ((2, 10, 10), "C", (-2, -1)), ((2, 30, 3), "C", (1,)), ((6, 5, 4), "C", (0, 1)), ((6, 5, 4), "C", (0, 2)),
    ((6, 5, 4), "F", (-1,)), ((6, 5, 4), "F", (0, -1)), ((6, 5, 4), "C", (2, 0, 1)),
]  # fmt: skip


@pytest.mark.parametrize("with_parameters", [False, True])
@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize(("shape", "order", "axis"), WHOLE + CUT)
def test_result(blocks, shape, order, axis, norm, dtype, with_parameters):
    x = save_x(shape, dtype, order)
    options, function = parametrized(norm, x, axis) if with_parameters else ([], NORMS[norm])
    assert normalize("--norm", norm, f"--axis={','.join(map(str, axis))}", *options) == 0
    y = np.load("y.npy")
    cut = (shape, order, axis) in CUT
    (assert_few_ulp if cut else assert_same_bits)(y, function(x, axis=axis))
    assert y.flags.f_contiguous == x.flags.f_contiguous
    written, measured = (counter.call_count for counter in blocks)
    assert written > 1
    assert measured > 1 if cut else measured == 0


@pytest.mark.parametrize("dtype", [None, *FLOATS])
@pytest.mark.parametrize("dtype_of_file", [*FLOATS, ">f2", ">f4", ">f8"])
def test_dtype(blocks, dtype_of_file, dtype):
    x = save_x((40, 3), dtype_of_file)
    assert normalize(*(["--dtype", dtype] if dtype else [])) == 0
    wide = x.astype(np.promote_types(dtype_of_file, dtype or dtype_of_file))
    assert_same_bits(np.load("y.npy"), anynorm.layer_norm(wide).astype(dtype or dtype_of_file))


@pytest.mark.parametrize("axis", ["0", "-1"])
@pytest.mark.parametrize("shape", [(0,), (0, 3), (3, 0), (2, 0, 3)])
def test_empty_array(shape, axis):
    save_x(shape)
    assert normalize("--axis", axis, "--dtype", "float64") == 0
    assert_same_bits(np.load("y.npy"), np.empty(shape))


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("norm", NORMS)
def test_nan_and_inf_make_their_rows_nan(blocks, norm, dtype, capsys):
    x = save_x((30, 6), dtype)
    x[3, 0], x[20, 1], x[4, 2], x[25, 2] = np.inf, np.nan, np.inf, -np.inf
    np.save("x.npy", x)
    assert normalize("--norm", norm, "--axis", "0") == 0
    y = np.load("y.npy")
    assert np.isnan(y[:, :3]).all()
    assert_few_ulp(y[:, 3:], NORMS[norm](x[:, 3:], axis=0))
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("target", ["x.npy", "y.npy"])
def test_overwrites_only_with_force(blocks, folder, capsys, target, axis):
    x = save_x((30, 6))
    Path("y.npy").write_bytes(b"precious")
    assert_refused(capsys, folder, "--force", "x.npy", target, "--norm", "layer", "--axis", str(axis))
    assert normalize("--axis", str(axis), "--force", target=target) == 0
    assert_few_ulp(np.load(target), anynorm.layer_norm(x, axis=axis))
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


def save_bad_files():
    x = save_x()
    npy, shape = Path("x.npy").read_bytes(), b"(9, 6), }" + b" " * 20
    for name, content in {
        "text": b"1, 2, 3\n",
        "nothing": b"",
        "cut": npy[:-1],
        "unclosed": npy.replace(shape, b"(9, 6" + b" " * 24),
        "immense": npy.replace(shape, b"(9" + b"0" * 20 + b", 6), }"),
        "nested": npy.replace(b"'<f4'", b"('<f4',(2,))").replace(shape, b"(9, 3), }" + b" " * 13),
    }.items():
        Path(f"{name}.npy").write_bytes(content)
    np.savez("archive.npz", x)
    np.save("objects.npy", np.asarray([{}, None]))
    np.save("integers.npy", x.astype(int))
    np.save("complex.npy", x.astype(complex))
    np.save("no_axes.npy", x[0, 0])
    np.save("large.npy", np.asarray([1, 1, 1, 1, 1, 1e6]))
    Path("folder").mkdir()


UNREADABLE = [
    "text.npy",
    "nothing.npy",
    "cut.npy",
    "archive.npz",
    "objects.npy",
    "unclosed.npy",
    "immense.npy",
    "nested.npy",
]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        *[(f"{name} y.npy", f"{name} is not a readable .npy file") for name in UNREADABLE],
        ("integers.npy y.npy", "real floating dtype"),
        ("complex.npy y.npy", "real floating dtype"),
        ("no_axes.npy y.npy", "at least one axis"),
        ("none.npy y.npy", "none.npy: No such file"),
        ("folder y.npy", "folder"),
        ("x.npy none/y.npy", "none is not a directory"),
        ("x.npy x.npy/y.npy", "x.npy is not a directory"),
        ("x.npy folder", "folder is a directory"),
        ("x.npy y.npy --weight x.npy", "weight must have the shape of the normalized axes, (6,)"),
        ("x.npy y.npy --weight none.npy", "none.npy: No such file"),
        ("x.npy y.npy --scale 2", "not --scale"),
        ("x.npy y.npy --norm scale --weight large.npy", "not --weight or --bias"),
        ("x.npy y.npy --eps -1", "eps must be finite and not negative"),
        ("x.npy y.npy --axis 2", "axis 2 does not fit"),
        ("x.npy y.npy --weight large.npy --dtype float16", "does not fit in float16"),
    ],
)
def test_refuses(blocks, folder, capsys, force, arguments, message):
    save_bad_files()
    assert_refused(capsys, folder, message, "--norm", "layer", *arguments.split(), *force)


def start(*options, first="", stderr=subprocess.PIPE):
    code = f"{first}\nimport runpy; runpy.run_module('anynorm.cli', run_name='__main__')"
    command = [sys.executable, "-c", code, "normalize", "x.npy", "y.npy", "--norm", "layer", *options]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=stderr, text=True)


# Ctrl-C is given back its meaning, which a shell takes from jobs in its background, and SIGHUP, which nohup takes.
SLOW = """
import signal, time, anynorm._files as files
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)
files._Work._write = lambda work, y: (print("ready", flush=True), time.sleep(60))
"""
# Set by the child itself: preexec_fn would fork a process that may have threads.
LIMITED = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))"


@posix
@pytest.mark.parametrize(
    ("first", "sent", "status", "message"),
    [
        (SLOW, "SIGINT", 130, "interrupted; nothing was written"),
        (SLOW, "SIGTERM", 130, "interrupted; nothing was written"),
        (SLOW, "SIGHUP", 130, "interrupted; nothing was written"),
        (LIMITED, None, 1, "File too large"),
        (LIMITED + "; import os; vars(os).pop('posix_fallocate', None)", None, 1, "File too large"),
    ],
    ids=["SIGINT", "SIGTERM", "SIGHUP", "no space", "no space, unreserved"],
)
def test_stopped_on_the_way(folder, force, first, sent, status, message):
    save_x((1000, 6))
    before = contents(folder)
    process = start(*force, first=first)
    if sent:
        assert process.stdout.readline() == "ready\n"
        assert len(list(folder.glob(".anynorm-*.part"))) == 1
        process.send_signal(getattr(signal, sent))
    _, error = process.communicate(timeout=50)
    assert process.returncode == status
    assert_one_line(error, message)
    assert contents(folder) == before


def test_progress_bar_on_a_terminal():
    pty, termios = (pytest.importorskip(name, reason="no pseudo-terminals here") for name in ("pty", "termios"))
    pytest.importorskip("tqdm", reason="the bar is tqdm's")
    save_x()
    ours, theirs = pty.openpty()
    with open(ours, "rb", 0) as shown, open(theirs, "wb", 0) as terminal:
        termios.tcsetwinsize(terminal, (24, 80))
        process = start(stderr=terminal)
        process.communicate(timeout=60)
        os.set_blocking(ours, False)
        assert b"x.npy:   0%" in (shown.read(1 << 16) or b"")
    assert process.returncode == 0


def test_no_tqdm(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "tqdm", None)
    save_x()
    assert normalize() == 0
    assert capsys.readouterr() == ("", "")


def test_info(monkeypatch, capsys):
    for missing in ("torch", "tqdm"):
        monkeypatch.setitem(sys.modules, missing, None)
    assert cli.main(["info"]) == 0
    out, error = capsys.readouterr()
    lines = [line.strip().split(maxsplit=1) for line in out.splitlines()]
    assert error == ""
    assert out.startswith(f"anynorm {anynorm.__version__}, Python ")
    assert ["numpy", np.__version__] in lines
    assert ["torch", "not installed; pip install torch"] in lines
    assert ["definition", "the array API definition: any library, any device; active"] in lines
    assert "no progress bar: pip install 'anynorm[cli]'" in out


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
def test_sighup_stays_ignored_under_nohup():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with cli._terminable():
            os.kill(os.getpid(), signal.SIGHUP)
    finally:
        signal.signal(signal.SIGHUP, before)


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
