"""Time what a process takes to start: imports, the first call, and `anynorm normalize` of a small file.

    python -m benchmarks.start -o benchmarks/results/start.json

Each start is a process of its own, from its birth to its end; in each round all follow each other, in alternating
order. What is printed are medians, and of what goes beyond `import numpy` those of the differences within a round. A
first call finds its kernel on disk; the first call ever finds an empty folder, and compiles. Each start is run once
before it is timed, so that Python has compiled what it imports, and its result is compared with the formula.
"""

import argparse
import importlib.util
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from anynorm._bench import inputs, runner
from anynorm._bench.machine import describe
from benchmarks.output import add_output
from benchmarks.table import print_table

SHAPE = (64, 384)
FIRST_CALL, FIRST_CALL_EVER, NORMALIZE = "first call, ", "first call ever, ", "anynorm normalize"
DTYPES = {"float16": "numpy.float16", "bfloat16": "ml_dtypes.bfloat16"} | {
    name: f"numpy.{name}" for name in ("float32", "float64")
}
_FORMULA = "(x - x.mean(-1, keepdims=True)) / numpy.sqrt(x.var(-1, keepdims=True) + 1e-5)"
_CALL = """
x = numpy.linspace(-3, 5, {size}).reshape({shape}).astype({dtype})
y = anynorm.layer_norm(x, numpy.ones({features}, x.dtype), numpy.zeros({features}, x.dtype))
"""


class Start(NamedTuple):
    """What a process does; ``most`` seconds are promised of all of it, ``most_beyond`` beyond that of another start."""

    arguments: tuple[str, ...]  # of Python
    beyond: str | None = None
    most: float | None = None
    most_beyond: float | None = None
    check: str = ""  # code that follows before it is timed, and fails where the result is wrong
    cold: bool = False  # kernels are in a new folder each time
    packages: tuple[str, ...] = ()


def starts(folder: Path) -> dict[str, Start]:
    """Every start; files are made in the folder."""
    found = {f"import {what}": Start(("-c", f"import {what}")) for what in ("numpy", "numpy, ml_dtypes")}
    found["import numpy, ml_dtypes"] = found["import numpy, ml_dtypes"]._replace(packages=("ml_dtypes",))
    found["import anynorm"] = Start(("-c", "import numpy, anynorm"), "import numpy")
    for name, dtype in DTYPES.items():
        own = dtype.partition(".")[0]
        imports, packages = ("numpy", ()) if own == "numpy" else (f"numpy, {own}", (own,))
        call = _CALL.format(size=SHAPE[0] * SHAPE[1], shape=SHAPE, features=SHAPE[1], dtype=dtype)
        start = Start(
            ("-c", f"import {imports}, anynorm{call}"),
            f"import {imports}",
            check=_close("y", "x", inputs.TOLERANCE[name]),
            packages=("llvmlite", *packages),
        )
        found[FIRST_CALL + name] = start._replace(most_beyond=0.12)
        found[FIRST_CALL_EVER + name] = start._replace(most=1.0, cold=True)
    source, ours, plain = (folder / name for name in ("in.npy", "ours.npy", "plain.npy"))
    np.save(source, np.random.default_rng(0).standard_normal(SHAPE, dtype=np.float32))
    command = ("normalize", str(source), str(ours), "--norm", "layer", "--force", "--quiet")
    found[NORMALIZE] = Start(
        ("-m", "anynorm", *command), "import numpy", most=0.3, check=_close_files(source, ours), packages=("llvmlite",)
    )
    code = f"import numpy\nx = numpy.load({str(source)!r})\nnumpy.save({str(plain)!r}, {_FORMULA})"
    found["the same by plain NumPy"] = Start(("-c", code), "import numpy", check=_close_files(source, plain))
    return found


def _close(y: str, x: str, tolerance: float) -> str:
    return f"""
x, y = {x}.astype(float), {y}.astype(float)
assert (abs(y - {_FORMULA}) <= {tolerance} * numpy.maximum(abs(y), 1)).all()
"""


def _close_files(source: Path, target: Path) -> str:
    y, x = (f"numpy.load({str(path)!r})" for path in (target, source))
    return "\nimport numpy" + _close(y, x, inputs.TOLERANCE["float32"])


