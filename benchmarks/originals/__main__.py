"""Compare each convention with its original, as installed, and print the table of docs/conventions.md.

    pip install ".[models]"
    python -m benchmarks.originals
    python -m benchmarks.originals --record tests/data/originals.npz  # what the tests compare with

A library that is not installed leaves its rows out, and says so. Keras is asked by each of its backends, in processes
of their own.
"""

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.originals import Original, inputs_for, originals
from benchmarks.originals.compare import by_anynorm, compare
from benchmarks.output import add_output, file_to_write

KERAS_BACKENDS = ("numpy", "jax", "torch")
RECORDED_ROWS, RECORDED_FEATURES = 4, 64


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", metavar="SUBSTRING", help="originals with this in their name")
    parser.add_argument("--json", action="store_true", help="print JSON, a line for each original, in place of a table")
    parser.add_argument("--record", type=file_to_write, metavar="FILE.npz", help="write small inputs and results")
    add_output(parser, "also write what was found")
    arguments = parser.parse_args()
    if arguments.record:
        record(arguments.record)
        return
    rows: list[dict[str, Any]] = []
    for row in found(arguments.only, as_child=arguments.json):
        rows.append(row)
        if arguments.json:
            print(json.dumps(row), flush=True)
    if not arguments.json:
        print_table(rows)
    if arguments.output:
        arguments.output.write_text(json.dumps(rows, indent=1) + "\n")
    if not rows:
        sys.exit("none of the originals is installed")


def found(only: str, as_child: bool) -> Iterator[dict[str, Any]]:
    """Yield a row for each original; those of Keras come from other processes unless this is one of them."""
    for original in originals():
        if only not in original.name:
            continue
        if original.package == "keras" and not as_child:
            yield from of_keras(original)
            continue
        try:
            version = metadata.version(original.package)
            row = {"name": original.name, "version": version, "norm": original.norm, "convention": original.convention}
            yield row | {"dtypes": {dtype: _compared(original, dtype) for dtype in original.dtypes}}
        except ImportError as error:  # metadata.PackageNotFoundError is one
            print(f"{original.name} is left out: {error}", file=sys.stderr)


def _compared(original: Original, dtype: str) -> dict[str, float]:
    inputs = inputs_for(original, dtype)
    return compare(original, inputs, original.compute(*inputs), by_anynorm(original, inputs))._asdict()


def of_keras(original: Original) -> Iterator[dict[str, Any]]:
    """Yield a row for each backend."""
    for backend in KERAS_BACKENDS:
        command = [sys.executable, "-m", "benchmarks.originals", "--json", "--only", original.name]
        environment = os.environ | {"KERAS_BACKEND": backend}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        for line in done.stdout.splitlines():
            row = json.loads(line)
            yield row | {"name": f"{row['name']}, {backend}"}
        if not done.stdout:
            reason = done.stderr.strip().splitlines() or ["no reason was given"]
            print(f"{original.name}, {backend} is left out: {reason[-1]}", file=sys.stderr)


def print_table(rows: list[dict[str, Any]]) -> None:
    """Print it in Markdown: the share of bit-equal results, and the largest difference in ulp."""
    dtypes = ("float16", "bfloat16", "float32")
    print("| original | version | convention | " + " | ".join(dtypes) + " |")
    print("|---|---|---|" + "---|" * len(dtypes))
    for row in rows:
        cells = [_cell(row["dtypes"].get(dtype)) for dtype in dtypes]
        print(
            f"| {row['name']} | {row['version']} | {row['convention'] or 'the default'} | " + " | ".join(cells) + " |"
        )


def _cell(compared: dict[str, float] | None) -> str:
    if compared is None:
        return ""
    share = np.floor(compared["equal"] * 1e4) / 1e2  # 100 % is said of all alone
    return "all" if compared["equal"] == 1.0 else f"{share:.2f} %, {compared['ulp']:.2g}"


def record(path: Path) -> None:
    """Write small inputs, and what each original makes of them, as integers of the same bits."""
    arrays = {}
    for original in originals():
        for dtype in original.dtypes:
            inputs = inputs_for(original, dtype, RECORDED_ROWS, RECORDED_FEATURES)
            y = original.compute(*inputs)
            given = {"x": inputs.x, "weight": inputs.weight, "bias": inputs.bias, "y": y}
            for name, one in given.items():
                if one is not None:
                    bits = np.atleast_1d(one).view(np.uint32 if dtype == "float32" else np.uint16)
                    arrays[f"{original.name}/{dtype}/{name}"] = bits
    np.savez_compressed(path, **arrays)


if __name__ == "__main__":
    main()
