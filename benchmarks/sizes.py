"""Time the three norms and their rivals against the size of the array, as `anynorm bench` does, but with more rounds.

    python -m benchmarks.sizes -o benchmarks/results/sizes-1-thread.json

Rows of 768 float32 numbers, from one to as many as no cache holds. It takes about five minutes. Memory is what a call
takes beyond its arguments and its result.
"""

from anynorm._bench import plan
from anynorm._bench.cases import EPS, Contest
from benchmarks.cpu import Rounds, compete, parse

FEATURES = 768
ROWS = tuple(4**power for power in range(8))
QUICK_ROWS = ROWS[:1]


def contests(quick: bool = False) -> list[Contest]:
    """Every contest, the smallest arrays first."""
    shapes = [(rows, FEATURES) for rows in (QUICK_ROWS if quick else ROWS)]
    return plan.contests(list(EPS), ["float32"], shapes, list(plan.LIBRARIES))


def main() -> None:
    arguments = parse(__doc__)
    rounds = Rounds(3, 7, 0.5) if arguments.quick else Rounds(7, 25, arguments.seconds)
    compete(contests(arguments.quick), plan.rivals(), arguments, rounds)


if __name__ == "__main__":
    main()
