"""Makes norms and moments pytrees once JAX is in the process: arrays are leaves, the rest is configuration."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

_Kind = tuple[type, Callable[..., Any], Callable[..., Any]]

_waiting: list[_Kind] = []


def pytree(kind: type, flatten: Callable[..., Any], unflatten: Callable[..., Any]) -> None:
    """Have a class registered with JAX, as soon as `register` finds that."""
    _waiting.append((kind, flatten, unflatten))


def register() -> None:
    """Register what waits for JAX, where something else has imported that; called wherever instances come from."""
    tree_util = getattr(sys.modules.get("jax"), "tree_util", None)
    while tree_util is not None and _waiting:
        try:
            kind = _waiting.pop()
        except IndexError:  # another thread took the last
            return
        tree_util.register_pytree_node(*kind)
