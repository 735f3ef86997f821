"""Time weights that broadcast beside one weight for all rows, and beside the plain NumPy expression.

    python -m benchmarks.broadcast
    python -m benchmarks.broadcast --dtype float16 --only head

A ratio is the time by that of one weight for all rows, of which at most 1.15 is promised where a weight has many rows;
that of the plain NumPy expression by anynorm's stands beside it. Calls take turns in one process, and one thread; a
result is checked before it is timed.
"""

import argparse
import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np

import anynorm

SECONDS = 0.5  # of each case
MOST_RATIO = 1.15
EPS = 1e-6


class Case(NamedTuple):
    """A kind of weights, and the axes that are normalized."""

    name: str
    shape: tuple[int, ...]
    weight: tuple[int, ...]
    axes: tuple[int, ...] = (-1,)
    bound: float | None = MOST_RATIO


CASES = (
    Case("heads of 128", (512, 32, 128), (1, 32, 128)),
    Case("heads of 128, beyond the caches", (4096, 32, 128), (1, 32, 128)),
    Case("heads of 64", (512, 8, 64), (1, 8, 64)),
    Case("heads of 64, beyond the caches", (32768, 8, 64), (1, 8, 64)),
    Case("heads first", (32, 512, 128), (32, 1, 128)),
    Case("samples of 64 rows", (64, 64, 768), (64, 1, 768)),
    Case("samples of 256 rows", (32, 256, 1024), (32, 1, 1024)),
    Case("channels first, by sample", (8, 64, 1024), (8, 64, 1), (1,), None),
    Case("channels, of two axes", (8, 64, 32, 32), (1, 64, 1, 1), (2, 3), None),
    Case("one row each", (4096, 64), (4096, 64), bound=None),
    Case("one row each, long", (4096, 768), (4096, 768), bound=None),
)


def plain_numpy(x: Any, weight: Any, axes: tuple[int, ...]) -> Any:
    """The expression that people write, in float32 where x is narrower."""
    wide = x if x.dtype == np.float64 else x.astype(np.float32)
    return (wide / np.sqrt(np.mean(wide * wide, axis=axes, keepdims=True) + EPS) * weight.astype(wide.dtype)).astype(
        x.dtype
    )


def medians(calls: list[Callable[[], Any]], seconds: float) -> list[float]:
    """The median time of each call, taking turns, after two that are not counted."""
    for call in (*calls, *calls):
        call()
    times: list[list[float]] = [[] for _ in calls]
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(times[0]) < 3:
        for kept, call in zip(times, calls, strict=True):
            begin = time.perf_counter()
            call()
            kept.append(time.perf_counter() - begin)
    return [statistics.median(kept) for kept in times]


def measured(case: Case, dtype: str, seconds: float) -> Iterator[tuple[str, float, float, float | None]]:
    """What is timed, microseconds, the ratio to one weight for all, and that of the plain expression to this."""
    rng = np.random.default_rng(0)
    row = [case.shape[axis] for axis in case.axes]
    x, dy, weight, for_all = (
        rng.standard_normal(shape).astype(dtype) for shape in (case.shape, case.shape, case.weight, row)
    )
    y = np.empty_like(x)

    def norm(given: Any) -> Callable[[], Any]:
        return lambda: anynorm.rms_norm(x, given, axis=case.axes, eps=EPS, out=y)

    norm(weight)()
    expected = plain_numpy(x, weight, case.axes)
    np.testing.assert_allclose(y, expected, rtol=1e-2 if x.dtype.itemsize == 2 else 1e-5, atol=1e-3)
    of_all, own, of_numpy = medians([norm(for_all), norm(weight), lambda: plain_numpy(x, weight, case.axes)], seconds)
    yield "norm", own * 1e6, own / of_all, of_numpy / own
    pullbacks = [anynorm.rms_norm_vjp(x, given, axis=case.axes, eps=EPS)[1] for given in (for_all, weight)]
    of_all, own = medians([lambda pull=pull: pull(dy) for pull in pullbacks], seconds)  # type: ignore[misc]
    yield "derivative", own * 1e6, own / of_all, None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dtype", default="float32", choices=("float16", "float32", "float64"))
    parser.add_argument("--only", default="", help="cases whose names have this in them")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="of each case")
    arguments = parser.parse_args()
    anynorm.set_threads(1)
    print(f"{arguments.dtype}, one thread\n")
    print(f"{'':34}{'':12}{'us':>10}{'ratio':>8}{'NumPy':>8}")
    for case in CASES:
        if arguments.only not in case.name:
            continue
        for what, us, ratio, of_numpy in measured(case, arguments.dtype, arguments.seconds):
            beside = "" if of_numpy is None else f"{of_numpy:.1f}"
            missed = what == "norm" and case.bound is not None and ratio > case.bound
            print(f"{case.name:34}{what:12}{us:10.0f}{ratio:8.2f}{beside:>8}{'  missed' if missed else ''}")


if __name__ == "__main__":
    main()
