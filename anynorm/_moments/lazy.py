"""What Dask asks of its collections, of moments: https://docs.dask.org/en/stable/custom-collections.html."""

from __future__ import annotations

import importlib
from typing import Any, Self

from anynorm._libraries import library_of
from anynorm._moments.parts import is_lazy


class MaybeLazy:
    """Moments, as far as Dask goes; a subclass has `flatten` and `unflatten`."""

    __slots__ = ()

    def flatten(self) -> tuple[tuple[Any, ...], tuple[int | None, Any]]:
        """Take apart into arrays and what is known without them."""
        raise NotImplementedError

    @classmethod
    def unflatten(cls, known: tuple[int | None, Any], arrays: tuple[Any, ...]) -> Self:
        """Put together again."""
        raise NotImplementedError

    def compute(self, **options: Any) -> Self:
        """Return moments of the arrays that Dask's blocks are, all computed at once; others are returned as they are.

        ``dask.compute(moments)`` does the same, and takes the same options.
        """
        return self._by_dask("compute", options)

    def persist(self, **options: Any) -> Self:
        """Return moments whose Dask arrays are computed and stay where they are; others are returned as they are."""
        return self._by_dask("persist", options)

    def _by_dask(self, function: str, options: dict[str, Any]) -> Self:
        if not is_lazy(self.flatten()[1][1]):
            return self
        found: Self = getattr(importlib.import_module("dask"), function)(self, **options)[0]
        return found

    def _lazy(self) -> list[Any]:
        return [one for one in self.flatten()[0] if one is not None]

    def __dask_graph__(self) -> Any:
        if not is_lazy(self.flatten()[1][1]):  # by which Dask tells that this is nothing to be computed
            return None
        from dask.highlevelgraph import HighLevelGraph

        return HighLevelGraph.merge(*(one.__dask_graph__() for one in self._lazy()))

    def __dask_keys__(self) -> list[Any]:
        return [one.__dask_keys__() for one in self._lazy()]

    def __dask_layers__(self) -> tuple[str, ...]:
        return tuple(name for one in self._lazy() for name in one.__dask_layers__())

    @property
    def __dask_optimize__(self) -> Any:
        return type(self._lazy()[0]).__dask_optimize__

    @property
    def __dask_scheduler__(self) -> Any:
        return type(self._lazy()[0]).__dask_scheduler__

    def __dask_tokenize__(self) -> Any:
        arrays, (count, xp) = self.flatten()
        return type(self).__name__, xp.__name__, count, arrays

    def __dask_postcompute__(self) -> tuple[Any, tuple[Any, ...]]:
        return _of_results, (type(self), self.flatten()[1][0], self._steps("__dask_postcompute__"))

    def __dask_postpersist__(self) -> tuple[Any, tuple[Any, ...]]:
        return _of_graph, (type(self), self.flatten()[1], self._steps("__dask_postpersist__"))

    def _steps(self, name: str) -> tuple[Any, ...]:
        """What Dask is to do with what each array has become."""
        return tuple(None if one is None else getattr(one, name)() for one in self.flatten()[0])


def _of_results(results: Any, kind: type[MaybeLazy], count: int | None, steps: tuple[Any, ...]) -> Any:
    rest = iter(results)
    arrays = tuple(None if step is None else step[0](next(rest), *step[1]) for step in steps)
    namespace = library_of(next(one for one in arrays if one is not None)).namespace
    return kind.unflatten((count, namespace), arrays)


def _of_graph(graph: Any, kind: type[MaybeLazy], known: Any, steps: tuple[Any, ...], **options: Any) -> Any:
    arrays = tuple(None if step is None else step[0](graph, *step[1], **options) for step in steps)
    return kind.unflatten(known, arrays)
