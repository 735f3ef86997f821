"""Two documents of a benchmark beside one another."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from anynorm._bench.report import title

Record = dict[str, Any]
_SAME = ("processor", "cores", "system", "python")  # of a machine


class Change(NamedTuple):
    """A call then and now, in seconds; ``ratio`` is now / then."""

    case: str
    name: str
    then: float
    now: float
    marked: str  # "slower" or "faster" where it changed by more than the noise

    @property
    def ratio(self) -> float:
        return self.now / self.then


def load(path: Path) -> Record:
    """A document as --json has written it; ValueError where it is none."""
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        for record in document["contests"]:
            title(record)
            for result in record["results"].values():
                [float(value) for value in result.get("quartiles", ())]
        document["machine"]["packages"], document["arguments"]["threads_used"]
    except (ValueError, RecursionError, LookupError, TypeError, AttributeError):
        raise ValueError(
            f"{path} holds no benchmark that can be read; write one with anynorm bench --json FILE"
        ) from None
    found: Record = document
    return found


def changes(then: Record, now: Record) -> Iterator[Change]:
    """Each call that was timed in both."""
    before = {
        (title(record), name): result for record in then["contests"] for name, result in record["results"].items()
    }
    for record in now["contests"]:
        for name, result in record["results"].items():
            old = before.get((title(record), name), {})
            if "quartiles" in old and "quartiles" in result:
                marked = judged(old["quartiles"], result["quartiles"])
                yield Change(title(record), name, old["quartiles"][1], result["quartiles"][1], marked)


def judged(then: list[float], now: list[float]) -> str:
    """Whether quartiles lie wholly above or below those before; where they meet, the change is within the noise."""
    if now[0] > then[2]:
        return "slower"
    return "faster" if now[2] < then[0] else ""


def differences(then: Record, now: Record) -> list[str]:
    """What else has changed between the two: machine, threads, versions."""
    old, new = then["machine"], now["machine"]
    found = [f"{name}: {old.get(name)} -> {new[name]}" for name in _SAME if old.get(name) != new[name]]
    threads = [document["arguments"]["threads_used"] for document in (then, now)]
    if threads[0] != threads[1]:
        found.append(f"threads: {threads[0]} -> {threads[1]}")
    versions = {"anynorm": old.get("anynorm")} | old["packages"], {"anynorm": new["anynorm"]} | new["packages"]
    for name in sorted(set(versions[0]) | set(versions[1])):
        pair = [version.get(name) or "none" for version in versions]
        if pair[0] != pair[1]:
            found.append(f"{name}: {pair[0]} -> {pair[1]}")
    return found
