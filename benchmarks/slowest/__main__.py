"""Look for calls of anynorm that are slower than the plain expression: NumPy's, or with --tensors torch's.

    python -m benchmarks.slowest -o slowest.json

Random shapes, axes, strides, dtypes and magnitudes; the slowest are timed once more, and printed with anynorm's time by
that of the plain expression. Both take turns in one process, on one thread. 1500 cases take some five minutes, and
longer where kernels are compiled first. A case depends on the seed and its number alone: --only times one again.
"""

import argparse
import statistics
from typing import Any

import anynorm
from anynorm._bench import runner
from anynorm._bench.machine import describe
from benchmarks.output import add_output
from benchmarks.slowest.draw import MOST_ELEMENTS, draw
from benchmarks.slowest.timing import Found, look_at
from benchmarks.table import print_table

BOUND = 1.5
SECONDS, SECONDS_AGAIN = 0.08, 0.5  # of a case, but for the least rounds
AGAIN = 30  # how many of the slowest are timed a second time


def main() -> None:
    arguments = parse()
    anynorm.set_threads(1)
    if arguments.tensors:
        import torch

        torch.set_num_threads(1)
    numbers = arguments.only or range(arguments.cases)
    drawn = {number: draw(arguments.seed, number, arguments.tensors, arguments.most_elements) for number in numbers}
    found = [look_at(number, case, arguments.seconds, arguments.tensors) for number, case in drawn.items()]
    found = again(found, arguments)
    if arguments.output:
        given = {name: value for name, value in vars(arguments).items() if name != "output"}
        cases = [one._asdict() | {"case": one.case._asdict()} for one in found]
        for one in cases:
            one |= {name: None for name in ("ours", "plain", "ratio") if one["problem"]}
        runner.write({"machine": describe(), "arguments": given, "cases": cases}, arguments.output)
    show(found, arguments.worst)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=1500, metavar="N")
    parser.add_argument("--seed", type=int, default=0, metavar="S")
    parser.add_argument("--tensors", action="store_true", help="of torch, beside torch's own functions")
    parser.add_argument("--only", type=int, nargs="+", metavar="NUMBER", help="these cases alone")
    parser.add_argument("--worst", type=int, default=10, metavar="N", help="how many are printed")
    parser.add_argument("--most-elements", type=int, default=MOST_ELEMENTS, metavar="N", help="of an array, about")
    parser.add_argument("--seconds", type=float, default=SECONDS, help=f"that a case lasts ({SECONDS})")
    add_output(parser, "what was measured")
    return parser.parse_args()


def again(found: list[Found], arguments: Any) -> list[Found]:
    """The same, with the slowest timed for longer: what was disturbed is no finding."""
    slowest = sorted((one for one in found if not one.problem), key=lambda one: -one.ratio)[:AGAIN]
    longer = arguments.seconds * SECONDS_AGAIN / SECONDS
    looked_at = {one.number: look_at(one.number, one.case, longer, arguments.tensors) for one in slowest}
    return [looked_at.get(one.number, one) for one in found]


def show(found: list[Found], worst: int) -> None:
    timed = sorted((one for one in found if not one.problem), key=lambda one: -one.ratio)
    rows = [
        [f"{one.ratio:.2f}", f"{one.ours * 1e6:.1f}", f"{one.plain * 1e6:.1f}", one.number, one.case]
        for one in timed[:worst]
    ]
    print_table(["anynorm / plain", "anynorm, us", "plain, us", "number", "case"], rows)
    for one in found:
        if one.problem:
            print(f"not timed: {one.number}, {one.case}: {one.problem}")
    if timed:
        slower = sum(one.ratio > BOUND for one in timed)
        mean = statistics.geometric_mean([one.ratio for one in timed])
        print(
            f"\n{slower} of {len(timed)} are slower by more than {BOUND:g}; the mean ratio is {mean:.2f} (geometric)."
        )


if __name__ == "__main__":
    main()