class Folders:
    """Where kernels are kept: one folder for all processes, or a new one."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.numbers = folder, count()

    def of(self, start: Start) -> Path:
        found = self.folder / (f"kernels-{next(self.numbers)}" if start.cold else "kernels")
        found.mkdir(mode=0o700, exist_ok=True)
        return found


def run(arguments: tuple[str, ...], kernels: Path) -> float:
    """Run a process; return the seconds that took. RuntimeError if it fails."""
    environment = os.environ | {"ANYNORM_CACHE_DIR": str(kernels), "ANYNORM_KERNEL": "cpu"}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)  # without bytecode on disk each process would compile all of it
    started = time.perf_counter()
    done = subprocess.run([sys.executable, *arguments], env=environment, capture_output=True, text=True, check=False)
    seconds = time.perf_counter() - started
    if done.returncode:
        raise RuntimeError(done.stderr.strip().rpartition("\n")[2] or f"status {done.returncode}")
    return seconds


def check(start: Start, kernels: Path) -> None:
    """Run a start, and compare its result with the formula; RuntimeError where it fails or is wrong."""
    option, code = start.arguments[:2]
    if option == "-c":
        run(("-c", code + start.check), kernels)
    else:
        run(start.arguments, kernels)
        run(("-c", start.check), kernels)
    if start.cold and not any(kernels.iterdir()):
        raise RuntimeError("nothing was compiled, or it was not kept")


def measure(known: Mapping[str, Start], rounds: int, folders: Folders) -> dict[str, Any]:
    """Time each start in each round; return seconds by name, or what failed."""
    results: dict[str, Any] = {}
    for name, start in known.items():
        try:
            check(start, folders.of(start))
            results[name] = {"seconds": []}
        except RuntimeError as error:
            results[name] = {"failed": str(error)}
    timed = [name for name in known if "seconds" in results[name]]
    for number in range(rounds):
        for name in timed[:: -1 if number % 2 else 1]:
            seconds = run(known[name].arguments, folders.of(known[name]))
            results[name]["seconds"].append(float(f"{seconds:.4g}"))
    for name in timed:
        results[name] |= summary(known[name], results[name]["seconds"], results)
    return results


def summary(start: Start, seconds: list[float], results: Mapping[str, Any]) -> dict[str, Any]:
    """Form medians, and say which of them is more than was promised."""
    found: dict[str, Any] = {"median": statistics.median(seconds), "misses": False}
    others = results.get(start.beyond or "", {}).get("seconds")
    if others:
        found["beyond"] = statistics.median(a - b for a, b in zip(seconds, others, strict=True))
    for promised, key in ((start.most, "median"), (start.most_beyond, "beyond")):
        found["misses"] |= promised is not None and key in found and found[key] > promised
    return found


def chosen(known: Mapping[str, Start], only: str) -> Iterator[str]:
    """The starts with this in their names, behind those that they are compared with."""
    asked = [name for name in known if only in name]
    needed = {known[name].beyond for name in asked}
    yield from (name for name in known if name in needed or name in asked)


def lacking(start: Start) -> list[str]:
    """Packages that a start needs and that are not installed."""
    return [package for package in start.packages if importlib.util.find_spec(package) is None]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--quick", action="store_true", help="one round")
    parser.add_argument("--only", default="", metavar="SUBSTRING", help="starts with this in their name")
    add_output(parser, "written at the end")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        known = starts(Path(name))
        asked = {one: known[one] for one in chosen(known, arguments.only)}
        if not asked:
            sys.exit(f"no start has {arguments.only!r} in its name; there are: {'; '.join(known)}")
        skipped = {one: f"not installed: {', '.join(lacking(start))}" for one, start in asked.items() if lacking(start)}
        asked = {one: start for one, start in asked.items() if one not in skipped}
        results = measure(asked, 1 if arguments.quick else arguments.rounds, Folders(Path(name)))
    report(asked, results, skipped)
    if arguments.output:
        given = {"quick": arguments.quick, "rounds": arguments.rounds, "only": arguments.only}
        document = {"machine": describe(), "arguments": given, "skipped": skipped, "starts": results}
        runner.write(document, arguments.output)


def report(known: Mapping[str, Start], results: Mapping[str, Any], skipped: Mapping[str, str]) -> None:
    rows = []
    for name, start in known.items():
        result = results[name]
        if "failed" in result:
            rows.append([name, f"failed: {result['failed']}", "", "", ""])
            continue
        beyond = f"{result['beyond']:.3f}" if "beyond" in result else ""
        promised = f"{start.most:g}" if start.most else f"{start.most_beyond:g} beyond" if start.most_beyond else ""
        rows.append([name, f"{result['median']:.3f}", beyond, promised, "misses" if result["misses"] else ""])
    print_table(["start", "seconds", "beyond import numpy", "promised", ""], rows)
    for name, reason in skipped.items():
        print(f"{name} is left out: {reason}")


if __name__ == "__main__":
    main()
