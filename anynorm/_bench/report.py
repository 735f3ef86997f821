"""What a benchmark's document says, as the lines of a table."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator
from typing import Any, NamedTuple

from anynorm._bench.cases import NBYTES
from anynorm._bench.plan import COPIES, COUNTERPARTS

Record = dict[str, Any]
BUSY = 0.5  # processes a core that want to run, from which on times are those of a busy machine
MEMORY_NOISE_NBYTES = 1 << 20


class Line(NamedTuple):
    """A call in one contest; what was not measured is None."""

    name: str
    seconds: float | None = None
    bandwidth: float | None = None  # bytes read and written a second, x and y once each
    of_copy: float | None = None  # the time of a copy by that of this call
    of_streaming: float | None = None
    beside: float | None = None  # by how much anynorm's call of the same kind is faster
    memory: int | None = None  # bytes beyond the result
    ulp: float | None = None
    problem: str = ""


def title(record: Record) -> str:
    """What a contest is about: layer_norm float32 4096 x 1024, 16.8 MB."""
    case = record["case"]
    return f"{case['norm']} {case['dtype']} {shape_of(case)}, {megabytes(nbytes(case))}"


def shape_of(case: Record) -> str:
    """A shape: 4096 x 1024."""
    return " x ".join(map(str, case["shape"]))


def megabytes(count: int) -> str:
    """A size: 16.8 MB."""
    return f"{count / 1e6:.3g} MB" if count < 1e9 else f"{count / 1e9:.3g} GB"


def nbytes(case: Record) -> int:
    """Bytes of the array of a case."""
    return math.prod(case["shape"]) * NBYTES[case["dtype"]]


def lines(record: Record) -> Iterator[Line]:
    """The lines of a contest."""
    results = record["results"]
    for name, result in results.items():
        if "quartiles" not in result:
            yield Line(name, problem=problem(result))
            continue
        seconds = result["quartiles"][1]
        of_copy, of_streaming = (ratio(results.get(copy, {}), result) for copy in COPIES)
        counterpart = COUNTERPARTS.get(name)
        beside = ratio(result, results.get(counterpart, {})) if counterpart else None
        moved = 2 * nbytes(record["case"]) / seconds
        memory, ulp = result.get("temporaries"), result.get("ulp")
        yield Line(name, seconds, moved, of_copy, of_streaming, beside, memory, ulp)


def ratio(above: Record, below: Record) -> float | None:
    """The median over rounds of one's time by the other's; None where either has not been timed throughout."""
    tops: list[float] = above.get("seconds", [])
    bottoms: list[float] = below.get("seconds", [])
    if not tops or len(tops) != len(bottoms):
        return None
    return statistics.median(top / bottom for top, bottom in zip(tops, bottoms, strict=True))


def problem(result: Record) -> str:
    """Why a call has no time."""
    if "wrong" in result:
        return f"not timed: {result['wrong']}"
    return f"failed: {result.get('failed', 'for an unknown reason')}"


def machine(document: Record) -> list[str]:
    """What it ran on, for people."""
    found = document["machine"]
    packages = ", ".join(f"{name} {version}" for name, version in found["packages"].items())
    threads = document["arguments"]["threads_used"]
    caches = ", ".join(f"L{cache['level']} {cache['nbytes'] >> 10} KiB" for cache in found["caches"])
    processor = ", ".join(filter(None, [found["processor"] or "a processor without a name", caches]))
    return [
        f"{processor}, {threads} of {found['cores']} core{'' if found['cores'] == 1 else 's'}; {found['system']}",
        f"anynorm {found['anynorm']}, Python {found['python']}, {packages}",
    ]


def busy(document: Record) -> str | None:
    """A sentence where other processes were at work."""
    load, cores = document["machine"].get("load"), document["machine"]["cores"]
    if load is None or load < BUSY * cores:
        return None
    return (
        f"the machine is busy: a load of {load:g} on {cores} cores; take ratios rather than times, or try again later"
    )


def remarks(document: Record) -> list[str]:
    """What else there is to say: which kernels ran, and who was left out."""
    results = [result for record in document["contests"] for result in record["results"].values()]
    kernels = sorted({result["kernel"] for result in results if "kernel" in result})
    faster = "" if "llvmlite" in document["machine"]["packages"] else "; pip install llvmlite for the fused ones"
    left_out: dict[str, list[str]] = {}
    for name, reason in document["skipped"].items():
        left_out.setdefault(reason, []).append(name)
    for names in left_out.values():
        names.sort(key=lambda name: name.startswith("anynorm"))  # not "anynorm on torch and torch"
    said = [f"left out: {' and '.join(names)}, {reason}" for reason, names in left_out.items()]
    return [f"kernels of anynorm: {', '.join(kernels) or 'none ran'}{faster}", *said]
