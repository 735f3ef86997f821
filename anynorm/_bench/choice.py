"""Which norm, when: what each of the three holds, computes and takes, from what a benchmark measured."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from anynorm._bench import report
from anynorm._bench.plan import OURS, OUT

Record = dict[str, Any]


class Norm(NamedTuple):
    """What is known of a norm without a measurement."""

    parameters: Callable[[int], int]  # of so many features
    operations: int  # a feature: to reduce the row, and to apply what was found with weight and bias
    use: str


# Additions, subtractions and multiplications of the formulas: LayerNorm adds up the row, then subtracts, squares and
# adds up; it applies by a subtraction, two products and a sum. RMSNorm squares and adds up, and applies by two
# products; ScaleNorm by one, since its scale and the length are one factor for the whole row.
NORMS = {
    "layer_norm": Norm(lambda dim: 2 * dim, 8, "a safe start; BERT, GPT-2, vision transformers"),
    "rms_norm": Norm(lambda dim: dim, 4, "large language models: Llama, Gemma, Qwen"),
    "scale_norm": Norm(lambda dim: 1, 3, "few parameters; unit vectors for a search"),
}


class Choice(NamedTuple):
    """A norm in one shape; what was not measured is None."""

    norm: str
    parameters: int
    operations: int
    seconds: float | None  # of a call with out=
    of_copy: float | None  # that by the time of a copy into the same buffer
    memory: int | None  # bytes beyond the result
    use: str


def choices(document: Record) -> Iterator[tuple[str, list[Choice]]]:
    """Yield a title and the norms for each dtype, in its largest shape; none where fewer than two were timed."""
    largest: dict[str, tuple[int, ...]] = {}
    for record in document["contests"]:
        case = record["case"]
        largest[case["dtype"]] = max(largest.get(case["dtype"], ()), tuple(case["shape"]), key=math.prod)
    for dtype, shape in largest.items():
        found = {
            record["case"]["norm"]: record
            for record in document["contests"]
            if record["case"]["dtype"] == dtype and tuple(record["case"]["shape"]) == shape
        }
        if len(found) > 1:
            title = f"which norm: {dtype} {' x '.join(map(str, shape))}"
            yield title, [_choice(norm, found[norm], shape[-1]) for norm in NORMS if norm in found]


def _choice(norm: str, record: Record, features: int) -> Choice:
    lines = {line.name: line for line in report.lines(record)}
    out, call = lines.get(OUT), lines.get(OURS)
    known = NORMS[norm]
    return Choice(
        norm,
        known.parameters(features),
        known.operations,
        None if out is None else out.seconds,
        None if out is None or not out.of_copy else 1.0 / out.of_copy,
        None if call is None else call.memory,
        known.use,
    )
