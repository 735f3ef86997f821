"""Measure the errors of the three norms and their rivals, where the mean is large, and numbers are large or small.

    python -m benchmarks.errors -o benchmarks/results/errors.json

Errors are in units of the last place, against exact arithmetic, the largest of three rows. The rivals are those of
`anynorm bench`, each in a process of its own. Large and small numbers are normalized with eps = 0: another eps is
larger than numbers like 1e-30, and hides what becomes of them.
"""

import argparse
from collections.abc import Iterator
from typing import Any

from anynorm._bench import plan, runner
from anynorm._bench.cases import Case
from anynorm._bench.worker import Worker, WorkerError
from benchmarks.output import add_output

MEANS = tuple(10.0 ** (power / 2) for power in range(13))  # in standard deviations
SIZES = (1e-30, 1e30)
NORMS = ("layer_norm", "rms_norm", "scale_norm")
SHAPE = (64, 768)


def cases() -> Iterator[Case]:
    """Every case: layer_norm of a mean that grows, then each norm of large and of small numbers."""
    for mean in MEANS:
        yield Case("layer_norm", "float32", SHAPE, mean=mean)
    for norm in NORMS:
        for size in SIZES:
            yield Case(norm, "float32", SHAPE, size=size, has_eps=False)


def names(norm: str) -> list[str]:
    """Who takes part: of anynorm the two calls that differ in their errors, and every rival that has the norm."""
    rivals = [name for library in plan.LIBRARIES.values() for name in library if name != "anynorm on torch"]
    return [plan.OURS, *(name for name in rivals if plan.left_out(name, norm, "float32") is None)]


def measure(document: dict[str, Any], chosen: list[Case]) -> None:
    """Put the errors of each case into the document."""
    rivals = plan.rivals()
    asked = dict.fromkeys(name for case in chosen for name in names(case.norm) if name not in document["skipped"])
    quiet = {"PYTHONWARNINGS": "ignore::RuntimeWarning"}  # NumPy's word for what is measured here
    workers = {name: Worker(name, rivals[name], 1, runner.environment_of(rivals[name], 1) | quiet) for name in asked}
    try:
        for case in chosen:
            results = {name: judged(workers[name], case) for name in names(case.norm) if name in workers}
            document["cases"].append({"case": case._asdict(), "results": results})
    finally:
        for worker in workers.values():
            worker.kill()
            worker.join()


def judged(worker: Worker, case: Case) -> dict[str, Any]:
    """The error of one result, and what it became where nothing of x is left in it."""
    try:
        found = worker.prepare(case)
    except WorkerError as error:
        return {"failed": str(error)}
    return {name: found[name] for name in ("ulp", "became", "kernel") if name in found}


def begin(chosen: list[Case]) -> dict[str, Any]:
    """What the file holds before the first case."""
    rivals = plan.rivals()
    asked = {name: rivals[name] for case in chosen for name in names(case.norm)}
    return {"machine": runner.describe(), "skipped": runner.not_installed(asked), "cases": []}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_output(parser, "what is measured; it is printed too")
    arguments = parser.parse_args()
    chosen = list(cases())
    document = begin(chosen)
    measure(document, chosen)
    for record in document["cases"]:
        case = record["case"]
        print(f"{case['norm']}, mean {case['mean']:.3g}, size {case['size']:g}")
        for name, result in record["results"].items():
            print(f"    {name:20}{result.get('became') or result.get('failed') or format(result['ulp'], '.3g')}")
    if arguments.output:
        runner.write(document, arguments.output)


if __name__ == "__main__":
    main()
