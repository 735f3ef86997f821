"""Moments of rows: what step 1 of the definition makes, step 2 uses, and a caller may merge.

Merging follows Chan, Golub, LeVeque 1983, "Algorithms for computing the sample variance".
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy

from anynorm._definition import merging
from anynorm._definition.merging import sum_of_squares
from anynorm._definition.norms import Statistics
from anynorm._moments_dict import read
from anynorm._pytrees import pytree, register
from anynorm._wording import describe, sentence

Array = Any

# They compute with NumPy as they are called, and so would print its warnings.
_ON_NUMPY = ("numpy", "array_api_strict", "sparse")

# The arrays that statistics are made of, in this order; each but the squares may be None.
PARTS = Statistics._fields[1:-1]


class Moments:
    """Count, mean and sum of squared deviations of rows, as `anynorm.moments` returns them.

    Moments of two pieces of the same rows merge into those of the whole, in any order.
    """

    __slots__ = ("_statistics", "_xp")

    def __init__(self, statistics: Statistics, xp: Any) -> None:
        self._statistics = statistics
        self._xp = xp

    @property
    def count(self) -> int:
        """How many elements a row has."""
        return self._statistics.count

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the rows' array, with the normalized axes of length 1."""
        return tuple(self._statistics.squares.shape)

    @property
    def namespace(self) -> Any:
        """The array namespace that the moments were formed in."""
        return self._xp

    @property
    def paired(self) -> bool:
        """Whether the moments are in a unit of each row, as those of float64 arrays are."""
        return self._statistics.unit is not None

    @property
    def mean(self) -> Array:
        """The mean of each row; normalized axes are kept with length 1."""
        found = self._statistics
        with quietly(self._xp):
            mean = found.squares * 0.0 if found.mean is None else found.mean
            low = 0.0 if found.mean_low is None else found.mean_low
            return self._in_units(mean + low, 1)

    @property
    def variance(self) -> Array:
        """The population variance of each row, sum((x - mean)**2) / count."""
        found = self._statistics
        with quietly(self._xp):
            low = 0.0 if found.squares_low is None else found.squares_low
            return self._in_units((found.squares + low) / found.count, 2)

    @property
    def mean_square(self) -> Array:
        """The mean square of each row, sum(x**2) / count."""
        with quietly(self._xp):
            high, low = sum_of_squares(self._xp, self._statistics)
            return self._in_units((high + low) / self.count, 2)

    def _in_units(self, values: Array, power: int) -> Array:
        """Undo the scaling by the unit; a step at a time, for unit**2 may be out of range."""
        unit = self._statistics.unit
        for _ in range(power if unit is not None else 0):
            values = values / unit
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

    def to_dict(self) -> dict[str, Any]:
        """Return a dict of numbers, strings and lists, from which `from_dict` makes the same moments, to the last bit.

        It can be written as JSON (where rows hold NaN or Inf, as Python writes that). Lazy arrays are computed. For
        many rows a pickle is smaller.

        Examples
        --------
        >>> import json, numpy, anynorm
        >>> written = json.dumps(anynorm.moments(numpy.asarray([1.0, 3.0])).to_dict())
        >>> anynorm.Moments.from_dict(json.loads(written))
        Moments(count=2, mean=array([2.]), variance=array([1.]))
        """
        arrays: list[Any] = [None if one is None else _on_host(one) for one in arrays_of(self)]
        lists = [None if one is None else one.reshape(-1).tolist() for one in arrays]
        dtype = arrays[PARTS.index("squares")].dtype.name
        return {
            "count": self.count, "shape": list(self.shape), "dtype": dtype, **dict(zip(PARTS, lists, strict=True)),
        }  # fmt: skip

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], *, xp: Any = numpy) -> Moments:
        """Return the moments of which `to_dict` made a dict.

        Parameters
        ----------
        values : dict
            From `to_dict`; keys that it does not know are left alone.
        xp : array namespace
            The library whose arrays the moments are to be applied to or merged with, such as ``torch``.

        Raises
        ------
        TypeError
            If ``values`` is no dict, an entry of another type, or ``xp`` not an array namespace.
        ValueError
            If an entry is missing, or does not fit the others.
        """
        register()
        return of_arrays(*read(values, PARTS, xp))

    def flatten(self) -> tuple[tuple[Any, ...], tuple[int, Any]]:
        """Take apart into arrays and what is known without them, as a JAX pytree is."""
        return arrays_of(self), (self.count, self._xp)

    @classmethod
    def unflatten(cls, known: tuple[int, Any], arrays: tuple[Any, ...]) -> Moments:
        """Put together again what `flatten` took apart."""
        return of_arrays(known[0], arrays, known[1])

    def __reduce__(self) -> tuple[Any, ...]:
        # A module cannot be pickled; its name finds it again.
        return _restored, (self.count, arrays_of(self), self._xp.__name__)

    def __repr__(self) -> str:
        return f"Moments(count={self.count}, mean={self.mean!r}, variance={self.variance!r})"


def arrays_of(moments: Moments) -> tuple[Any, ...]:
    """The arrays that moments are made of, in the order of PARTS."""
    return tuple(moments._statistics[1:-1])


def of_arrays(count: int, arrays: Sequence[Any], xp: Any) -> Moments:
    """Moments made of such arrays."""
    return Moments(Statistics(count, *arrays), xp)


def statistics_of(moments: Moments) -> Statistics:
    """What the definition computes with."""
    return moments._statistics


def _on_host(array: Array) -> Any:
    """An array as NumPy's, by whatever its library calls that."""
    for step in ("detach", "cpu", "get", "todense"):
        array = getattr(array, step, lambda array=array: array)()
    return numpy.asarray(array)


def _restored(count: int, arrays: tuple[Any, ...], namespace: str) -> Moments:
    register()
    return of_arrays(count, arrays, importlib.import_module(namespace))


pytree(Moments, Moments.flatten, Moments.unflatten)


def merge(a: Moments, b: Moments) -> Moments:
    """Merge the moments of two pieces of the same rows."""
    if not isinstance(b, Moments):
        raise TypeError(sentence("other", "be Moments", describe(b), "pass what anynorm.moments returned"))
    if a._xp is not b._xp:
        must, do = f"be of one library with these, {a._xp.__name__}", "take both of arrays of one library"
        raise TypeError(sentence("other", must, b._xp.__name__, do))
    if not shapes_agree(a.shape, b.shape) or a.paired != b.paired:
        mine, theirs = (f"shape {m.shape}" for m in (a, b))
        if a.paired != b.paired:
            mine, theirs = (
                f"{shape} from {'float64' if m.paired else 'narrower floats'}" for shape, m in ((mine, a), (theirs, b))
            )
        must = f"be of another piece of the same rows, of {mine}"
        raise ValueError(sentence("other", must, theirs, "take both along the same axis, of data of one dtype"))
    return Moments(merging.merge(a._xp, a._statistics, b._statistics), a._xp)


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
