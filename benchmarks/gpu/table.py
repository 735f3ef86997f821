"""Print the table of a GPU benchmark's JSON file, in Markdown, and which cases fall short of what is aimed at.

    python -m benchmarks.gpu.table gpu.json

A ratio is a rival's time by anynorm's: above 1, anynorm is faster.
"""

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from anynorm._bench.cases import Case

from .work import Work

# Parts of a copy's bandwidth, and how many times as long a rival takes at least.
LEAST_PART = {"y": 0.9, "dx": 0.8, "gradients": 0.8}
LEAST_RATIO = 1.0
OF_SCALE_NORM, OF_CHANNELS_FIRST = 3.0, 2.0
NOISE = 0.02  # by which the ratio of a call to itself differs from 1 between runs

Record = dict[str, Any]


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu.table",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("file", type=Path)
    print("\n".join(table(json.loads(parser.parse_args().file.read_text()))))


def table(document: Record) -> Iterator[str]:
    """The lines of it."""
    records = document["cases"]
    versions = ", ".join(f"{name} {version}" for name, version in document["versions"].items())
    yield f"- {document['card']}, driver {document['driver']}, CUDA {document['cuda']}, {versions}"
    for nbytes, found in document["copy GB/s"].items():
        yield f"- a copy of {int(nbytes) >> 20} MiB moves {max(found.values()):.0f} GB/s"
    on_device = [record for record in records if record["what"] != "call"]
    rivals = list(dict.fromkeys(name for record in on_device for name in record["results"] if name != "anynorm"))
    yield from ("", f"| | us | GB/s | of a copy | {' | '.join(rivals)} |", "|---" * (4 + len(rivals)) + "|")
    for record in on_device:
        yield f"| {work_of(record)} | {' | '.join(_cells(record['results'], rivals))} |"
    for record in records:
        if record["what"] == "call":
            yield from ("", f"{work_of(record)}: us until it returns, and until its result is there", "")
            for name, found in record["results"].items():
                yield f"- {name}: {_call(found)}"
    short = [line for record in records for line in shortfalls(record)]
    yield from ("", "Short of what is aimed at:" if short else "Nothing is short of what is aimed at.", *short)


def work_of(record: Record) -> Work:
    case = Case(record["norm"], record["dtype"], tuple(record["shape"]), record["axis"])
    return Work(case, record["what"])


def _cells(results: Record, rivals: list[str]) -> Iterator[str]:
    ours = results["anynorm"]
    if "ms" in ours:
        yield from (f"{ours['ms'] * 1e3:.1f}", f"{ours['GB/s']:.0f}", f"{ours['of copy']:.0%}")
    else:
        yield from (_why(ours), "", "")
    for name in rivals:
        found = results.get(name, {"wrong": ""})
        yield f"{found['ms'] / ours['ms']:.2f}" if "ms" in found and "ms" in ours else _why(found)


def _why(found: Record) -> str:
    return "" if "ms" in found else "failed" if "failed" in found else "wrong" if found["wrong"] else ""


def _call(found: Record) -> str:
    return f"{found['ms'] * 1e3:.1f}, {found['synchronized ms'] * 1e3:.1f}" if "ms" in found else _why(found)


def shortfalls(record: Record) -> Iterator[str]:
    """Where a case does not reach what is aimed at."""
    work, results = work_of(record), record["results"]
    ours = next(iter(results.values()))
    if "ms" not in ours:
        yield f"- {work}: {_why(ours)}"
        return
    least = LEAST_PART.get(work.what)
    if least is not None and work.case.axis == -1 and ours["of copy"] < least:
        yield f"- {work}: {ours['of copy']:.0%} of a copy, less than {least:.0%}"
    for name, found in results.items():
        wanted = _wanted(work, name)
        if wanted is not None and "ms" in found and found["ms"] < wanted * (1 - NOISE) * ours["ms"]:
            yield f"- {work}: {name} takes {found['ms'] / ours['ms']:.2f} times as long, less than {wanted:g}"


def _wanted(work: Work, rival: str) -> float | None:
    """How many times as long as anynorm a rival is to take."""
    if rival.startswith("anynorm") or (work.what == "call" and rival != "torch"):
        return None
    if work.case.axis != -1:
        return OF_CHANNELS_FIRST if rival.startswith("torch") else LEAST_RATIO
    return OF_SCALE_NORM if (work.case.norm, rival) == ("scale_norm", "torch") else LEAST_RATIO


if __name__ == "__main__":
    main()
