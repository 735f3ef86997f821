"""Moments of rows: what step 1 of the definition makes, step 2 uses, and a caller may merge.

Merging follows Chan, Golub, LeVeque 1983, "Algorithms for computing the sample variance".
"""

from __future__ import annotations

import importlib
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy

from anynorm._pairs import Pair, add_pairs, multiply_pairs, ratio_pair
from anynorm._pytrees import pytree, register

Array = Any

# They compute with NumPy as they are called, and so would print its warnings.
_ON_NUMPY = ("numpy", "array_api_strict", "sparse")


class Moments:
    """Count, mean and sum of squared deviations of rows, as `anynorm.moments` returns them.

    Moments of two pieces of the same rows merge into those of the whole, in any order.
    """

    __slots__ = ("_mean", "_squares", "_unit", "_xp", "count")

    def __init__(self, count: int, mean: Pair | None, squares: Pair, unit: Array | None, xp: Any) -> None:
        self.count = count
        self._mean = mean  # of x * unit, as (high, low); None: taken as zero
        self._squares = squares  # sum of squared deviations of x * unit from the mean
        self._unit = unit  # the power of two that keeps squares in range; None: 1
        self._xp = xp

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the rows' array, with the normalized axes of length 1."""
        return tuple(self._squares[0].shape)

    @property
    def namespace(self) -> Any:
        """The array namespace that the moments were formed in."""
        return self._xp

    @property
    def paired(self) -> bool:
        """Whether the moments are pairs, as those of float64 arrays are."""
        return self._unit is not None

    @property
    def mean(self) -> Array:
        """The mean of each row; normalized axes are kept with length 1."""
        with quietly(self._xp):
            return self._in_units(_mean_of(self)[0], 1)

    @property
    def variance(self) -> Array:
        """The population variance of each row, sum((x - mean)**2) / count."""
        with quietly(self._xp):
            return self._in_units(self._squares[0] / self.count, 2)

    @property
    def mean_square(self) -> Array:
        """The mean square of each row, sum(x**2) / count."""
        with quietly(self._xp):
            return self._in_units(sum_of_squares(self)[0] / self.count, 2)

    def _in_units(self, values: Array, power: int) -> Array:
        """Undo the scaling by the unit; a step at a time, for unit**2 may be out of range."""
        for _ in range(power if self._unit is not None else 0):
            values = values / self._unit
        return values

    def merge(self, other: Moments) -> Moments:
        """Return the moments of the rows of which ``self`` and ``other`` describe one piece each.

        Parameters
        ----------
        other : Moments
            Of another piece of the same rows: the same library, dtype and shape.

        Raises
        ------
        TypeError
            If ``other`` is not Moments.
        ValueError
            If the shapes do not agree.
        """
        with quietly(self._xp):
            return merge(self, other)

    def flatten(self) -> tuple[tuple[Any, ...], tuple[int, Any]]:
        """Take apart into arrays and what is known without them, as a JAX pytree is."""
        return (self._mean, self._squares, self._unit), (self.count, self._xp)

    @classmethod
    def unflatten(cls, known: tuple[int, Any], arrays: tuple[Any, ...]) -> Moments:
        """Put together again what `flatten` took apart."""
        mean, squares, unit = arrays
        return cls(known[0], mean, squares, unit, known[1])

    def __reduce__(self) -> tuple[Any, ...]:
        # A module cannot be pickled; its name finds it again.
        return _restored, (self.count, self._mean, self._squares, self._unit, self._xp.__name__)

    def __repr__(self) -> str:
        return f"Moments(count={self.count}, mean={self.mean!r}, variance={self.variance!r})"


def _restored(count: int, mean: Pair | None, squares: Pair, unit: Array | None, namespace: str) -> Moments:
    register()
    return Moments(count, mean, squares, unit, importlib.import_module(namespace))


pytree(Moments, Moments.flatten, Moments.unflatten)


def merge(a: Moments, b: Moments) -> Moments:
    """Merge the moments of two pieces of the same rows."""
    if not isinstance(b, Moments):
        raise TypeError(f"Moments merge with Moments, got {type(b).__name__}")
    if a._xp is not b._xp:
        raise TypeError(f"Moments merge with those of one library, got {a._xp.__name__} and {b._xp.__name__}")
    if not shapes_agree(a.shape, b.shape) or (a._unit is None) != (b._unit is None):
        kinds = ["float64" if m._unit is not None else "narrower floats" for m in (a, b)]
        raise ValueError(
            "Moments merge with those of another piece of the same rows: "
            f"got shape {a.shape} from {kinds[0]} and shape {b.shape} from {kinds[1]}"
        )
    if not a.count or not b.count:
        return a if a.count else b
    count = a.count + b.count
    if a._unit is None:
        a_mean, b_mean = _mean_of(a)[0], _mean_of(b)[0]
        difference = b_mean - a_mean
        between = difference * difference * (a.count / count * b.count)
        squares = a._squares[0] + b._squares[0] + between
        return Moments(count, (a_mean + difference * (b.count / count), None), (squares, None), None, a._xp)
    digits = _digits(a)
    unit = a._xp.where(a._unit < b._unit, a._unit, b._unit)
    a_mean, a_squares = rescaled(a, unit / a._unit)
    b_mean, b_squares = rescaled(b, unit / b._unit)
    difference = add_pairs(b_mean, (-a_mean[0], -a_mean[1]))
    mean = add_pairs(a_mean, multiply_pairs(difference, ratio_pair(b.count, count, digits), digits))
    between = multiply_pairs(difference, difference, digits)
    between = multiply_pairs(between, ratio_pair(a.count * b.count, count, digits), digits)
    return Moments(count, mean, add_pairs(add_pairs(a_squares, b_squares), between), unit, a._xp)


def quietly(xp: Any) -> AbstractContextManager[Any]:
    """Have NumPy say nothing of NaN, Inf and overflow, which are results here; torch.compile cannot trace that."""
    return numpy.errstate(all="ignore") if xp.__name__ in _ON_NUMPY else nullcontext()


def shapes_agree(a: tuple[Any, ...], b: tuple[Any, ...]) -> bool:
    """Whether all lengths that are known are equal."""
    return a == b or (
        len(a) == len(b) and all(m == n or not (known(m) and known(n)) for m, n in zip(a, b, strict=True))
    )


def known(length: Any) -> bool:
    """Whether a lazy array knows this length; Dask writes nan where it does not, ndonnx None."""
    return length is not None and length == length


def rescaled(moments: Moments, ratio: Array) -> tuple[Pair, Pair]:
    """Mean and squares in another unit."""
    mean, squares = _mean_of(moments), moments._squares
    return (mean[0] * ratio, mean[1] * ratio), (squares[0] * ratio * ratio, squares[1] * ratio * ratio)


def _mean_of(moments: Moments) -> Pair:
    """The mean, where nothing was centred too."""
    if moments._mean is not None:
        return moments._mean
    zero = moments._squares[0] * 0.0
    return zero, zero


def sum_of_squares(moments: Moments) -> Pair:
    """sum(x**2) from moments about the mean."""
    if moments._mean is None:
        return moments._squares
    if moments._unit is None:
        mean = moments._mean[0]
        return moments._squares[0] + mean * mean * moments.count, None
    digits = _digits(moments)
    of_mean = multiply_pairs(multiply_pairs(moments._mean, moments._mean, digits), (float(moments.count), 0.0), digits)
    return add_pairs(moments._squares, of_mean)


def _digits(moments: Moments) -> int:
    """The significant bits of the dtype that paired moments are in."""
    return 53 if moments._xp.finfo(moments._squares[0].dtype).bits == 64 else 24
