"""Files for the command line to normalize, and what to ask of it and of the folder afterwards."""

import os
import re
import subprocess
import sys
from functools import partial

import numpy as np
import pytest

import anynorm
from anynorm import cli
from anynorm._files.job import ArrayJob

NORMS = {"layer": anynorm.layer_norm, "rms": anynorm.rms_norm, "scale": anynorm.scale_norm}
FLOATS = ("float16", "float32", "float64")


# Words of Python, and names of arguments of its functions.
PYTHON = re.compile(
    r"(?<![-\w])(asarray|attribute|argument|builtins|bytes-like|class|dict|dtype\(|Errno|float\(|got|int|list\(|"
    r"ndarray|None|NoneType|numpy|object|pass x|str|tuple|utf|(axis|bias|eps|scale|weight|x) must|x of|\w+Error)\b"
)


def save_x(shape=(9, 6), dtype="float32", order="C"):
    x = np.asarray(np.random.default_rng(0).standard_normal(shape) + 3, dtype=dtype, order=order)
    np.save("x.npy", x)
    return x


def deviates(shape, dtype="float32", seed=0):
    return (np.random.default_rng(seed).standard_normal(shape) + 3).astype(dtype)


def wider(x, dtype):
    """In what a result of another dtype is computed."""
    if x.dtype == dtype:
        return x
    nbytes = max(x.dtype.itemsize, dtype.itemsize)
    return x.astype("float32" if nbytes == 2 else f"float{8 * nbytes}")  # float16 and bfloat16 have nothing in common


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


def in_place(*options, source="x.npy"):
    return cli.main(["normalize", source, "--in-place", "--norm", "layer", *options])


def meanwhile(monkeypatch, change):
    """Have another program change something once, while the second block of a file is at work or a later one."""
    really, calls = ArrayJob.widened, []

    def widened(task, x):
        calls.append(task)
        if len(calls) == 2:
            change()
        return really(task, x)

    monkeypatch.setattr(ArrayJob, "widened", widened)


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
    """One line that holds the message, and no words of Python but where it tells what to do in it."""
    assert not PYTHON.search(error.partition(", as numpy.save writes")[0]), error
    assert re.fullmatch(rf"anynorm: .*{re.escape(message)}.*\n", error)


def start(*arguments, first="", stderr=subprocess.PIPE, stdin=None, text=True):
    """The command in a process of its own, which begins with some code; nothing is compiled in it."""
    code = f"{first}\nimport runpy; runpy.run_module('anynorm', run_name='__main__')"
    command = [sys.executable, "-c", code, "normalize", "--norm", "layer", *arguments]
    quick = os.environ | {"ANYNORM_KERNEL": "definition"}
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=stderr, stdin=stdin, text=text, env=quick)


def assert_refused(capsys, folder, message, *arguments):
    capsys.readouterr()
    before = contents(folder)
    assert cli.main(["normalize", *arguments]) == 1
    assert_one_line(capsys.readouterr().err, message)
    assert contents(folder) == before


def written_by_arrow(table, path, **options):
    """Write a table as .parquet; a test of what an older Arrow cannot write is skipped."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        pq.write_table(table, path, **options)
    except pa.ArrowNotImplementedError as error:
        pytest.skip(f"pyarrow {pa.__version__}: {error}")
