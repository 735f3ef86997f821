"""Lengths that a lazy array may not know before it is computed: which must be known, and what may fit the others."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from anynorm._wording import sentence

Array = Any


def shapes_agree(a: tuple[Any, ...], b: tuple[Any, ...]) -> bool:
    """Whether all lengths that are known are equal."""
    return a == b or (
        len(a) == len(b) and all(m == n or not (known(m) and known(n)) for m, n in zip(a, b, strict=True))
    )


def known(length: Any) -> bool:
    """Whether a lazy array knows this length; Dask writes nan where it does not, ndonnx None."""
    return length is not None and length == length


def require_lengths(x: Array, axes: tuple[int, ...]) -> None:
    """Raise ValueError unless x knows its lengths along the axes, which moments are formed over."""
    for axis in axes:
        if not known(x.shape[axis]):
            do = "for Dask call x.compute_chunk_sizes() first, for ndonnx declare the length; or pass moments"
            must = f"have a known length along the normalized axis {axis}"
            raise ValueError(sentence("x", must, f"shape {tuple(x.shape)}", do))


def fits(shape: tuple[Any, ...], expected: tuple[Any, ...]) -> bool:
    """Whether a parameter has all lengths that x is known to have; wrong ones among the others raise at compute."""
    return len(shape) == len(expected) and all(m == n or not known(n) for m, n in zip(shape, expected, strict=True))


def require_blocks_alike(argument: str, value: Array, x: Array, axes: Mapping[int, int] | None = None) -> None:
    """Raise ValueError where a Dask array has another number of blocks than x, and unknown lengths forbid a rechunk.

    ``axes`` maps each axis of the array to the axis of x that it belongs to; left out, they are the same.
    """
    for own, axis in ({axis: axis for axis in range(x.ndim)} if axes is None else axes).items():
        got, expected = value.numblocks[own], x.numblocks[axis]
        if got != expected and not (known(value.shape[own]) and known(x.shape[axis])):
            must = f"have as many blocks as x along axis {axis} of x, {expected}, for lengths there are unknown"
            raise ValueError(sentence(argument, must, str(got), "call compute_chunk_sizes() of both first"))


def chunks_like(own: tuple[Any, ...], chunks: tuple[Any, ...]) -> dict[int, tuple[int, ...]]:
    """What `rechunk` is to be given, axis by axis; chunks of unknown length stay, and are taken to be the same."""
    pairs = enumerate(zip(own, chunks, strict=True))
    return {axis: to for axis, (at, to) in pairs if all(map(known, (*at, *to)))}
