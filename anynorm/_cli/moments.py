"""Statistics in a file, as `anynorm show --json` writes them."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from anynorm._files.contents import listed
from anynorm._moments import Moments

_HOW = "write it with anynorm show FILE --axis 0 --json"


def load_moments(path: Path, names: tuple[str, ...]) -> Moments:
    """The statistics in a file, of the array of this name where there are several; ValueError where there are none."""
    try:
        written = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError):
        raise ValueError(f"{path} is not a readable .json file; {_HOW}") from None
    chosen = _chosen(path, written, names)
    try:
        # JSON has no NaN; null stands for it.
        return Moments.from_dict({
            name: [math.nan if one is None else one for one in value] if isinstance(value, list) else value
            for name, value in chosen.items()
        })  # fmt: skip
    except (AttributeError, TypeError, ValueError, OverflowError) as error:
        raise ValueError(f"{path} holds no statistics that can be read; {_HOW}") from error


def _chosen(path: Path, written: Any, names: tuple[str, ...]) -> Any:
    """What `Moments.to_dict` has written, which may also be the whole file."""
    if not isinstance(written, dict) or not isinstance(arrays := written.get("arrays"), list):
        return written
    found = [(str(one.get("name")), one) for one in arrays if isinstance(one, dict) and one.get("moments")]
    if not found:
        raise ValueError(f"{path} holds no statistics along the first axis; {_HOW}")
    wanted = [one for one in found if len(names) == 1 and one[0] == names[0]] or found
    if len(wanted) > 1:
        files = list(dict.fromkeys(str(one.get("file")) for _, one in wanted))
        if len(files) > 1:
            raise ValueError(f"{path} holds statistics of several files, {listed(files)}; write those of one")
        there = listed([name for name, _ in wanted])
        how = "show FILE --tensor NAME writes those of one alone"
        raise ValueError(f"{path} holds statistics of {there}; name one of them with --tensor, or anynorm {how}")
    return wanted[0][1]["moments"]
