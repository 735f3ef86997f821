"""The types of the public functions, for type checkers: an array of any library comes out as it went in."""

from __future__ import annotations

from typing import Any, Protocol, SupportsIndex, TypeVar

import numpy


class Array(Protocol):
    """What the arrays of every library have, and no str, list or number has, NumPy's scalars included."""

    @property
    def shape(self) -> tuple[Any, ...]: ...

    @property
    def dtype(self) -> Any: ...

    def __getitem__(self, key: Any, /) -> Any: ...


# Any whole numbers serve, NumPy's too.
Axis = SupportsIndex | tuple[SupportsIndex, ...] | list[int]
Shape = Axis
Number = float | numpy.floating[Any] | numpy.integer[Any]
ArrayT = TypeVar("ArrayT", bound=Array)


class PullbackOfSum(Protocol[ArrayT]):
    """What `add_layer_norm_vjp` and `add_rms_norm_vjp` return beside the result."""

    def __call__(
        self, dy: ArrayT, dtotal: ArrayT | None = None
    ) -> tuple[ArrayT, ArrayT, ArrayT | None, ArrayT | None]: ...
