"""Makes norms and moments pytrees once JAX is in the process: arrays are leaves, the rest is configuration."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import Any

_Kind = tuple[type, Sequence[str], Callable[..., Any], Callable[..., Any]]

_waiting_for_jax: list[_Kind] = []
_waiting_for_flax: list[type] = []


def pytree(kind: type, names: Sequence[str], flatten: Callable[..., Any], unflatten: Callable[..., Any]) -> None:
    """Have a class registered with JAX, as soon as `register` finds that; ``names`` are those of its arrays."""
    _waiting_for_jax.append((kind, names, flatten, unflatten))
    _waiting_for_flax.append(kind)


def register() -> None:
    """Register the classes that wait, once JAX or Flax has been imported; called wherever instances are made."""
    tree_util = getattr(sys.modules.get("jax"), "tree_util", None)
    while tree_util is not None and _waiting_for_jax:
        try:
            kind = _waiting_for_jax.pop()
        except IndexError:  # another thread took the last
            return
        _register_with_jax(tree_util, *kind)
    # Without this a module of flax.nnx takes a norm among its attributes for configuration, and refuses its arrays.
    is_data = getattr(sys.modules.get("flax.nnx"), "register_data_type", None)
    while is_data is not None and _waiting_for_flax:
        try:
            is_data(_waiting_for_flax.pop())
        except IndexError:
            return


def _register_with_jax(
    tree_util: Any, kind: type, names: Sequence[str], flatten: Callable[..., Any], unflatten: Callable[..., Any]
) -> None:
    keys = [tree_util.GetAttrKey(name) for name in names]

    def flatten_with_keys(value: Any) -> Any:
        arrays, held = flatten(value)
        return tuple(zip(keys, arrays, strict=True)), held

    tree_util.register_pytree_with_keys(kind, flatten_with_keys, unflatten, flatten)
