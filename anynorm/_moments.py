"""Moments of rows: what step 1 of the definition makes, step 2 uses, and a caller may merge.

Merging follows Chan, Golub, LeVeque 1983, "Algorithms for computing the sample variance".
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy

from anynorm._moments_dict import read
from anynorm._pairs import Pair, add_pairs, multiply_pairs, ratio_pair, two_sum
from anynorm._pytrees import pytree, register
from anynorm._wording import describe, sentence

Array = Any

# They compute with NumPy as they are called, and so would print its warnings.
_ON_NUMPY = ("numpy", "array_api_strict", "sparse")

# Of the arrays that moments are made of, in this order; each but the squares may be None.
PARTS = ("mean", "mean_low", "mean_rest", "squares", "squares_low", "unit")


class Moments:
    """Count, mean and sum of squared deviations of rows, as `anynorm.moments` returns them.

    Moments of two pieces of the same rows merge into those of the whole, in any order.
    """

    __slots__ = ("_mean", "_rest", "_squares", "_unit", "_xp", "count")

    def __init__(
        self, count: int, mean: Pair | None, squares: Pair, unit: Array | None, xp: Any, rest: Array | None = None
    ) -> None:
        self.count = count
        self._mean = mean  # of x * unit, as (high, low); None: taken as zero
        self._rest = rest  # what a pair leaves of a mean that was merged
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
            return self._in_units(_mean_of(self)[0] * 1.0, 1)  # a copy, which the caller may write to

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
    mean = (None, None) if moments._mean is None else moments._mean
    return (*mean, moments._rest, *moments._squares, moments._unit)


def of_arrays(count: int, arrays: Sequence[Any], xp: Any) -> Moments:
    """Moments made of such arrays."""
    high, low, rest, squares, squares_low, unit = arrays
    return Moments(count, None if high is None else (high, low), (squares, squares_low), unit, xp, rest)


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
    if not shapes_agree(a.shape, b.shape) or (a._unit is None) != (b._unit is None):
        mine, theirs = (f"shape {m.shape}" for m in (a, b))
        if (a._unit is None) != (b._unit is None):
            mine, theirs = (
                f"{shape} from {'narrower floats' if m._unit is None else 'float64'}"
                for shape, m in ((mine, a), (theirs, b))
            )
        must = f"be of another piece of the same rows, of {mine}"
        raise ValueError(sentence("other", must, theirs, "take both along the same axis, of data of one dtype"))
    if not a.count or not b.count:
        kept = a if a.count else b
        return of_arrays(kept.count, arrays_of(kept), kept._xp)
    return _merge_plain(a, b) if a._unit is None else _merge_paired(a, b)


def _merge_plain(a: Moments, b: Moments) -> Moments:
    """Merge where the dtype has bits to spare.

    A mean of a million deviations has none to spare for a million merges, each of which would round it: it is carried
    with what that leaves.
    """
    count = a.count + b.count
    (a_mean, a_low), (b_mean, b_low) = ((high, 0.0 if low is None else low) for high, low in (_mean_of(a), _mean_of(b)))
    difference = (b_mean - a_mean) + (b_low - a_low)
    mean, error = two_sum(a_mean, difference * (b.count / count))
    squares = a._squares[0] + b._squares[0] + difference * difference * (a.count / count * b.count)
    return Moments(count, two_sum(mean, a_low + error), (squares, None), None, a._xp)


def _merge_paired(a: Moments, b: Moments) -> Moments:
    """Merge pairs, the mean with a third number behind them."""
    count, digits = a.count + b.count, _digits(a)
    a_unit, b_unit = arrays_of(a)[-1], arrays_of(b)[-1]
    unit = a._xp.where(a_unit < b_unit, a_unit, b_unit)
    a_ratio = unit / a_unit
    a_mean, a_squares = rescaled(a, a_ratio)
    b_mean, b_squares = rescaled(b, unit / b_unit)
    difference = add_pairs(b_mean, (-a_mean[0], -a_mean[1]))
    step = multiply_pairs(difference, ratio_pair(b.count, count, digits), digits)
    high, low = two_sum(a_mean[0], step[0])
    middle, rest = two_sum(a_mean[1], step[1])
    middle, error = two_sum(middle, low)
    rest = rest + error + (0.0 if a._rest is None else a._rest * a_ratio)
    high, middle = two_sum(high, middle)
    middle, rest = two_sum(middle, rest)
    between = multiply_pairs(difference, difference, digits)
    between = multiply_pairs(between, ratio_pair(a.count * b.count, count, digits), digits)
    squares = add_pairs(add_pairs(a_squares, b_squares), between)
    return Moments(count, (high, middle), squares, unit, a._xp, rest)


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
