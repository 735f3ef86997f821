"""Mutated headers; `python -m benchmarks.files_fuzz` tries many more of them."""

import io
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from anynorm._files.formats import npy
from tests.backends import thorough_but

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="limits and counts of memory as Linux has them")


@pytest.mark.parametrize("headers", thorough_but(50, of=[50, 300]))
def test_mutated_headers_do_no_harm(headers):
    command = [sys.executable, "-m", "benchmarks.files_fuzz", "--headers", str(headers), "--seed", "0"]
    root = Path(__file__).parents[1]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("none did harm") == 8


def test_no_more_is_read_than_a_header_may_hold():
    class File(io.BytesIO):
        most = 0

        def read(self, size=-1):
            self.most = max(self.most, size)
            return super().read(size)

    file = File(b"\x93NUMPY\x02\x00" + (2**32 - 1).to_bytes(4, "little") + b"{" * 100)
    with pytest.raises(ValueError, match="claims to be 4294967295 bytes long"):
        npy.read_header(file, Path("x.npy"))
    assert file.most <= 16
    np.save(good := io.BytesIO(), np.zeros((2, 3)))
    good.seek(0)
    assert npy.read_header(good, Path("x.npy")).arrays[0].shape == (2, 3)
