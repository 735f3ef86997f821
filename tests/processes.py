"""Python in processes of their own, and work in threads."""

import os
import subprocess
import sys
import threading
from pathlib import Path

import anynorm
from tests.tolerances import BOUNDS

PACKAGE = Path(anynorm.__file__).parent

# What a script may begin with: a large array, and a check of the norms of that and of a small part of it.
# Results lie between -8 and 8.
PREPARE = f"""
import os, sys, threading, numpy, anynorm
x = numpy.random.default_rng(0).standard_normal((2000, 1200)).astype(numpy.float32)
assert x.nbytes > 8 << 20
def check():
    for dtype in (numpy.float32, numpy.float64):
        wide = x.astype(numpy.float64)
        centred = wide - wide.mean(axis=1, keepdims=True)
        y = centred / numpy.sqrt((centred ** 2).mean(axis=1, keepdims=True) + 1e-5)
        for rows in (slice(2), slice(None)):
            error = numpy.abs(anynorm.layer_norm(x[rows].astype(dtype)) - y[rows]).max()
            assert error <= {BOUNDS["float32"] * 2.0**-21}, error
"""


def script(code, *options, path=PACKAGE.parent, **environment):
    """Run Python in a process of its own, which finds packages at a path first; return the words it prints."""
    paths = [str(path), *filter(None, [os.environ.get("PYTHONPATH")])]
    result = subprocess.run(
        [sys.executable, "-P", *options, "-c", code], capture_output=True, text=True, check=False, timeout=300,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(paths)} | environment,
    )  # fmt: skip
    sys.stderr.write(result.stderr)  # of a thread, say, that ended with an exception; shown where a test fails
    assert result.returncode == 0, result.stderr
    return result.stdout.split()


def fresh(code, **environment):
    """The same, where a warning is an error."""
    return script(code, "-W", "error", **environment)


def in_threads(work, numbers):
    """Call ``work(number)`` for each number in a thread of its own, all at once; return when all have ended."""
    threads = [threading.Thread(target=work, args=(number,)) for number in numbers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
