"""The bits of results through the CPU kernels are those that are written down, on every processor.

They are no promise to users from one release to the next. But a change of how kernels are compiled or called is to
leave them alone. One that changes them says so, and puts what the test then shows into the file.
"""

import json
import platform
import subprocess
import sys
from pathlib import Path

import pytest

from tests import kernel_calls
from tests.backends import needs_llvmlite, thorough_but
from tests.kernel_rows import numbers

ROOT = Path(__file__).parent.parent
WRITTEN = json.loads((ROOT / "tests" / "data" / "kernel_bits.json").read_text())


@needs_llvmlite
@pytest.mark.parametrize("dtype", thorough_but("float32", "bfloat16", of=kernel_calls.DTYPES))
def test_results_have_the_bits_that_are_written_down(dtype):
    found = kernel_calls.by_kind(kernel_calls.digests([dtype]))
    there = {kind.__name__ for kind in kernel_calls.KINDS}  # without torch there are no tensors
    assert found == {dtype: {kind: digest for kind, digest in WRITTEN[dtype].items() if kind in there}}


# Vectors of 256 bits, for an x86 processor of 2013.
AS_IN_2013 = """
import json, sys
from llvmlite import binding
features = binding.get_host_cpu_features()
for name in features:
    features[name] = features[name] and not name.startswith(("avx512", "avx10", "evex512"))
binding.get_host_cpu_name = lambda: "x86-64-v3"
binding.get_host_cpu_features = lambda: features
from tests import kernel_calls
print(json.dumps(kernel_calls.by_kind(kernel_calls.digests(sys.argv[1:]))))
"""


@needs_llvmlite
@pytest.mark.thorough
@pytest.mark.skipif(platform.machine().lower() not in ("x86_64", "amd64"), reason="needs an x86 processor")
def test_an_older_processor_has_the_same_bits():
    command = [sys.executable, "-c", AS_IN_2013, *kernel_calls.DTYPES]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == WRITTEN


def test_the_numbers_are_the_same_on_every_machine():
    assert kernel_calls.digest(numbers((3, 33), "float64", 1)) == "f630520afa54ce99"


def test_a_digest_of_a_kind_tells_each_call_apart():
    found = {"float64 rows: 1": "a", "float64 rows: extreme": "b", "float32 rows: extreme": "c"}
    whole = kernel_calls.by_kind(found)
    for name in found:
        assert kernel_calls.by_kind(found | {name: "d"}) != whole
