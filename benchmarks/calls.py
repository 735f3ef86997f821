"""What a small call costs: one row of 768 numbers in NumPy, in each way that a small call is made.

    python -m benchmarks.calls -o benchmarks/results/calls.json

All calls are interleaved in one process; figures are medians of blocks of 200 calls. Against torch, in processes of
their own: `python -m benchmarks.cpu --only "one row"` and `--only module`.
"""

import argparse
import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

import anynorm
from anynorm._bench import runner
from anynorm._bench.cases import Case
from anynorm._bench.machine import describe
from anynorm._bench.rivals import numpy_expression
from benchmarks.output import add_output
from benchmarks.table import print_table

Call = Callable[[], Any]
FEATURES = 768


def calls() -> dict[str, Call]:
    """Each call, by name; all but the first two are checked against the same formula."""
    made = np.random.default_rng(0)
    x, residual = made.standard_normal((2, 1, FEATURES)).astype(np.float32)
    weight, bias = made.standard_normal((2, FEATURES)).astype(np.float32)
    wide, column = x.astype(np.float64), np.ascontiguousarray(x.T)
    wide_weight, out = weight.astype(np.float64), np.empty_like(x)
    layer, scale = anynorm.LayerNorm(FEATURES, xp=np), anynorm.ScaleNorm(FEATURES, xp=np)
    plain = numpy_expression(Case("layer_norm", "float32", x.shape), 1, x, weight, bias)
    found = {
        "plain NumPy": plain,
        "layer_norm": lambda: anynorm.layer_norm(x, weight, bias),
        "layer_norm, out=": lambda: anynorm.layer_norm(x, weight, bias, out=out),
        "layer_norm, axis=1": lambda: anynorm.layer_norm(x, weight, bias, axis=1),
        "layer_norm of a column, axis=0": lambda: anynorm.layer_norm(column, weight, bias, axis=0),
        "layer_norm, float64": lambda: anynorm.layer_norm(wide, wide_weight, wide_weight),
        "layer_norm, the weight is the bias": lambda: anynorm.layer_norm(x, weight, weight),
        "layer_norm, every other number": lambda: anynorm.layer_norm(x[:, ::2]),
        "add_layer_norm": lambda: anynorm.add_layer_norm(x, residual, weight, bias),
        "scale_norm": lambda: anynorm.scale_norm(x),
        "LayerNorm": lambda: layer(x),
        "ScaleNorm": lambda: scale(x),
        "an empty call": lambda: None,
    }
    for name in ("layer_norm", "layer_norm, out=", "layer_norm, axis=1", "layer_norm of a column, axis=0"):
        np.testing.assert_allclose(found[name]().reshape(x.shape), plain(), atol=1e-5)
    return found


def microseconds(call: Call, times: int = 200) -> float:
    """The mean of a block of calls."""
    start = time.perf_counter()
    for _ in range(times):
        call()
    return (time.perf_counter() - start) / times * 1e6


def measure(known: Mapping[str, Call], rounds: int) -> dict[str, Any]:
    """Medians over rounds, in each of which all calls follow each other."""
    taken: dict[str, list[float]] = {name: [] for name in known}
    for _ in range(rounds):
        for name, call in known.items():
            taken[name].append(microseconds(call))
    return {
        name: {"microseconds": round(statistics.median(values), 3), "least": round(min(values), 3)}
        for name, values in taken.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=200)
    add_output(parser, "what is measured")
    arguments = parser.parse_args()
    results = measure(calls(), arguments.rounds)
    if arguments.output:
        runner.write({"machine": describe(), "rounds": arguments.rounds, "calls": results}, arguments.output)
    rows = [(name, f"{one['microseconds']:.2f}", f"{one['least']:.2f}") for name, one in results.items()]
    print_table(("call", "us", "least"), rows)


if __name__ == "__main__":
    main()
