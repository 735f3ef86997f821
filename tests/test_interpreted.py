"""The CPU kernels run as plain Python too: with the bits of the compiled ones, and not a line of them is never run."""

from __future__ import annotations

import ctypes
import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from anynorm._kernels.cpu.language import interpreted, interpreted_memory
from anynorm._kernels.cpu.language.dtypes import DTYPES, FLOAT64, INTERPRETED, Dtype, lanes_of
from tests import kernel_calls, kernel_lines

pytest.importorskip("llvmlite", reason="needs llvmlite, which compiles the kernels")
if INTERPRETED:
    pytest.skip("nothing is compiled here to compare with", allow_module_level=True)

from anynorm._kernels.cpu.compiler import machine_code
from anynorm._kernels.cpu.language import lanes, tracing

PLAIN = SimpleNamespace(**{**vars(interpreted), **vars(interpreted_memory)})
# The dtype in memory and that in lanes, as the kernels pair them.
PAIRS = [(dtype, "float32") for dtype in ("float16", "bfloat16", "float32")] + [(dtype, "float64") for dtype in DTYPES]


def digests_of(dtypes, *options):
    """Digests of the compiled kernels; what a process prints in which they are interpreted."""
    process = subprocess.Popen(
        [sys.executable, "-W", "error", "-m", "tests.kernel_lines", *dtypes, *options],
        cwd=Path(__file__).parents[1],
        env={**os.environ, "ANYNORM_INTERPRET": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    with process:
        compiled = kernel_calls.digests(dtypes)
        printed, complaints = process.communicate()
    assert process.returncode == 0, complaints
    return compiled, json.loads(printed)


def assert_same(compiled, found):
    assert found["digests"].keys() == compiled.keys()
    assert [name for name, digest in compiled.items() if found["digests"][name] != digest] == []


def test_interpreted_kernels_give_the_bits_of_the_compiled_ones():
    assert_same(*digests_of(["float32"]))


@pytest.mark.thorough
def test_interpreted_kernels_of_every_dtype_and_each_of_their_lines():
    compiled, found = digests_of(kernel_calls.DTYPES, "--lines")
    assert_same(compiled, found)
    assert found["missed"] == {Path(path).name: [] for path in kernel_lines.KERNEL_FILES}


def test_a_digest_tells_bits_apart():
    one = np.float32([1.0, np.nan])
    assert kernel_calls.digest(one) == kernel_calls.digest(np.float32([1.0, -np.nan]))
    assert kernel_calls.digest(one) != kernel_calls.digest(np.nextafter(one, np.float32(2)))
    assert kernel_calls.digest(np.zeros(1)) != kernel_calls.digest(-np.zeros(1))


def test_lanes_names_all_that_is_interpreted():
    others = {"annotations", "compiled", "compiled_memory", "tracing", "Any", "INTERPRETED", "Iterator", "combinations"}
    for name in {name for name in vars(lanes) if not name.startswith("_")} - others:
        assert callable(getattr(PLAIN, name)), name


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
    """What is done to elements at each of three addresses, in the words of compiled or of interpreted lanes."""
    load, splat, store, total = words.load, words.splat, words.store, words.sum_lanes

    def compute(dtype: Dtype, compute_dtype: Dtype, x, y, z, to, nbytes) -> None:
        lanes = lanes_of(dtype)
        a, b, c = (load(address, None, dtype, compute_dtype) for address in (x, y, z))
        sums = words.cell(splat(0.0, compute_dtype, lanes))
        for turn in words.loop(0, 3, 1):
            sums[...] = sums + words.fma(a, b, splat(words.number(turn), compute_dtype, lanes))
        high, low = words.sum_lane_pairs(words.as_lanes(a, FLOAT64), words.as_lanes(b, FLOAT64))
        number = words.fma(total(a), total(b), sum(words.split(total(c))))
        least = words.where(total(a) < total(b), words.smaller(nbytes, 40), words.larger(nbytes, 40))
        for flag in words.cases(total(b) > total(c)):
            words.poke(to + 7 * nbytes, dtype, number + (1.0 if flag else 2.0))
        for step, value in enumerate(
            (
                words.fma(a, b, c),
                words.weighted(a, b, c, a) - words.weighted(a, b, c, None),
                words.where_less(a, b, words.root(words.magnitude(c)), a / b - c),
                words.part(load(x, y, dtype, compute_dtype), 1, 5, splat(2.5, compute_dtype, lanes)),
                splat(words.peek(x, y, dtype), compute_dtype, lanes) * splat(total(a), compute_dtype, lanes),
                words.alike(high, words.as_lanes(a, FLOAT64)) + splat(low, FLOAT64, lanes),
                sums * splat(words.number(least), compute_dtype, lanes),
            )
        ):
            store(to + step * nbytes, dtype, value)

    return compute


@pytest.fixture
def as_machine_code(tmp_path, monkeypatch):
    """Compiles a function of so many integers, as a kernel is, and keeps it for this test alone."""
    monkeypatch.setenv("ANYNORM_CACHE_DIR", str(tmp_path))

    def compiled(function, count):
        address = machine_code.load("words", lambda: tracing.trace("words", function, count))
        return ctypes.CFUNCTYPE(ctypes.c_int64, *[ctypes.c_int64] * count)(address)

    return compiled


@pytest.mark.parametrize(("dtype", "compute_dtype"), PAIRS)
def test_words_agree_on_hard_bits(dtype, compute_dtype, as_machine_code):
    dtypes = DTYPES[dtype], DTYPES[compute_dtype]
    compiled = as_machine_code(lambda *arguments: arithmetic(lanes)(*dtypes, *arguments) or 0, 5)
    plain = interpreted_memory.as_compiled(lambda *arguments: arithmetic(PLAIN)(*dtypes, *arguments) or 0)
    count, at_once = 3200, lanes_of(DTYPES[dtype])
    x, y, z = (hard_bits(dtype, count, seed) for seed in range(3))
    nbytes = at_once * x.itemsize
    for start in range(0, count, at_once):
        results = []
        for compute in (compiled, plain):
            to = np.zeros(8 * at_once, x.dtype)
            addresses = [array[start:].ctypes.data for array in (x, y, z)]
            compute(*addresses, to.ctypes.data, nbytes)
            results.append(to)
        assert [kernel_calls.digest(part) for part in results[0].reshape(8, -1)] == [
            kernel_calls.digest(part) for part in results[1].reshape(8, -1)
        ], start


def test_what_a_value_is_cannot_decide_while_compiling():
    with pytest.raises(TypeError, match="branch with cases"):
        tracing.trace("decides", lambda x: 1 if x > 0 else 0, 1)


def test_streaming_to_the_middle_of_a_cache_line_is_an_error():
    memory = np.zeros(64, np.float32)
    address = -(-memory.ctypes.data // 64) * 64
    interpreted_memory.stream(address, DTYPES["float32"], np.ones(16, np.float32))
    with pytest.raises(ValueError, match="cache line"):
        interpreted_memory.stream(address + 4, DTYPES["float32"], np.ones(16, np.float32))
