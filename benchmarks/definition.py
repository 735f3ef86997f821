"""Time the definition against the plain expression in each library, each in a process of its own.

    python -m benchmarks.definition -o benchmarks/results/definition.json
    python -m benchmarks.definition --only "[JAX"

Where a library has kernels, the definition is forced. JAX's plain expression runs under jit, anynorm both under jit and
eagerly. What JAX compiles is timed as well: the norm, its gradient, and that of a model of twelve layers. Temporaries
are what a call holds at most beyond its arguments and its result. A result is checked against the formula in float64
before it is timed. Each ratio is anynorm's by that of the plain expression, a median over rounds; the bound is 3.
"""

from collections.abc import Iterator
from itertools import product
from typing import Any, NamedTuple

from anynorm._bench.cases import Case, Contest
from benchmarks.cpu import Rounds, compete, parse
from benchmarks.libraries import RIVALS
from benchmarks.table import each, print_machine, print_table, problem

BOUND = 3.0
# What the plain expression's temporaries count as at least: under jit it may have none.
LEAST_TEMPORARIES = 0.1  # of x
# Buffers of a fixed size, which stay in a cache, are no more than these and never miss the bound.
BUFFER_NBYTES = 1 << 20

NORMS = ("layer_norm", "rms_norm", "scale_norm")
SHAPES = ((32, 768), (4096, 1024))
NUMPY_SHAPES = ((32, 768), (128, 768), (1024, 768), (4096, 1024))
QUICK_SHAPES = ((4, 96),)
EAGER = ("NumPy", "torch", "Dask", "array-api-strict", "ONNX Runtime")
JITTED = {"JAX": ("float32", "bfloat16"), "JAX x64": ("float32", "bfloat16", "float64")}


class Line(NamedTuple):
    """One line of the table: a call of anynorm beside the plain expression."""

    call: str
    case: str
    seconds: tuple[float, float] | None = None  # of the plain expression, and of anynorm
    ratio: float | None = None
    temporaries: tuple[int, int] | None = None  # of both, in bytes
    nbytes: int = 1  # of x
    problem: str = ""  # why there is no ratio

    @property
    def misses(self) -> str:
        """Name what misses the bound, or why there is nothing to compare."""
        found = [self.problem] if self.problem else []
        if self.ratio is not None and self.ratio > BOUND:
            found.append("time")
        if self.temporaries is not None:
            plain, ours = self.temporaries
            allowed = BOUND * max(plain, LEAST_TEMPORARIES * self.nbytes)
            found += ["temporaries"] if ours > max(allowed, BUFFER_NBYTES) else []
        return ", ".join(found)


def main() -> None:
    arguments = parse(__doc__, seconds=1.0)
    rounds = Rounds(2, 2, 0.0) if arguments.quick else Rounds(3, 25, arguments.seconds)
    document = compete(list(contests(arguments.quick)), RIVALS, arguments, rounds)
    print_machine(document)
    print("\nRatios are anynorm's time by that of the plain expression. Temporaries are in the size of x.\n")
    print_lines(list(lines(document)))


def contests(quick: bool = False) -> Iterator[Contest]:
    """Every contest; the plain expression is the baseline."""
    for library in EAGER:
        shapes = QUICK_SHAPES if quick else NUMPY_SHAPES if library == "NumPy" else SHAPES
        for norm, dtype, shape in product(NORMS, ("float32", "float64"), shapes):
            yield Contest(library, Case(norm, dtype, shape), f"plain {library}", (f"definition {library}",))
    for library, dtypes in JITTED.items():
        shapes, jitted = QUICK_SHAPES if quick else SHAPES, f"definition {library}"
        for norm, dtype, shape in product(NORMS, dtypes, shapes):
            case = Case(norm, dtype, shape)
            yield Contest(library, case, f"plain {library}", (jitted, f"{jitted}, eager"))
            yield Contest(library, case._replace(of="dx"), f"plain {library}", (jitted,))
        for norm, dtype, of in product(NORMS, dtypes, ("y", "dx", "model")):
            case = Case(norm, dtype, shapes[0], of=of)
            yield Contest(f"{library}, compiling", case, f"plain {library}, compiling", (f"{jitted}, compiling",))


def lines(document: dict[str, Any]) -> Iterator[Line]:
    """Return the lines of the table, in the order of the contests."""
    for record, name, ours in each(document["contests"]):
        if name == record["baseline"]:
            continue
        plain = record["results"][record["baseline"]]
        case = Case(**record["case"])
        if "ratio" not in ours:
            who, result = ("anynorm", ours) if "quartiles" not in ours else ("the plain expression", plain)
            yield Line(name, str(case), problem=f"{who}: {problem(result)}")
            continue
        seconds = plain["quartiles"][1], ours["quartiles"][1]
        temporaries = (plain["temporaries"], ours["temporaries"]) if "temporaries" in ours else None
        yield Line(name, str(case), seconds, ours["ratio"], temporaries, case.nbytes)


def print_lines(found: list[Line]) -> None:
    rows = []
    for line in found:
        seconds = [f"{value * 1e3:.4g}" for value in line.seconds or ()] or ["", ""]
        temporaries = [f"{value / line.nbytes:.2f}" for value in line.temporaries or ()] or ["", ""]
        ratio = "" if line.ratio is None else f"{line.ratio:.2f}"
        rows.append([line.call, line.case, *seconds, ratio, *temporaries, line.misses])
    names = ["call", "case", "plain, ms", "anynorm, ms", "ratio", "temporaries, plain", "and anynorm", "misses"]
    print_table(names, rows)
    missing = [line for line in found if line.misses]
    print(f"\n{len(missing)} of {len(found)} lines miss the bound of {BOUND:g}.")


if __name__ == "__main__":
    main()
