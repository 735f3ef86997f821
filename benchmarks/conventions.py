"""Time norms by conventions beside the default, in one process and in turn, on one thread.

    python -m benchmarks.conventions
    python -m benchmarks.conventions --only bfloat16 --seconds 1

A ratio is the median, over rounds, of the time by a convention by that of the default with the same arguments; the
bound is 1.05. Results are written into given arrays, and each is compared with the definition's before it is timed.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Iterator
from itertools import product
from typing import Any

import numpy

import anynorm
from anynorm import use_kernel

BOUND = 1.05
SHAPES = ((1, 768), (64, 768), (512, 1024), (4096, 1024), (16384, 768))
DTYPES = ("float16", "bfloat16", "float32")
# Those of a kernel of their own.
NAMES = {
    "rms_norm": ("llama", "onnx", "rmsnorm_paper", "x_transformers"),
    "layer_norm": ("onnx", "nemotron"),
    "scale_norm": ("x_transformers",),
}
LEAST_SECONDS = 5e-4  # of what is timed at once
DIFFERENT = 0.002  # of elements at most: where float32 lies next to the middle of two numbers of 16 bits


def cases(only: str) -> Iterator[tuple[str, str, tuple[int, int], str]]:
    """Norm, dtype, shape and convention of each line."""
    for norm, dtype, shape in product(NAMES, DTYPES, SHAPES):
        yield from ((norm, dtype, shape, name) for name in NAMES[norm] if only in f"{norm} {dtype} {shape} {name}")


def arguments(norm: str, dtype: str, shape: tuple[int, int]) -> tuple[Any, ...]:
    """An array, and the parameters that the norm has mostly."""
    if dtype == "bfloat16":
        from ml_dtypes import bfloat16 as kind
    else:
        kind = numpy.dtype(dtype)
    rng = numpy.random.default_rng(0)
    x, weight, bias = (rng.standard_normal(size).astype(kind) for size in (shape, shape[1], shape[1]))
    return {"rms_norm": (x, weight), "layer_norm": (x, weight, bias), "scale_norm": (x, 2.0)}[norm]


def require_right(norm: Callable[..., Any], given: tuple[Any, ...], name: str) -> None:
    """Raise where more elements differ from the definition's than may."""
    few = given[0][:64]
    with use_kernel("definition"):
        expected = norm(few, *given[1:], convention=name)
    error = numpy.abs(norm(few, *given[1:], convention=name).astype(float) - expected.astype(float))
    wrong = error > (2.0**-20 if few.dtype == numpy.float32 else 0.0)
    if wrong.mean() > DIFFERENT:
        raise AssertionError(f"{norm.__name__} by {name} of {few.dtype}: {wrong.mean():.4f} of the elements differ")


def calls(
    norm: Callable[..., Any], given: tuple[Any, ...], name: str, shape: tuple[int, int]
) -> tuple[Callable[[], Any], Callable[[], Any]]:
    """By the convention and by the default: one row as a caller writes it, more of them into an array."""
    if shape[0] > 1:
        out = numpy.empty_like(given[0])
        return lambda: norm(*given, out=out, convention=name), lambda: norm(*given, out=out)
    if len(given) == 3:
        x, weight, bias = given
        return lambda: norm(x, weight, bias, convention=name), lambda: norm(x, weight, bias)
    x, weight = given
    return lambda: norm(x, weight, convention=name), lambda: norm(x, weight)


def ratio(call: Callable[[], Any], default: Callable[[], Any], seconds: float) -> tuple[float, float]:
    """The median ratio of the times of both, and the least time of the default."""

    def timed(one: Callable[[], Any], times: int) -> float:
        started = time.perf_counter()
        for _ in range(times):
            one()
        return (time.perf_counter() - started) / times

    times = max(1, int(LEAST_SECONDS / min(timed(default, 3), timed(call, 3))))
    ratios, least, end = [], float("inf"), time.perf_counter() + seconds
    while time.perf_counter() < end or len(ratios) < 5:
        a, b, c = timed(default, times), timed(call, times), timed(default, times)
        ratios.append(2 * b / (a + c))
        least = min(least, a, c)
    return statistics.median(ratios), least


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="lines that hold this alone")
    parser.add_argument("--seconds", type=float, default=0.3, help="that each line takes")
    options = parser.parse_args()
    anynorm.set_threads(1)
    found = []
    for norm_name, dtype, shape, name in cases(options.only):
        norm, given = getattr(anynorm, norm_name), arguments(norm_name, dtype, shape)
        require_right(norm, given, name)
        times, least = ratio(*calls(norm, given, name, shape), options.seconds)
        found.append(times)
        line = f"{norm_name:10} {dtype:9} {shape[0]:6} x {shape[1]:5} {name:15} {least * 1e6:10.2f} us {times:6.3f}"
        print(line + ("  above the bound" if times > BOUND else ""), flush=True)
    if found:
        print(f"median {statistics.median(found):.3f}, largest {max(found):.3f}; bound {BOUND}")


if __name__ == "__main__":
    main()
