"""What a call costs before the arithmetic: importing anynorm, and one row of 768 float32 numbers in NumPy.

    python benchmarks/calls.py

Each pair of rivals runs interleaved in one process; figures are medians, and ratios are medians of ratios.
"""

import argparse
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np

import anynorm
from anynorm._bench.cases import Case
from anynorm._bench.rivals import numpy_expression
from anynorm._check import check
from anynorm._choose import choose
from anynorm._definition.norms import LAYER_NORM


def microseconds(call: Callable[[], Any], times: int = 200) -> float:
    start = time.perf_counter()
    for _ in range(times):
        call()
    return (time.perf_counter() - start) / times * 1e6


def interleaved(calls: dict[str, Callable[[], Any]], rounds: int) -> dict[str, list[float]]:
    taken: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            taken[name].append(microseconds(call))
    return taken


def one_row(rounds: int) -> None:
    x = np.random.default_rng(0).standard_normal((1, 768)).astype(np.float32)
    weight, bias = np.random.default_rng(1).standard_normal((2, 768)).astype(np.float32)
    case = Case("layer_norm", "float32", x.shape)
    plain = numpy_expression(case, 1, x, weight, bias)
    np.testing.assert_allclose(anynorm.layer_norm(x, weight, bias), plain(), atol=1e-5)
    taken = interleaved(
        {
            "plain NumPy": plain,
            "anynorm.layer_norm": lambda: anynorm.layer_norm(x, weight, bias),
            "checks and choice": lambda: choose(check(LAYER_NORM, x, weight, bias, -1, case.eps)),
            "an empty call": lambda: None,
        },
        rounds,
    )
    for name, values in taken.items():
        print(f"{name:20}{statistics.median(values):8.2f} us, least {min(values):.2f}")
    ratios = [ours / theirs for ours, theirs in zip(taken["anynorm.layer_norm"], taken["plain NumPy"], strict=True)]
    print(f"anynorm / plain NumPy, median of ratios: {statistics.median(ratios):.2f}")


def importing(rounds: int) -> None:
    code = "import time; start = time.perf_counter(); import {}; print((time.perf_counter() - start) * 1e3)"
    after_numpy = "import numpy; " + code.format("anynorm")
    taken = [
        float(subprocess.run([sys.executable, "-c", after_numpy], capture_output=True, text=True, check=True).stdout)
        for _ in range(rounds)
    ]
    print(f"import anynorm after numpy: median {statistics.median(taken):.1f} ms, least {min(taken):.1f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=40)
    rounds = parser.parse_args().rounds
    importing(rounds)
    one_row(rounds * 5)


if __name__ == "__main__":
    main()
