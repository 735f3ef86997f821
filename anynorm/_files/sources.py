"""What the code of each format gives to the rest: which arrays a file holds, and how they are read and written."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from anynorm._files.boxes import Box, Ranges
from anynorm._files.job import ArrayJob, Job

Array = Any
Advance = Callable[[int], Any]


class UnfitArrayError(ValueError):
    """The file is as it should be, and what it holds cannot be normalized."""


class Source(Protocol):
    """An array in a file, of which boxes can be read."""

    ranges: Ranges
    buffers: int  # how many boxes may be in memory
    buffer_nbytes: int  # what `read` wants for each of them; 0: nothing
    once: bool  # whether boxes come one after the other, and never again
    nulls: dict[int, Array]  # which rows are not there, of boxes that have been read, by their first row

    def read(self, box: Box, buffer: Array) -> Array:
        """The elements of a box, in the buffer or elsewhere."""


class Sink(Protocol):
    """Where boxes of the result go, one after the other."""

    def write(self, box: Box, y: Array) -> None:
        """Write a box."""


@dataclass(frozen=True)
class Entry:
    """An array that a file holds."""

    name: str  # "" where the format has no names
    shape: tuple[int, ...]
    dtype: str
    nbytes: int | None  # of its elements, before compression; None: that is not known before they are read
    why: str | None = None  # it cannot be normalized: say integers, text, a single number


class Reader(Protocol):
    """A file whose header has been read."""

    @property
    def unnamed(self) -> bool:
        """Whether all it holds is an array without a name."""

    @property
    def entries(self) -> Sequence[Entry]:
        """All that it holds."""

    def sources(self, job: Job, *, plain: bool) -> Mapping[str, tuple[ArrayJob, Source]]:
        """The arrays that a job is for; ValueError or TypeError where they cannot be read, or the job does not fit.

        ``plain``: each in C order, all of it there, its boxes one after the other in that order.
        """

    def left(self, sources: Mapping[str, tuple[ArrayJob, Source]]) -> list[str]:
        """The names of what it holds beside those sources."""
