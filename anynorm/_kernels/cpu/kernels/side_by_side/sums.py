"""Sums of rows side by side, in the order that they have where the features of a row lie one after the other.

That is all of a lane's elements, then those of the next lane, then the lanes in halves.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from anynorm._kernels.cpu.language.arithmetic import larger, smaller, splat
from anynorm._kernels.cpu.language.dtypes import Dtype, Lanes
from anynorm._kernels.cpu.language.flow import loop, when
from anynorm._kernels.cpu.language.memory import load, store

# For each lane of a sum, lanes of rows.
_PART_NBYTES = 32 * 32 * 8
SUMS_NBYTES = 2 * _PART_NBYTES


class LaneSums(Protocol):
    """What is summed up of each row."""

    parts: list[Lanes]  # cells

    def add(self, value: Lanes) -> None: ...

    # The parts of the sum of two.
    @staticmethod
    def joined(a: list[Lanes], b: list[Lanes]) -> list[Lanes]: ...


def sum_chunk(
    sums: LaneSums, read: Callable[[int], Lanes], count: int, lanes: int, dtype: Dtype, memory: int
) -> list[Lanes]:
    """The parts of sums of so many features; ``memory`` is for SUMS_NBYTES."""
    whole, rest, nbytes = count - count % lanes, larger(count - lanes, 0), lanes * dtype.itemsize
    zero, places = (
        splat(0.0, dtype, lanes),
        [memory + i * SUMS_NBYTES // len(sums.parts) for i in range(len(sums.parts))],
    )
    for lane in loop(0, smaller(lanes, count), 1):
        for one in sums.parts:
            one[...] = zero
        for i in loop(lane, whole, lanes):
            sums.add(read(i))
        for _ in when(rest + lane >= whole):
            sums.add(read(rest + lane))
        for place, value in zip(places, sums.parts, strict=True):
            store(place + lane * nbytes, dtype, value)
    half, count = lanes, smaller(lanes, count)
    while half > 1:
        half //= 2
        for lane in loop(0, smaller(half, count - half), 1):
            near, far = ([load(one + (lane + i) * nbytes, dtype, dtype, lanes) for one in places] for i in (0, half))
            for place, value in zip(places, sums.joined(near, far), strict=True):
                store(place + lane * nbytes, dtype, value)
        count = smaller(count, half)
    return [load(place, dtype, dtype, lanes) for place in places]
