"""Time what is promised of the CPU kernels, a row of promises a command, and say which are met.

    python -m benchmarks.bounds copies -o copies.json
    python -m benchmarks.bounds --quick

Rows: copies, onnx, onnx-threads, torch, torch-16-bits, trained; without a name all, one after the other. Each takes up
to three minutes. Every rival runs in a process of its own, and they take turns; a result is checked before it is timed.
A ratio is the rival's time by anynorm's. What is promised of random calls is for `python -m benchmarks.slowest`.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Iterator
from typing import Any, NamedTuple

from anynorm._bench import runner
from anynorm._bench.cases import Case, Contest
from anynorm._bench.plan import Budget
from anynorm._bench.report import Record, shape_of
from anynorm._bench.rivals import RIVALS
from benchmarks.contests import GRID
from benchmarks.cpu import report
from benchmarks.output import add_output
from benchmarks.table import print_table

SECONDS, QUICK_SECONDS = 150.0, 5.0  # of a row
# 4 MB and more of float32.
LARGE = (
    *((4096, 256), (32768, 256), (8192, 512), (1024, 1024), (4096, 1024), (16384, 1024), (512, 2048), (8192, 2048)),
    *((256, 4096), (4096, 4096), (8192, 4096), (128, 8192), (4096, 8192)),
)
TRAINED = ((64, 768), (512, 768), (512, 1024), (4096, 1024), (1024, 2048), (512, 4096), (4096, 4096))
QUICK = ((64, 768),)
NORMS = ("layer_norm", "rms_norm")


class Bound(NamedTuple):
    """What is promised of the ratios of a rival, over all shapes."""

    norm: str
    rival: str
    median: float | None
    least: float | None
    dtype: str = "float32"


class Row(NamedTuple):
    """Promises that one command measures."""

    baseline: str
    shapes: tuple[tuple[int, int], ...]
    bounds: tuple[Bound, ...]
    threads: int = 1
    of: str = "y"

    def contests(self, quick: bool) -> Iterator[Contest]:
        """A contest for each norm, dtype and shape."""
        for shape in QUICK if quick else self.shapes:
            for norm, dtype in dict.fromkeys((bound.norm, bound.dtype) for bound in self.bounds):
                rivals = tuple(bound.rival for bound in self.bounds if (bound.norm, bound.dtype) == (norm, dtype))
                yield Contest("bounds", Case(norm, dtype, shape, of=self.of), self.baseline, rivals)


OUT, ON_TORCH = "anynorm out=", "anynorm on torch, huge pages"
TORCH, TORCH_MODULE = "torch, huge pages", "torch module, huge pages"
ROWS = {
    "copies": Row(
        OUT,
        LARGE,
        (
            Bound("layer_norm", "copy", None, 0.95),
            Bound("layer_norm", "streaming copy", None, 0.7),
            Bound("rms_norm", "copy", None, 1.1),
            Bound("rms_norm", "streaming copy", None, 0.8),
        ),
    ),
    "onnx": Row(
        OUT,
        LARGE,
        (Bound("layer_norm", "ONNX Runtime", 2.5, 1.0), Bound("rms_norm", "ONNX Runtime", 1.8, 1.0)),
    ),
    "onnx-threads": Row(OUT, LARGE, tuple(Bound(norm, "ONNX Runtime", None, 1.0) for norm in NORMS), threads=2),
    "torch": Row(ON_TORCH, GRID, (Bound("layer_norm", TORCH, 1.4, 1.0), Bound("rms_norm", TORCH, 3.5, 1.0))),
    "torch-16-bits": Row(
        ON_TORCH, GRID, tuple(Bound("layer_norm", TORCH, 2.5, None, dtype) for dtype in ("float16", "bfloat16"))
    ),
    "trained": Row(
        "anynorm module, huge pages",
        TRAINED,
        (Bound("layer_norm", TORCH_MODULE, 1.25, 0.9), Bound("rms_norm", TORCH_MODULE, 4.0, 0.9)),
        of="dx",
    ),
}  # fmt: skip


def main() -> None:
    arguments = parse()
    documents = {}
    for name in [arguments.row] if arguments.row else ROWS:
        documents[name] = measure(name, arguments.quick, arguments.seconds)
        show(name, documents[name])
        if arguments.output:
            runner.write({"rows": documents}, arguments.output)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("row", nargs="?", choices=tuple(ROWS), help="one row of promises")
    parser.add_argument("--quick", action="store_true", help="one small shape")
    parser.add_argument("--seconds", type=float, help=f"that a row takes, about ({SECONDS:g})")
    add_output(parser, "what was measured, written anew after each row")
    return parser.parse_args()


def measure(name: str, quick: bool, seconds: float | None = None) -> Record:
    """Time the contests of a row."""
    row = ROWS[name]
    contests = list(row.contests(quick))
    document = runner.begin(contests, RIVALS, {"row": name, "quick": quick, "threads_used": row.threads})
    budget = Budget(seconds or (QUICK_SECONDS if quick else SECONDS), time.perf_counter())
    runner.compete(document, contests, RIVALS, budget.rounds, report)
    return document


def ratios(bound: Bound, document: Record) -> list[tuple[float, str]]:
    """Those of a rival, each with its shape."""
    return [
        (record["results"][bound.rival]["ratio"], shape_of(record["case"]))
        for record in document["contests"]
        if (record["case"]["norm"], record["case"]["dtype"]) == (bound.norm, bound.dtype)
        and "ratio" in record["results"].get(bound.rival, {})
    ]


def line(bound: Bound, found: list[tuple[float, str]]) -> list[Any]:
    """What is promised, what was found, and whether that is enough."""
    promised = ["" if one is None else f"{one:g}" for one in (bound.median, bound.least)]
    title = [f"{bound.norm} {bound.dtype}", bound.rival]
    if not found:
        return [*title, "", promised[0], "", promised[1], "not timed"]
    median, (least, shape) = statistics.median(ratio for ratio, _ in found), min(found)
    pairs = ((bound.median, median), (bound.least, least))
    is_met = all(wanted is None or ratio >= wanted for wanted, ratio in pairs)
    met = "met" if is_met else "missed"
    return [*title, f"{median:.2f}", promised[0], f"{least:.2f} at {shape}", promised[1], met]


def show(name: str, document: Record) -> None:
    for rival, reason in document["skipped"].items():
        print(f"{rival} is left out: {reason}")
    print(f"\n## {name}: the rival's time / that of {ROWS[name].baseline}, {ROWS[name].threads} thread(s)\n")
    lines = [line(bound, ratios(bound, document)) for bound in ROWS[name].bounds]
    print_table(["norm", "rival", "median", "promised", "least", "promised", ""], lines)
    sys.stdout.flush()


if __name__ == "__main__":
    main()
