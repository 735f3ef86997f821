"""Time anynorm on the CPU against its rivals, each in a process of its own, one process busy at a time.

    python -m benchmarks.cpu --threads 1 -o one.json
    python -m benchmarks.table one.json

The runner is that of `anynorm bench`, anynorm/_bench/runner.py. The whole grid takes about an hour and 5 GB of memory,
--quick less than two minutes.
"""

import argparse
import math
import sys
from collections.abc import Mapping
from typing import Any

from anynorm._bench import runner
from anynorm._bench.cases import Contest
from anynorm._bench.machine import usable_cores
from anynorm._bench.rivals import RIVALS, Rival
from anynorm._bench.runner import Rounds
from benchmarks.contests import contests
from benchmarks.output import add_output


def main() -> None:
    arguments = parse(__doc__)
    rounds = Rounds(3, 7, 0.5) if arguments.quick else Rounds(7, 25, arguments.seconds)
    compete(list(contests(arguments.quick)), RIVALS, arguments, rounds)


def parse(description: str, seconds: float = 6.0) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a handful of shapes, few rounds")
    parser.add_argument("--threads", choices=("1", "all"), default="1", help="all: as many as this process may use")
    parser.add_argument("--only", default="", metavar="SUBSTRING", help="contests with this in their name")
    parser.add_argument("--most", type=float, default=math.inf, metavar="MB", help="leave out larger arrays")
    parser.add_argument(
        "--seconds", type=float, default=seconds, help=f"that a contest lasts, beyond its least rounds ({seconds})"
    )
    add_output(parser, "written anew after each contest")
    return parser.parse_args()


def compete(
    known: list[Contest], rivals: Mapping[str, Rival], arguments: argparse.Namespace, rounds: Rounds
) -> dict[str, Any]:
    """Run the contests that the arguments ask for; returns what the JSON file holds."""
    threads = usable_cores() if arguments.threads == "all" else int(arguments.threads)
    chosen = [
        contest for contest in known if arguments.only in str(contest) and contest.case.nbytes <= arguments.most * 1e6
    ]
    if not chosen:
        sys.exit(f"no contest of that size has {arguments.only!r} in its name; names are like {known[0]}")
    given = {name: value for name, value in vars(arguments).items() if name != "output" and value != math.inf}
    document = runner.begin(chosen, rivals, given | {"threads_used": threads})
    for name, reason in document["skipped"].items():
        print(f"{name} is left out: {reason}", flush=True)

    def after(record: dict[str, Any]) -> None:
        report(record)
        if arguments.output:
            runner.write(document, arguments.output)

    try:
        runner.compete(document, chosen, rivals, lambda left: rounds, after)
    except KeyboardInterrupt:
        sys.exit("\ninterrupted; what is finished has been written" if arguments.output else "\ninterrupted")
    return document


def report(record: dict[str, Any]) -> None:
    case = record["case"]
    shape = "x".join(map(str, case["shape"]))
    print(f"{case['norm']} {case['dtype']} {shape} axis={case['axis']} {case['of']} [{record['contest']}]")
    for name, result in record["results"].items():
        if "quartiles" not in result:
            problem = f"wrong: {result['wrong']}" if "wrong" in result else f"failed: {result['failed']}"
            print(f"    {name:32}{problem}")
            continue
        first, median, third = (value * 1e6 for value in result["quartiles"])
        ratio = f"{result['ratio']:8.2f}" if "ratio" in result else "       -"
        print(f"    {name:32}{median:12.1f} us  ({first:.1f} to {third:.1f}){ratio}")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
