"""Time anynorm on the CPU against its rivals, each in a process of its own, one process busy at a time.

    python -m benchmarks.cpu --threads 1 -o one.json
    python -m benchmarks.table one.json

In a round every rival of a contest times one sample, in alternating order; a ratio is formed in each round, and medians
of ratios are reported. A result is checked against the formula in float64 before it is timed. The whole grid takes
about an hour and 5 GB of memory, --quick less than two minutes.
"""

import argparse
import importlib.util
import json
import math
import os
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from benchmarks.cases import Contest, contests
from benchmarks.machine import describe, usable_cores
from benchmarks.rivals import RIVALS, Rival
from benchmarks.worker import Worker, WorkerError

PAUSE_SECONDS = 0.003  # threads of a rival that has just ended spin for about a millisecond before they sleep


class Rounds:
    """How long a contest lasts: at least `least` rounds, at most `most`, between them until the seconds are spent."""

    def __init__(self, least: int, most: int, seconds: float):
        self.least, self.most, self.seconds = least, most, seconds

    def goes_on(self, done: int, start: float) -> bool:
        return done < self.least or (done < self.most and time.perf_counter() - start < self.seconds)


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
    parser.add_argument("-o", "--output", type=Path, metavar="FILE.json", help="written anew after each contest")
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
    asked = {name: rivals[name] for contest in chosen for name in (contest.baseline, *contest.rivals)}
    skipped = not_installed(asked)
    for name, reason in skipped.items():
        print(f"{name} is left out: {reason}", flush=True)
    workers = {
        name: Worker(name, rival, threads, environment_of(rival, threads))
        for name, rival in asked.items()
        if name not in skipped
    }
    given = {name: value for name, value in vars(arguments).items() if name != "output" and value != math.inf}
    document = {
        "machine": describe(),
        "arguments": given | {"threads_used": threads},
        "skipped": skipped,
        "contests": [],
    }
    try:
        for contest in chosen:
            if contest.baseline not in skipped:
                document["contests"].append(run(contest, workers, rounds))
                if arguments.output:
                    write(document, arguments.output)
    except KeyboardInterrupt:
        sys.exit("\ninterrupted; what is finished has been written" if arguments.output else "\ninterrupted")
    finally:
        for worker in workers.values():
            worker.stop()
    return document


def not_installed(rivals: Mapping[str, Rival]) -> dict[str, str]:
    """Map the rivals that cannot run to the reason."""
    skipped = {}
    for name, rival in sorted(rivals.items()):
        missing = [package for package in rival.packages if importlib.util.find_spec(package) is None]
        if missing:
            skipped[name] = f"not installed: {', '.join(missing)}"
    return skipped


def environment_of(rival: Rival, threads: int) -> dict[str, str]:
    """Return the settings of a rival's process; what takes a number of threads as an argument gets it in rivals.py."""
    names = ("ANYNORM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
    environment = dict.fromkeys(names, str(threads))
    environment |= {"JAX_PLATFORMS": "cpu", "NPROC": str(threads)}  # XLA sizes its pool by NPROC
    if threads == 1:
        environment["XLA_FLAGS"] = "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"
    return environment | dict(rival.environment)


def run(contest: Contest, workers: dict[str, Worker], rounds: Rounds) -> dict[str, Any]:
    """Check and time one contest; returns it as the JSON file has it."""
    names = [name for name in (contest.baseline, *contest.rivals) if name in workers]
    results: dict[str, dict[str, Any]] = {name: {} for name in names}
    try:
        for name in names:
            prepare(workers[name], contest, results[name])
        timed = [name for name in names if "failed" not in results[name] and "wrong" not in results[name]]
        samples = take(timed, {name: workers[name].sample for name in timed}, rounds, results)
    finally:
        for name in names:
            workers[name].release()
    for name, taken in samples.items():
        results[name] |= summary(taken, samples.get(contest.baseline))
    report(contest, results)
    case = contest.case
    return {
        "contest": contest.name,
        "case": {"norm": case.norm, "dtype": case.dtype, "shape": case.shape, "axis": case.axis, "of": case.of},
        "baseline": contest.baseline,
        "results": results,
    }


def prepare(worker: Worker, contest: Contest, result: dict[str, Any]) -> None:
    try:
        result |= worker.prepare(contest.case)
    except WorkerError as error:
        result["failed"] = str(error)
        return
    if not result["error"] <= result["tolerance"]:
        result["wrong"] = f"error {result.pop('error'):.2g}, allowed {result['tolerance']:.2g}"


def take(
    names: list[str],
    sample: dict[str, Callable[[], tuple[float, float]]],
    rounds: Rounds,
    results: dict[str, dict[str, Any]],
) -> dict[str, list[tuple[float, float]]]:
    """Collect a sample of each rival in every round; one that fails is left out of the contest."""
    samples: dict[str, list[tuple[float, float]]] = {name: [] for name in names}
    start, done = time.perf_counter(), 0
    while samples and rounds.goes_on(done, start):
        for name in list(samples)[:: -1 if done % 2 else 1]:
            time.sleep(PAUSE_SECONDS)
            try:
                samples[name].append(sample[name]())
            except WorkerError as error:
                results[name]["failed"] = str(error)
                del samples[name]
        done += 1
    return samples


def summary(taken: list[tuple[float, float]], baseline: list[tuple[float, float]] | None) -> dict[str, Any]:
    """Form seconds, quartiles, busy cores, and the median over the rounds of rival / baseline."""
    seconds = [sample[0] for sample in taken]
    found: dict[str, Any] = {
        "seconds": [float(f"{value:.4g}") for value in seconds],
        "quartiles": [float(f"{value:.4g}") for value in statistics.quantiles(seconds, method="inclusive")],
        "cores": round(statistics.median(sample[1] for sample in taken), 2),
    }
    if baseline is not None:
        ratios = [value / ours[0] for value, ours in zip(seconds, baseline, strict=True)]
        found["ratio"] = float(f"{statistics.median(ratios):.4g}")
    return found


def report(contest: Contest, results: dict[str, dict[str, Any]]) -> None:
    print(contest)
    for name, result in results.items():
        if "quartiles" not in result:
            problem = f"wrong: {result['wrong']}" if "wrong" in result else f"failed: {result['failed']}"
            print(f"    {name:32}{problem}")
            continue
        first, median, third = (value * 1e6 for value in result["quartiles"])
        ratio = f"{result['ratio']:8.2f}" if "ratio" in result else "       -"
        print(f"    {name:32}{median:12.1f} us  ({first:.1f} to {third:.1f}){ratio}")
    sys.stdout.flush()


def write(document: dict[str, Any], path: Path) -> None:
    """Replace the file, so that a run that is cut off leaves what it had."""
    beside = path.with_name(path.name + ".part")
    beside.write_text(json.dumps(document, indent=1, allow_nan=False) + "\n")
    os.replace(beside, path)


if __name__ == "__main__":
    main()
