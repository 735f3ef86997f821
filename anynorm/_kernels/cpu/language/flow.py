"""What is run when: loops, branches, and what changes from turn to turn."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from anynorm._kernels.cpu.language.dtypes import INTERPRETED

if TYPE_CHECKING or INTERPRETED:
    from anynorm._kernels.cpu.language.interpreted import cases, cell, loop, when
else:
    from anynorm._kernels.cpu.language.tracing import cases, cell, loop, when

__all__ = ["cases", "cell", "combinations", "loop", "when"]


def combinations(*conditions: Any) -> Iterator[tuple[bool, ...]]:
    """`cases` of several conditions at once."""
    if not conditions:
        yield ()
        return
    for flag in cases(conditions[0]):
        for others in combinations(*conditions[1:]):
            yield (flag, *others)
