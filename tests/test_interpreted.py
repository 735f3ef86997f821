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
from anynorm._kernels.cpu.language.dtypes import BFLOAT16, BY_CODE, CODES, FLOAT32, FLOAT64, INTERPRETED, Dtype
from tests import kernel_calls, kernel_lines

pytest.importorskip("llvmlite", reason="needs llvmlite, which compiles the kernels")
if INTERPRETED:
    pytest.skip("nothing is compiled here to compare with", allow_module_level=True)

from anynorm._kernels.cpu.compiler import machine_code
from anynorm._kernels.cpu.kernels.pairs import sum_lane_pairs
from anynorm._kernels.cpu.language import arithmetic, compiled, compiled_memory, flow, memory, tracing

COMPILED = SimpleNamespace(**{**vars(tracing), **vars(compiled), **vars(compiled_memory)})
PLAIN = SimpleNamespace(**{**vars(interpreted), **vars(interpreted_memory)})
# The dtype in memory and that in lanes, as the kernels pair them.
PAIRS = [(dtype, "float32") for dtype in ("float16", "bfloat16", "float32")] + [(dtype, "float64") for dtype in CODES]


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
    assert found["missed"] == {kernel_lines.name_of(path): [] for path in kernel_lines.KERNEL_FILES}


def test_a_digest_tells_bits_apart():
    one = np.float32([1.0, np.nan])
    assert kernel_calls.digest(one) == kernel_calls.digest(np.float32([1.0, -np.nan]))
    assert kernel_calls.digest(one) != kernel_calls.digest(np.nextafter(one, np.float32(2)))
    assert kernel_calls.digest(np.zeros(1)) != kernel_calls.digest(-np.zeros(1))


def test_each_word_is_interpreted_too():
    for words, plain in ((flow, interpreted), (arithmetic, interpreted), (memory, interpreted_memory)):
        modules = {module.__name__ for module in (tracing, compiled, compiled_memory)}
        names = [name for name, word in vars(words).items() if getattr(word, "__module__", None) in modules]
        assert len(names) >= 4
        assert [name for name in names if not callable(getattr(plain, name, None))] == []


def hard_bits(dtype, count, seed):
    """Bits at random: numbers of all magnitudes, zeros, infinities and NaN; half of them near 1, where sums cancel."""
    made = np.random.default_rng(seed)
    wide = made.integers(-8, 9, count) * 2.0 ** made.integers(-12, 1, count)
    numbers = kernel_calls.DTYPES[dtype](wide) if dtype != "bfloat16" else wide.astype(kernel_calls.DTYPES[dtype])
    bits = np.frombuffer(made.bytes(numbers.nbytes), numbers.dtype)
    specials = np.asarray([0.0, -0.0, np.inf, -np.inf, np.nan, 1e-45, 1.0, 65504.0], np.float64).astype(numbers.dtype)
    numbers = np.where(made.random(count) < 0.5, numbers, bits)
    return np.where(made.random(count) < 0.1, specials[made.integers(0, 8, count)], numbers)


