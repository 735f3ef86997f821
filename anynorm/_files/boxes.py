"""How an array is cut into boxes, which are read, normalized and written one after the other.

A box is a tuple of slices, one for each axis. Those of an array come in C order, from the ranges that each of its axes
is cut into.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import SupportsIndex, overload

Box = tuple[slice, ...]
Ranges = Sequence[Sequence[slice]]  # of each axis
Rows = tuple[tuple[int, int], ...]  # where a box is on each axis that is not normalized


@dataclass(frozen=True)
class _Cut(Sequence[slice]):
    """An axis in ranges of one step, made when asked for: a header may claim a length that takes billions of them."""

    length: int
    step: int

    def __len__(self) -> int:
        return -(-self.length // self.step)

    @overload
    def __getitem__(self, index: SupportsIndex) -> slice: ...
    @overload
    def __getitem__(self, index: slice) -> list[slice]: ...
    def __getitem__(self, index: SupportsIndex | slice) -> slice | list[slice]:
        if isinstance(index, slice):
            return [self[one] for one in range(*index.indices(len(self)))]
        first = range(len(self))[index] * self.step
        return slice(first, min(first + self.step, self.length))


def cut_runs(shape: tuple[int, ...], itemsize: int, nbytes: int) -> Ranges:
    """Cut an array in C order into boxes of at most so many bytes, each in one piece there."""
    return _cut(shape, run_lengths(shape, itemsize, nbytes))


def run_lengths(
    shape: tuple[int, ...], itemsize: int, nbytes: int, chunks: tuple[int, ...] | None = None
) -> tuple[int, ...]:
    """The lengths of such boxes; of whole chunks, where one beside the other takes four times as many bytes or less."""
    for axis in range(len(shape)):
        step = math.prod(shape[axis + 1 :]) * itemsize
        if step <= nbytes:
            length = max(1, nbytes // max(1, step))
            chunk = max(1, 1 if chunks is None else chunks[axis])
            if chunk * step <= 4 * nbytes:
                length = max(chunk, length - length % chunk)
            return (*(1,) * axis, min(length, max(1, shape[axis])), *shape[axis + 1 :])
    return (1,) * len(shape)


def cut_chunk_runs(shape: tuple[int, ...], chunks: tuple[int, ...], itemsize: int, nbytes: int) -> Ranges:
    """The same of an array that lies in chunks."""
    return _cut(shape, run_lengths(shape, itemsize, nbytes, chunks))


def cut_chunks(
    shape: tuple[int, ...], chunks: tuple[int, ...], axes: tuple[int, ...], itemsize: int, nbytes: int
) -> Ranges:
    """Cut an array into boxes of whole chunks, and of whole rows where those are at most so many bytes."""
    lengths = [max(1, min(chunk, length)) for chunk, length in zip(chunks, shape, strict=True)]
    whole = [max(1, length) if axis in axes else lengths[axis] for axis, length in enumerate(shape)]
    if math.prod(whole) * itemsize <= nbytes:
        lengths = whole
    for axis in reversed(range(len(shape))):
        lengths[axis] *= max(1, nbytes // (math.prod(lengths) * itemsize))
        lengths[axis] = max(1, min(lengths[axis], shape[axis]))
    return _cut(shape, tuple(lengths))


def _cut(shape: tuple[int, ...], lengths: tuple[int, ...]) -> Ranges:
    if 0 in shape:  # and another length may be anything
        return [[] for _ in shape]
    return [_Cut(length, step) for length, step in zip(shape, lengths, strict=True)]


def cuts(ranges: Ranges, axes: tuple[int, ...]) -> bool:
    """Whether boxes cut a normalized axis, so that statistics come from many of them."""
    return any(len(ranges[axis]) > 1 for axis in axes)


def groups(ranges: Ranges, axes: tuple[int, ...]) -> Iterator[list[Box]]:
    """All boxes, those together that hold pieces of the same rows."""
    leading = next((axis for axis in axes if len(ranges[axis]) > 1), len(ranges))
    for outer in _product(ranges[:leading]):
        yield [outer + inner for inner in _product(ranges[leading:])]


def _product(ranges: Ranges) -> Iterator[Box]:
    """What itertools.product gives, which would first make lists of all ranges."""
    if not ranges:
        yield ()
        return
    for first in ranges[0]:
        for rest in _product(ranges[1:]):
            yield (first, *rest)


def rows_of(box: Box, axes: tuple[int, ...]) -> Rows:
    """Which rows a box holds pieces of; two boxes of one array have all of them in common, or none."""
    return tuple((part.start, part.stop) for axis, part in enumerate(box) if axis not in axes)


def shape_of(box: Box) -> tuple[int, ...]:
    """The lengths of a box."""
    return tuple(part.stop - part.start for part in box)


def size_of(box: Box) -> int:
    """The number of its elements."""
    return math.prod(shape_of(box))
