"""Axes as lengths and strides, and which of them are one."""

from __future__ import annotations

from typing import NamedTuple


class Axis(NamedTuple):
    """A length, and the stride in each of several arrays."""

    length: int
    strides: tuple[int, ...]


def merged(axes: list[Axis]) -> list[Axis]:
    """Make one of neighbouring axes wherever a single stride leads through both, in every array."""
    done: list[Axis] = []
    for axis in axes:
        if done and done[-1].strides == tuple(axis.length * stride for stride in axis.strides):
            done[-1] = Axis(done[-1].length * axis.length, axis.strides)
        else:
            done.append(axis)
    return done