def sum_of(lanes, words):
    """As `sum_lanes`, which has the words of compiled lanes here."""
    while len(lanes) > 1:
        lanes = lanes[: len(lanes) // 2] + lanes[len(lanes) // 2 :]
    return words.as_lanes(lanes, FLOAT64)[0]


def calculate(words):
    """What is done to elements at each of three addresses, in the words of compiled or of interpreted lanes."""
    load, splat, store, where = words.load, words.splat, words.store, words.where

    def calculated(dtype: Dtype, compute_dtype: Dtype, x, y, z, to, nbytes) -> int:
        lanes = dtype.lanes
        a, b, c = (load(address, dtype, compute_dtype) for address in (x, y, z))
        sum_of_a, sum_of_b, sum_of_c = (sum_of(one, words) for one in (a, b, c))
        a_by_parity = load(x, dtype, compute_dtype, residual=y, by_parity=True)
        sums = words.cell(splat(0.0, compute_dtype, lanes))
        for turn in words.loop(0, 3, 1):
            sums[...] = sums + words.fma(a, b, splat(words.number(turn), compute_dtype, lanes))
        high, low = sum_lane_pairs(words.as_lanes(a, FLOAT64), words.as_lanes(b, FLOAT64))
        number = words.fma(sum_of_a, sum_of_b, sum(words.split(sum_of_c)))
        least = where(sum_of_a < sum_of_b, where(nbytes < 40, nbytes, 40), where(nbytes < 40, 40, nbytes))
        for flag in words.cases(sum_of_b > sum_of_c):
            store(to + 9 * nbytes, dtype, number + (1.0 if flag else 2.0))
        for step, value in enumerate(
            (
                words.fma(a, b, c),
                where((a < b) & (b >= 1.0) | (c == 0.0), words.root(words.magnitude(c)), 2.5),
                -a / b - c,
                words.part(load(x, dtype, compute_dtype, lanes, y), 1, 5, splat(2.5, compute_dtype, lanes)),
                splat(words.peek(x, dtype, y), compute_dtype, lanes) * splat(sum_of_a, compute_dtype, lanes),
                words.as_lanes(high - words.as_lanes(a, FLOAT64) * low, compute_dtype),
                sums * splat(words.number(least), compute_dtype, lanes),
                words.in_order(a_by_parity, dtype) + a,
                words.rounded(a * b, dtype) - words.rounded(a * c, dtype, to_even=dtype is not BFLOAT16),
            )
        ):
            store(to + step * nbytes, dtype, value)
        return 0

    return calculated


@pytest.fixture
def as_machine_code(tmp_path, monkeypatch):
    """Compiles a function of so many integers, as a kernel is, and keeps it for this test alone."""
    monkeypatch.setenv("ANYNORM_CACHE_DIR", str(tmp_path))

    def compile_words(function, count):
        address = machine_code.load("words", lambda: tracing.trace("words", function, count))
        return ctypes.CFUNCTYPE(ctypes.c_int64, *[ctypes.c_int64] * count)(address)

    return compile_words


@pytest.mark.parametrize(("name", "compute_name"), PAIRS)
def test_words_agree_on_hard_bits(name, compute_name, as_machine_code):
    dtypes = dtype, _ = BY_CODE[CODES[name]], BY_CODE[CODES[compute_name]]
    as_compiled = as_machine_code(lambda *arguments: calculate(COMPILED)(*dtypes, *arguments), 5)
    plain = interpreted_memory.as_compiled(lambda *arguments: calculate(PLAIN)(*dtypes, *arguments))
    count, at_once = 3200, dtype.lanes
    x, y, z = (hard_bits(name, count, seed) for seed in range(3))
    nbytes = at_once * x.itemsize
    for start in range(0, count, at_once):
        results = []
        for compute in (as_compiled, plain):
            to = np.zeros(10 * at_once, x.dtype)
            addresses = [array[start:].ctypes.data for array in (x, y, z)]
            compute(*addresses, to.ctypes.data, nbytes)
            results.append(to)
        assert [kernel_calls.digest(part) for part in results[0].reshape(10, -1)] == [
            kernel_calls.digest(part) for part in results[1].reshape(10, -1)
        ], start


def test_bfloat16_is_the_nearest_number(as_machine_code):
    """Of float32 on both sides of each middle, and there; each NaN is the same one."""
    lanes, halves = BFLOAT16.lanes, np.asarray([0, 1, 0x7FFF, 0x8000, 0x8001, 0xFFFF], np.uint32)
    bits = (np.arange(1 << 16, dtype=np.uint32)[:, None] << 16 | halves).ravel()
    x, to, up = bits.view(np.float32), np.zeros(bits.size, np.uint16), np.zeros((2, bits.size), np.float32)

    def narrow(source, one, target, even, larger, count) -> int:
        unit = COMPILED.splat(COMPILED.peek(one, FLOAT32), FLOAT32, lanes)
        for i in COMPILED.loop(0, count, lanes):
            value = COMPILED.load(source + i * 4, FLOAT32, FLOAT32, lanes) * unit  # which makes NaN quiet
            COMPILED.store(target + i * 2, BFLOAT16, value)
            COMPILED.store(even + i * 4, FLOAT32, COMPILED.rounded(value, BFLOAT16))
            COMPILED.store(larger + i * 4, FLOAT32, COMPILED.rounded(value, BFLOAT16, to_even=False))
        return 0

    as_machine_code(narrow, 6)(*(one.ctypes.data for one in (x, np.ones(1, np.float32), to, *up)), bits.size)
    # In integers: what lies beyond the largest number becomes infinite, as it is the next number but for its name.
    is_number, upper, lower = ~np.isnan(x), bits >> 16, bits & 0xFFFF
    is_up = (lower > 0x8000) | (lower == 0x8000) & (upper % 2 == 1)
    assert (to == upper + is_up)[is_number].all()
    assert (up[0].view(np.uint32) == (upper + is_up) << 16)[is_number].all()
    assert (up[1].view(np.uint32) == (upper + (lower >= 0x8000)) << 16)[is_number].all()
    assert (to == 0x7FC0)[~is_number].all()
    assert np.isnan(up[0])[~is_number].all()


def test_what_a_value_is_cannot_decide_while_compiling():
    with pytest.raises(TypeError, match="branch with cases"):
        tracing.trace("decides", lambda x: 1 if x > 0 else 0, 1)


def test_streaming_to_the_middle_of_a_cache_line_is_an_error():
    memory = np.zeros(64, np.float32)
    address = -(-memory.ctypes.data // 64) * 64
    interpreted_memory.stream(address, FLOAT32, np.ones(16, np.float32))
    with pytest.raises(ValueError, match="cache line"):
        interpreted_memory.stream(address + 4, FLOAT32, np.ones(16, np.float32))
