"""Moments of rows: what step 1 of the definition makes, step 2 uses, and a caller may merge.

Merging follows Chan, Golub, LeVeque 1983, "Algorithms for computing the sample variance".
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from operator import attrgetter
from typing import Any

import numpy

from anynorm._definition import merging
from anynorm._definition.merging import sum_of_squares
from anynorm._definition.norms import Statistics
from anynorm._lengths import chunks_like, require_blocks_alike, shapes_agree
from anynorm._libraries import library_of
from anynorm._moments_dict import read
from anynorm._pytrees import pytree, register
from anynorm._tasks import each_block
from anynorm._wording import describe, is_traced, sentence

Array = Any

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
        return self._statistics.elements

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
        return _of_rows(self, _mean)

    @property
    def variance(self) -> Array:
        """The population variance of each row, sum((x - mean)**2) / count."""
        return _of_rows(self, _variance)

    @property
    def mean_square(self) -> Array:
        """The mean square of each row, sum(x**2) / count."""
        return _of_rows(self, _mean_square)

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
        arrays: list[Any] = [None if one is None else _on_host(one) for one in _computed(self)]
        lists = [None if one is None else one.reshape(-1).tolist() for one in arrays]
        dtype = arrays[PARTS.index("squares")].dtype.name
        return {
            "count": self.count, "shape": list(self.shape), "dtype": dtype, **dict(zip(PARTS, lists, strict=True)),
        }  # fmt: skip

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], *, xp: Any = None, device: Any = None) -> Moments:
        """Return the moments of which `to_dict` made a dict.

        Parameters
        ----------
        values : dict
            From `to_dict`; keys that it does not know are left alone.
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
        return of_arrays(*read(values, PARTS, numpy if xp is None else xp, device))

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
    """The statistics that the definition computes with."""
    return moments._statistics


def _on_host(array: Array) -> Any:
    """An array as NumPy's, by whatever method its library has for that."""
    given = array
    try:
        for step in ("detach", "cpu", "get", "todense", "unwrap_numpy"):
            array = getattr(array, step, lambda array=array: array)()
    except ValueError:  # of ndonnx, which has no values yet
        array = None
    try:
        host = numpy.asarray(None if is_traced(array) else array)
    except RuntimeError:  # it is on a device that NumPy cannot read
        if not hasattr(array, "__dlpack__"):
            raise
        host = numpy.from_dlpack(array, device="cpu")
    if host.dtype.kind != "f":
        do = "call to_dict where they are computed, not while they are traced"
        raise TypeError(sentence("moments", "have values that the host can read", f"those in {describe(given)}", do))
    return host


def _restored(count: int, arrays: tuple[Any, ...], namespace: str) -> Moments:
    register()
    return of_arrays(count, arrays, importlib.import_module(namespace))


pytree(Moments, PARTS, Moments.flatten, Moments.unflatten)


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
    if not a.count or not b.count:
        return a if a.count else b
    return _merge_blocks(a, b) if _is_dask(a) else Moments(merging.merge(a._xp, a._statistics, b._statistics), a._xp)


def quietly(xp: Any) -> AbstractContextManager[Any]:
    """Silence NumPy's warnings, which other libraries compute with too: NaN, Inf and overflow are results here."""
    # torch.compile cannot trace numpy.errstate.
    return nullcontext() if xp.__name__ == "array_api_compat.torch" else numpy.errstate(all="ignore")


def _mean(xp: Any, found: Statistics) -> Array:
    mean = found.squares * 0.0 if found.mean is None else found.mean
    return _in_units(found, mean + (0.0 if found.mean_low is None else found.mean_low), 1)


def _variance(xp: Any, found: Statistics) -> Array:
    low = 0.0 if found.squares_low is None else found.squares_low
    return _in_units(found, (found.squares + low) / found.elements, 2)


def _mean_square(xp: Any, found: Statistics) -> Array:
    high, low = sum_of_squares(xp, found)
    return _in_units(found, (high + low) / found.elements, 2)


def _in_units(found: Statistics, values: Array, power: int) -> Array:
    """Divide by the unit to that power, one division at a time, for unit**2 may be out of range."""
    for _ in range(power if found.unit is not None else 0):
        values = values / found.unit
    return values


def _of_rows(moments: Moments, function: Callable[[Any, Statistics], Array]) -> Array:
    """Return function(namespace, statistics), for Dask block by block."""
    if _is_dask(moments):
        squares = moments._statistics.squares
        return _each_block(function, f"moments{function.__name__}", moments, meta=squares._meta)
    with quietly(moments._xp):
        return function(moments._xp, moments._statistics)


def _is_dask(moments: Moments) -> bool:
    return bool(moments._xp.__name__.endswith("dask.array"))


def _computed(moments: Moments) -> tuple[Any, ...]:
    """The arrays of moments; Dask's are computed together, so that the data is read once."""
    if not _is_dask(moments):
        return arrays_of(moments)
    dask: Any = importlib.import_module("dask")
    found: tuple[Any, ...] = dask.compute(*arrays_of(moments))
    return found


def _each_block(function: Callable[..., Any], prefix: str, *several: Moments, meta: Array) -> Array:
    """A Dask array whose blocks are function(namespace, *statistics)."""
    arrays, present = [], []
    chunks = several[0]._statistics.squares.chunks
    for one in several:
        arrays += [part.rechunk(chunks_like(part.chunks, chunks)) for part in arrays_of(one) if part is not None]
        present.append((one.count, tuple(part is not None for part in arrays_of(one))))
    return each_block(partial(_on_block, function, tuple(present)), prefix, *arrays, chunks=chunks, meta=meta)


def _on_block(function: Callable[..., Any], present: tuple[tuple[int, tuple[bool, ...]], ...], *arrays: Array) -> Any:
    """Call a function with the statistics of one block, whose arrays are given one by one."""
    rest = iter(arrays)
    several = [Statistics(count, *(next(rest) if is_there else None for is_there in parts)) for count, parts in present]
    return function(library_of(arrays[0]).namespace, *several)


def _merge_blocks(a: Moments, b: Moments) -> Moments:
    """Merge moments of Dask arrays, in one task for each block."""
    require_blocks_alike("other", b._statistics.squares, a._statistics.squares)
    metas = [Statistics(m.count, *(None if part is None else part._meta for part in arrays_of(m))) for m in (a, b)]
    there = merging.merge(library_of(metas[0].squares).namespace, *metas)
    merged = _each_block(merging.merge, "moments-merge", a, b, meta=metas[0].squares)

    def part(name: str) -> Array | None:
        meta = getattr(there, name)
        function, chunks = attrgetter(name), merged.chunks
        return None if meta is None else each_block(function, f"moments-{name}", merged, chunks=chunks, meta=meta)

    return of_arrays(there.elements, [part(name) for name in PARTS], a._xp)
