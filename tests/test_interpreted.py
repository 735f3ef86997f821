"""The CPU kernels run as plain Python too: with the bits of the compiled ones, and not a line of them is never run."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

numba = pytest.importorskip("numba", reason="the CPU kernels need Numba")
if numba.config.DISABLE_JIT:
    pytest.skip("nothing is compiled here to compare with", allow_module_level=True)

from anynorm._kernels.cpu import interpreted, lanes  # noqa: E402
from anynorm._kernels.cpu.tags import LANES, TAGS, WIDE64  # noqa: E402
from tests import kernel_calls  # noqa: E402

# The dtype in memory and that in lanes, as the kernels pair them.
PAIRS = [(dtype, "float32") for dtype in ("float16", "bfloat16", "float32")] + [(dtype, "float64") for dtype in TAGS]


@pytest.fixture(scope="module")
def both():
    """Digests of the compiled kernels; what a process prints in which they are interpreted."""
    process = subprocess.Popen(
        [sys.executable, "-W", "error", "-m", "tests.kernel_calls"],
        cwd=Path(__file__).parents[1],
        env={**os.environ, "NUMBA_DISABLE_JIT": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    with process:
        compiled = kernel_calls.digests()
        printed, complaints = process.communicate()
    assert process.returncode == 0, complaints
    return compiled, json.loads(printed)


def test_interpreted_kernels_give_the_bits_of_the_compiled_ones(both):
    compiled, found = both
    assert found["digests"].keys() == compiled.keys()
    assert [name for name, digest in compiled.items() if found["digests"][name] != digest] == []


def test_every_line_of_the_kernels_is_run(both):
    assert both[1]["missed"] == {Path(path).name: [] for path in kernel_calls.KERNEL_FILES}


def test_a_digest_tells_bits_apart():
    one = np.float32([1.0, np.nan])
    assert kernel_calls.digest(one) == kernel_calls.digest(np.float32([1.0, -np.nan]))
    assert kernel_calls.digest(one) != kernel_calls.digest(np.nextafter(one, np.float32(2)))
    assert kernel_calls.digest(np.zeros(1)) != kernel_calls.digest(-np.zeros(1))


def test_lanes_names_all_that_is_interpreted():
    listed = {name for name in vars(lanes) if not name.startswith("_")} - {"annotations", "compiled", "compiled_memory"}
    for name in listed - {"Any", "config"}:
        assert callable(getattr(interpreted, name)), name


def hard_bits(dtype, count, seed):
    """Bits at random: numbers of all magnitudes, zeros, infinities and NaN; half of them near 1, where sums cancel."""
    made = np.random.default_rng(seed)
    wide = made.integers(-8, 9, count) * 2.0 ** made.integers(-12, 1, count)
    numbers = kernel_calls.DTYPES[dtype](wide) if dtype != "bfloat16" else wide.astype(kernel_calls.DTYPES[dtype])
    bits = np.frombuffer(made.bytes(numbers.nbytes), numbers.dtype)
    specials = np.asarray([0.0, -0.0, np.inf, -np.inf, np.nan, 1e-45, 1.0, 65504.0], np.float64).astype(numbers.dtype)
    numbers = np.where(made.random(count) < 0.5, numbers, bits)
    return np.where(made.random(count) < 0.1, specials[made.integers(0, 8, count)], numbers)


def arithmetic(words):
    """What is done to LANES elements at each of three addresses, in the words of compiled or of interpreted lanes."""
    fma, load, root, splat, store = words.fma, words.load, words.root, words.splat, words.store
    total, weighted, where_less, magnitude = words.total, words.weighted, words.where_less, words.magnitude
    peek, poke, total_pair, as_lanes = words.peek, words.poke, words.total_pair, words.as_lanes

    def compute(tag, wide, x, y, z, to, nbytes):
        a, b = load(x, None, tag, wide, None, 0.0), load(y, None, tag, wide, None, 0.0)
        c = load(z, None, tag, wide, None, 0.0)
        store(to, tag, fma(a, b, c), None)
        store(to + nbytes, tag, weighted(a, b, c, a), None)
        store(to + 2 * nbytes, tag, where_less(a, b, root(magnitude(c)), a / b - c), None)
        store(to + 3 * nbytes, tag, load(x, y, tag, wide, 5, 2.5), None)
        store(to + 4 * nbytes, tag, splat(peek(x, y, tag), wide) * splat(total(a), wide), 7)
        poke(to + 5 * nbytes, tag, fma(total(a), total(b), total(c)))
        high, low = total_pair(as_lanes(a, WIDE64), as_lanes(b, WIDE64))
        store(to + 6 * nbytes, tag, splat(high, wide) + splat(low, wide), None)

    return compute


@pytest.mark.parametrize(("dtype", "wide"), PAIRS)
def test_words_agree_on_hard_bits(dtype, wide):
    compiled = numba.njit(error_model="numpy")(arithmetic(lanes))
    plain = interpreted.as_compiled(arithmetic(interpreted))
    count = 200 * LANES
    x, y, z = (hard_bits(dtype, count, seed) for seed in range(3))
    nbytes = LANES * x.itemsize
    with np.errstate(all="ignore"):
        for start in range(0, count, LANES):
            results = []
            for compute in (compiled, plain):
                to = np.zeros(7 * LANES, x.dtype)
                addresses = [array[start:].ctypes.data for array in (x, y, z)]
                compute(TAGS[dtype], TAGS[wide], *addresses, to.ctypes.data, nbytes)
                results.append(to)
            assert [kernel_calls.digest(part) for part in results[0].reshape(7, -1)] == [
                kernel_calls.digest(part) for part in results[1].reshape(7, -1)
            ], start


def test_streaming_to_the_middle_of_a_cache_line_is_an_error():
    memory = np.zeros(LANES + 16, np.float32)
    address = -(-memory.ctypes.data // 64) * 64
    interpreted.stream(address, TAGS["float32"], np.ones(LANES, np.float32))
    with pytest.raises(ValueError, match="cache line"):
        interpreted.stream(address + 4, TAGS["float32"], np.ones(LANES, np.float32))
