"""Moments as a caller holds them.

Merging follows Chan, Golub, LeVeque 1983, "Algorithms for computing the sample variance".
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, SupportsIndex

import numpy

from anynorm._definition.counting import by_row
from anynorm._definition.norms import Statistics
from anynorm._moments import equal, joined, made, moved, written
from anynorm._moments.lazy import MaybeLazy
from anynorm._moments.parts import LEAVES, of_leaves
from anynorm._moments.properties import Properties
from anynorm._pytrees import pytree, register
from anynorm._torch.pytrees import torch_pytree
from anynorm._types import Array, Axis
from anynorm._wording import describe, sentence


class Moments(Properties, MaybeLazy):
    """Count, mean and sum of squared deviations of rows, as `anynorm.moments` returns them.

    Moments of two pieces of the same rows merge into those of the whole, in any order: ``a.merge(b)``, ``a + b``,
    ``sum(pieces)``. They are values: kept as JSON (`to_dict`) or a pickle, compared with ``==``, cut by features
    (``m[..., 3:5]``), carried to other libraries and widths (`to`).

    A norm that is given moments computes element by element: a NaN or Inf in x affects no other element of its row. A
    row whose variance is 0, such as a feature that was constant in training, becomes ``(x - mean) / sqrt(eps)`` by
    layer_norm, and 0 where eps is 0; scikit-learn divides by 1 there, as a variance of 1 in place of 0 does.
    """

    __slots__ = ("_finished", "_is_by_row")
    __hash__: ClassVar[None]  # type: ignore[assignment]  # with __eq__ alone: a value that holds arrays

    def __init__(self, statistics: Statistics, xp: Any) -> None:
        if type(statistics) is not Statistics:
            do = "call anynorm.moments(x) or Moments.from_mean_variance(mean, variance, count=...)"
            raise TypeError(sentence("Moments(...)", "be given what anynorm itself makes", describe(statistics), do))
        super().__init__(statistics, xp)
        self._is_by_row = by_row(statistics.elements)
        self._finished: dict[Any, Any] | None = None

    @classmethod
    def from_mean_variance(
        cls, mean: Array, variance: Array, *, count: SupportsIndex | Array, axis: Axis | None = None
    ) -> Moments:
        """Return moments of a mean and a variance that were computed elsewhere.

        Such as ``mean_`` and ``var_`` of scikit-learn's StandardScaler, or ``running_mean`` and ``running_var`` of
        torch's BatchNorm. They can be used with arrays of any width: `mean` is what was given, `variance` within one
        unit in the last place of it.

        Parameters
        ----------
        mean, variance : arrays of one library, shape and device
            Of real floating dtypes. The variance is the population's, sum((x - mean)**2) / count.
        count : int, 1 or more
            How many elements they were computed from, which is their weight in a merge: scikit-learn's
            ``n_samples_seen_``, also where that is an array of the shape of the mean. Moments that are never merged may
            have any count: 1, say, for BatchNorm, whose statistics are running averages.
        axis : int or tuple of ints, optional
            The axes over which they were taken, where they lack them: 0 for the features of a table, (0, 2, 3) for the
            channels of images. Left out, both have these axes with length 1.

        Raises
        ------
        TypeError
            If an argument is not an array of a real floating dtype, or they are of two libraries.
        ValueError
            If shapes or devices differ, a variance is negative, or an axis or the count does not fit.

        Examples
        --------
        >>> import numpy, anynorm
        >>> trained = anynorm.Moments.from_mean_variance(numpy.asarray([5.0]), numpy.asarray([4.0]), count=9, axis=0)
        >>> anynorm.layer_norm(numpy.asarray([[7.0], [3.0]]), axis=0, eps=0.0, moments=trained)
        array([[ 1.],
               [-1.]])
        """
        register()
        return _of_new_arrays(made.made(mean, variance, count, axis))

    def merge(self, other: Moments) -> Moments:
        """Return the moments of the rows of which ``self`` and ``other`` describe one piece each.

        Parameters
        ----------
        other : Moments
            Of another piece of the same rows: the same library, dtype and shape. Moments of NumPy arrays merge with
            those of any library.

        Raises
        ------
        TypeError
            If ``other`` is not Moments, or of another library; see `to`.
        ValueError
            If the shapes, the devices or the widths of the data do not agree; see `to`.
        """
        if not isinstance(other, Moments):
            raise TypeError(sentence("other", "be Moments", describe(other), "pass what anynorm.moments returned"))
        xp, found = joined.merged((self._xp, self._shared()), (other._xp, other._shared()))
        is_new = found is not self._statistics and found is not other._statistics  # a piece of no elements adds nothing
        return _of_new_arrays((xp, found)) if is_new else Moments(found, xp)

    def __add__(self, other: object) -> Moments:
        return self.merge(other) if isinstance(other, Moments) else NotImplemented

    def __radd__(self, other: object) -> Moments:
        # What `sum` starts with.
        return self if type(other) is int and other == 0 else NotImplemented

    @staticmethod
    def concat(moments: Sequence[Moments], *, axis: int = -1) -> Moments:
        """Return the moments of several arrays' rows, one after the other: those of more features, of one training set.

        Parameters
        ----------
        moments : sequence of Moments
            Of one library, device and width of data, and of one count; counts row by row are joined.
        axis : int
            The axis along which they are joined, which is not normalized.

        Raises
        ------
        TypeError, ValueError
            If they do not agree; see `to`.

        Examples
        --------
        >>> import numpy, anynorm
        >>> a, b = anynorm.moments(numpy.eye(2), axis=0), anynorm.moments(numpy.ones((2, 1)), axis=0)
        >>> anynorm.Moments.concat([a, b]).mean
        array([[0.5, 0.5, 1. ]])
        """
        several = list(moments) if isinstance(moments, (list, tuple)) else []
        if not several or not all(isinstance(one, Moments) for one in several):
            do = "pass [a, b], of what anynorm.moments returned"
            raise TypeError(sentence("moments", "be a list of Moments, one or more", describe(moments), do))
        return _held(joined.joined([(one._xp, one._statistics) for one in several], axis))

    def __getitem__(self, index: Any) -> Moments:
        """Return the moments of some rows; each axis is kept, so index it with a slice or a list, not an int.

        Examples
        --------
        >>> import numpy, anynorm
        >>> anynorm.moments(numpy.eye(3), axis=0)[..., 1:].shape
        (1, 2)
        """
        return Moments(joined.picked(self._xp, self._shared(), index), self._xp)

    def to(self, xp: Any = None, *, dtype: Any = None, device: Any = None) -> Moments:
        """Return these moments for arrays of another library, another dtype or on another device.

        Moments of NumPy arrays need no call before they are merged or given to a norm: they can be used with an x of
        any library, and those of float64 data with a narrower x. Means keep their digits; where a library lacks float64
        (JAX without x64), sums of squares keep 48 bits.

        Parameters
        ----------
        xp : array namespace, optional
            The library whose arrays the moments are to be applied to or merged with, such as ``torch``; left out,
            theirs.
        dtype : dtype, optional
            That of those arrays, of any library, or its name; left out, as wide as the data that the moments are of.
            What is out of the range of narrower arrays becomes Inf, NaN or 0.
        device : device of that library, optional
            Where those arrays are; left out, where the moments are, in another library its default.

        Raises
        ------
        TypeError
            If ``xp`` is not an array namespace, ``dtype`` not a real floating one, or values are not known, as while a
            function is traced.
        ValueError
            If there is no such device, or it has no float64.

        Examples
        --------
        >>> import numpy, anynorm
        >>> wide = anynorm.moments(numpy.asarray([1.0, 3.0]))
        >>> wide.to(dtype=numpy.float32).merge(anynorm.moments(numpy.ones(2, numpy.float32))).count
        4
        """
        register()
        namespace = self._xp if xp is None else written.namespace("xp", xp)
        if device is not None:
            written.placement(namespace, device)
        wide = None if dtype is None else moved.is_wide(dtype)
        return Moments(moved.moved(self._xp, self._shared(), namespace, device, wide), namespace)

    def astype(self, dtype: Any) -> Moments:
        """Return these moments for arrays of another dtype; the same as ``to(dtype=dtype)``."""
        return self.to(dtype=dtype)

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
        return written.written(self._xp, self._statistics)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], *, xp: Any = None, device: Any = None) -> Moments:
        """Return the moments of which `to_dict` made a dict.

        Parameters
        ----------
        values : dict
            From `to_dict`; keys that it does not know are ignored.
        xp : array namespace, optional
            The library whose arrays the moments are to be applied to or merged with, such as ``torch``; left out,
            NumPy.
        device : device of that library, optional
            Where those arrays are; left out, the library's default.

        Raises
        ------
        TypeError
            If ``values`` is no dict, an entry of another type, or ``xp`` not an array namespace.
        ValueError
            If an entry is missing, or does not fit the others, or there is no such device.
        """
        register()
        return _held(written.read(values, numpy if xp is None else xp, device))

    def flatten(self) -> tuple[tuple[Any, ...], tuple[int | None, Any]]:
        """Take apart into arrays and what is known without them, as a JAX pytree is."""
        *parts, count = self._shared()[1:-1] + (self._statistics.elements,)
        return (*parts, count if self._is_by_row else None), (None if self._is_by_row else count, self._xp)

    def _shared(self) -> Statistics:
        """The statistics, whose arrays others may hold and change from now on, so that nothing made of them is kept."""
        self._finished = None
        return self._statistics

    @classmethod
    def unflatten(cls, known: tuple[int | None, Any], arrays: tuple[Any, ...]) -> Moments:
        """Put together again what `flatten` took apart."""
        moments = cls(of_leaves(known[0], tuple(arrays)), known[1])
        moments._is_by_row = known[0] is None  # also where something else stands for the arrays, as in vmap
        return moments

    def __eq__(self, other: object) -> bool:
        """Whether both have the same values, of one library and one width of data; a NaN is equal to a NaN."""
        if not isinstance(other, Moments):
            return NotImplemented
        return self is other or equal.equal((self._xp, self._statistics), (other._xp, other._statistics))

    def __reduce__(self) -> tuple[Any, ...]:
        # A module cannot be pickled; its name finds it again.
        arrays, (count, xp) = self.flatten()
        return _restored, (count, arrays, xp.__name__)

    def __repr__(self) -> str:
        return f"Moments(count={self.count!r}, mean={self.mean!r}, variance={self.variance!r})"


def may_keep(moments: Moments) -> Moments:
    """Say that nobody else holds the arrays of these, so that kernels may keep what they have become."""
    moments._finished = {}
    return moments


def _of_new_arrays(pair: tuple[Any, Statistics]) -> Moments:
    """Moments of arrays that were just made; a count of each row may be the caller's."""
    moments = _held(pair)
    return may_keep(moments) if pair[0] is numpy and not moments._is_by_row else moments


def _held(pair: tuple[Any, Statistics]) -> Moments:
    xp, found = pair
    return Moments(found, xp)


def _restored(count: int | None, arrays: tuple[Any, ...], namespace: str) -> Moments:
    register()
    return Moments(of_leaves(count, arrays), importlib.import_module(namespace))


pytree(Moments, (*LEAVES[:-1], "count"), Moments.flatten, Moments.unflatten)
torch_pytree(Moments, LEAVES, Moments.flatten, Moments.unflatten)
