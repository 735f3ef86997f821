"""The pure parts of the GPU benchmark, and what it says where there is no GPU."""

import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import gpu
from tests.backends import has_cuda


def test_cases_are_large_but_for_one_of_each_kind():
    found = list(gpu.cases())
    assert len(set(map(str, found))) == len(found)
    small = [case for case in found if case.rows == 64 and case.features == 1024]
    assert len(small) == 6
    assert all(case.nbytes >= 2 * gpu.NBYTES for case in found if case not in small)


def test_buffers_exceed_the_cache():
    case = gpu.Case("rms_norm", "float32", 64, 1024)
    assert case.nbytes == 2 * 64 * 1024 * 4
    assert gpu.buffers(case, 50 << 20) * case.nbytes >= gpu.ROTATED * (50 << 20)
    assert gpu.buffers(gpu.Case("rms_norm", "float32", 1 << 16, 4096), 1) == 2
    assert gpu.Case("rms_norm", "float32", 64, 1024, backward=True).nbytes == 3 * 64 * 1024 * 4


def test_summary():
    assert gpu.summary([3.0, 1.0, 2.0], 4_000_000, 4.0) == {"ms": 2.0, "GB/s": 2.0, "of copy": 0.5}


def test_buffers_take_turns():
    call = gpu.rotating(lambda x, dy: (x, dy), [1, 2], [3, 4])
    assert [call() for _ in range(3)] == [(1, 3), (2, 4), (1, 3)]


@pytest.mark.skipif(has_cuda(), reason="there is a GPU")
def test_it_ends_with_a_sentence_where_there_is_no_gpu():
    folder = Path(gpu.__file__).parent.parent
    ended = subprocess.run(
        [sys.executable, "-m", "benchmarks.gpu"], cwd=folder, capture_output=True, text=True, check=False
    )
    assert ended.returncode != 0
    assert "the GPU benchmark cannot run: torch sees no NVIDIA GPU" in ended.stderr
