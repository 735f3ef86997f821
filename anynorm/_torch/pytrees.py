"""Makes moments pytrees of torch, which torch.export and torch.func go by: tensors are leaves, the rest is known."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from typing import Any

_Kind = tuple[type, Sequence[str], Callable[..., Any], Callable[..., Any]]

_waiting: list[_Kind] = []


def torch_pytree(kind: type, names: Sequence[str], flatten: Callable[..., Any], unflatten: Callable[..., Any]) -> None:
    """Have a class registered with torch, as soon as that is imported; ``names`` are those of its arrays."""
    _waiting.append((kind, names, flatten, unflatten))


def register_with_torch(torch: Any) -> None:
    """Register what waits, by the function that torch's messages name, although its module has an underscore."""
    while _waiting:
        try:
            _register(torch.utils._pytree, *_waiting.pop())
        except (AttributeError, IndexError):  # that is not there any more; another thread took the last
            return


def _register(
    of_torch: Any, kind: type, names: Sequence[str], flatten: Callable[..., Any], unflatten: Callable[..., Any]
) -> None:
    # What is known is written as JSON where a program is exported. To torch None would be a leaf, so none is left.
    def apart(value: Any) -> tuple[list[Any], list[Any]]:
        arrays, (count, xp) = flatten(value)
        there = [name for name, one in zip(names, arrays, strict=True) if one is not None]
        return [one for one in arrays if one is not None], [count, xp.__name__, there]

    def together(arrays: Any, known: list[Any]) -> Any:
        count, namespace, there = known
        by_name = dict(zip(there, arrays, strict=True))
        return unflatten((count, _imported(namespace)), tuple(by_name.get(name) for name in names))

    def apart_with_keys(value: Any) -> tuple[list[Any], list[Any]]:
        # By number: torch.export 2.13 writes guards that are no Python where one name begins with another.
        arrays, known = apart(value)
        return [(of_torch.SequenceKey(place), one) for place, one in enumerate(arrays)], known

    name = f"{kind.__module__.partition('.')[0]}.{kind.__name__}"
    of_torch.register_pytree_node(
        kind, apart, together, serialized_type_name=name, flatten_with_keys_fn=apart_with_keys
    )


def _imported(namespace: str) -> Any:
    if namespace == "array_api_compat.torch":  # a statement, because torch.compile follows that and not import_module
        import array_api_compat.torch as xp

        return xp
    return importlib.import_module(namespace)
