"""The runner: contests, each rival in a process of its own, one process busy at a time.

In a round every rival of a contest times one sample, in alternating order; a ratio is formed in each round, and medians
of ratios are reported. A result is checked against the formula in float64 before it is timed.
"""

from __future__ import annotations

import importlib.util
import json
import os
import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from anynorm._bench.cases import Contest
from anynorm._bench.machine import describe
from anynorm._bench.rivals import Rival
from anynorm._bench.worker import Worker, WorkerError

PAUSE_SECONDS = 0.003  # what one thread has left behind is done; several end their own sample with a rest
_DISTRIBUTIONS = {"array_api_strict": "array-api-strict", "sklearn": "scikit-learn"}  # where they differ from modules
Record = dict[str, Any]


class Rounds:
    """How long a contest lasts: at least `least` rounds, at most `most`, between them until the seconds are spent."""

    def __init__(self, least: int, most: int, seconds: float):
        self.least, self.most, self.seconds = least, most, seconds

    def goes_on(self, done: int, start: float) -> bool:
        """Whether there is to be another round."""
        return done < self.least or (done < self.most and time.perf_counter() - start < self.seconds)


def begin(contests: Iterable[Contest], rivals: Mapping[str, Rival], arguments: Mapping[str, Any]) -> Record:
    """What the JSON file holds before the first contest; ``arguments`` hold ``threads_used``."""
    asked = {name: rivals[name] for contest in contests for name in (contest.baseline, *contest.rivals)}
    return {"machine": describe(), "arguments": dict(arguments), "skipped": not_installed(asked), "contests": []}


def compete(
    document: Record,
    contests: Sequence[Contest],
    rivals: Mapping[str, Rival],
    rounds: Callable[[int], Rounds],
    after: Callable[[Record], Any] = lambda record: None,
    advance: Callable[[], Any] = lambda: None,
) -> None:
    """Run contests and put them into the document.

    ``rounds``: how long one lasts, given how many are left. ``after`` is called with each that has ended, ``advance``
    with each rival that has been checked, and with each contest.
    """
    threads = document["arguments"]["threads_used"]
    asked = {name for contest in contests for name in (contest.baseline, *contest.rivals)} - set(document["skipped"])
    workers = {name: Worker(name, rivals[name], threads, environment_of(rivals[name], threads)) for name in asked}
    try:
        for place, contest in enumerate(contests):
            if contest.baseline in workers:
                record = run(contest, workers, partial(rounds, len(contests) - place), advance)
                document["contests"].append(record)
                after(record)
    finally:
        for worker in workers.values():
            worker.kill()
        for worker in workers.values():
            worker.join()


def not_installed(rivals: Mapping[str, Rival]) -> dict[str, str]:
    """Map the rivals that cannot run to the reason."""
    skipped = {}
    for name, rival in sorted(rivals.items()):
        missing = [package for package in rival.packages if importlib.util.find_spec(package) is None]
        if missing:
            advice = " ".join(_DISTRIBUTIONS.get(package, package) for package in missing)
            skipped[name] = f"not installed; pip install {advice}"
    return skipped


def environment_of(rival: Rival, threads: int) -> dict[str, str]:
    """Return the settings of a rival's process; what takes a number of threads as an argument gets it in rivals.py."""
    names = ("ANYNORM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
    environment = dict.fromkeys(names, str(threads))
    environment |= {"JAX_PLATFORMS": "cpu", "NPROC": str(threads)}  # XLA sizes its pool by NPROC
    if threads == 1:
        environment["XLA_FLAGS"] = "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"
    return environment | dict(rival.environment)


def run(
    contest: Contest, workers: Mapping[str, Worker], rounds: Callable[[], Rounds], advance: Callable[[], Any]
) -> Record:
    """Check and time one contest; returns it as the JSON file has it."""
    names = [name for name in (contest.baseline, *contest.rivals) if name in workers]
    results: dict[str, Record] = {name: {} for name in names}
    for name in names:
        workers[name].start()
    for name in names:
        prepare(workers[name], contest, results[name])
        advance()
    timed = [name for name in names if "failed" not in results[name] and "wrong" not in results[name]]
    samples = take(timed, {name: workers[name].sample for name in timed}, rounds(), results)
    for name in names:
        workers[name].release()
    for name, taken in samples.items():
        results[name] |= summary(taken, samples.get(contest.baseline))
    advance()
    case = contest.case
    return {
        "contest": contest.name,
        "case": {"norm": case.norm, "dtype": case.dtype, "shape": case.shape, "axis": case.axis, "of": case.of},
        "baseline": contest.baseline,
        "results": results,
    }


def prepare(worker: Worker, contest: Contest, result: Record) -> None:
    """Set up a rival; whether it is right is noted in the result."""
    try:
        result |= worker.prepare(contest.case)
    except WorkerError as error:
        result["failed"] = str(error)
        return
    if not result["error"] <= result["tolerance"]:
        result["wrong"] = f"error {result.pop('error'):.3g}, allowed {result['tolerance']:.3g}"
        result.pop("ulp", None)


def take(
    names: list[str], sample: dict[str, Callable[[], tuple[float, float]]], rounds: Rounds, results: dict[str, Record]
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


def summary(taken: list[tuple[float, float]], baseline: list[tuple[float, float]] | None) -> Record:
    """Form seconds, quartiles, busy cores, and the median over the rounds of rival / baseline."""
    seconds = [sample[0] for sample in taken]
    found: Record = {
        "seconds": [float(f"{value:.4g}") for value in seconds],
        "quartiles": [float(f"{value:.4g}") for value in statistics.quantiles(seconds, method="inclusive")],
        "cores": round(statistics.median(sample[1] for sample in taken), 2),
    }
    if baseline is not None:
        ratios = [value / ours[0] for value, ours in zip(seconds, baseline, strict=True)]
        found["ratio"] = float(f"{statistics.median(ratios):.4g}")
    return found


def write(document: Record, path: Path) -> None:
    """Replace the file, so that a run that is cut off leaves what it had."""
    beside = path.with_name(path.name + ".part")
    beside.write_text(json.dumps(document, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    os.replace(beside, path)
