"""What the modules of anynorm.nnx do when they are called."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from flax.nnx.nn.dtypes import canonicalize_dtype

from anynorm._by_convention import without_offset
from anynorm._moments import Moments
from anynorm._norms import moments
from anynorm._numbers import as_index
from anynorm._wording import describe, sentence

Parameters = tuple[nnx.Param[Any] | None, ...]


def normalized(
    norm: Any, function: Callable[..., jax.Array], x: jax.Array, parameters: Parameters, mask: jax.Array | None
) -> jax.Array:
    """Convert as Flax does, give parameters the axes that the function wants, call that."""
    x, held, dtype = promoted_by(norm, x, parameters)
    reduced, features = (_axes(name, getattr(norm, name), x) for name in ("reduction_axes", "feature_axes"))
    if any(one is not None for one in held):
        require_features(norm.num_features, x, features)
    options: dict[str, Any] = {"axis": reduced, "eps": norm.epsilon, "convention": without_offset(norm.convention)}
    options["weight_offset"] = 0.0 if held[0] is None else norm.weight_offset
    if mask is not None or norm.axis_name is not None:
        found = moments(x, axis=reduced) if mask is None else _moments_where(mask, x, reduced)
        merged = norm.axis_name is not None
        options["moments"] = _merged_moments(found, norm.axis_name, norm.axis_index_groups) if merged else found
    shape = [length if axis in features else 1 for axis, length in enumerate(x.shape)]
    return jnp.asarray(function(x, *(None if one is None else one.reshape(shape) for one in held), **options), dtype)


def promoted_by(norm: Any, x: Any, parameters: Parameters) -> tuple[jax.Array, list[Any], Any]:
    """Return x and the values of the parameters as the norm's promote_dtype makes them, and the dtype of the result."""
    held = [None if one is None else one[...] for one in parameters]
    x, *held = norm.promote_dtype((x, *held), dtype=norm.dtype)
    widest = canonicalize_dtype(x, *held)  # theirs, where the function is Flax's own
    return jnp.asarray(x, widest), held, canonicalize_dtype(x, *held, dtype=norm.dtype)


def _axes(argument: str, given: Any, x: jax.Array) -> tuple[int, ...]:
    """Axes of x in ascending order, none negative, each once."""
    must = "an int or a sequence of ints"
    axes = [as_index(argument, axis, must) for axis in (given if isinstance(given, Iterable) else (given,))]
    if not axes or not all(-x.ndim <= axis < x.ndim for axis in axes):
        lie = f"name axes in [{-x.ndim}, {x.ndim}) for x of shape {x.shape}"
        raise ValueError(sentence(argument, lie, describe(given), "pass axes that x has, -1 for the last one"))
    return tuple(sorted({axis % x.ndim for axis in axes}))


def require_features(num_features: int, x: jax.Array, axes: tuple[int, ...]) -> None:
    """Raise ValueError unless the axes of x together are as long as the parameters."""
    if math.prod(x.shape[axis] for axis in axes) != num_features:
        of = f"along axis {axes[0]}" if len(axes) == 1 else f"along its axes {axes} together"
        do = "pass x of that length, or make the norm with another num_features"
        raise ValueError(sentence("x", f"have the {num_features} features of the norm {of}", f"shape {x.shape}", do))


def _moments_where(mask: Any, x: jax.Array, axes: tuple[int, ...]) -> Moments:
    """The moments of the elements where the mask is true."""
    try:
        mask = jnp.broadcast_to(jnp.asarray(mask).astype(bool), x.shape)
    except (TypeError, ValueError) as wrong:
        kind = TypeError if isinstance(wrong, TypeError) else ValueError
        must = f"be an array that broadcasts to the shape of x, {x.shape}"
        got = f"shape {jnp.shape(mask)}" if hasattr(mask, "shape") else describe(mask)
        raise kind(sentence("mask", must, got, "pass one bool for each element of x, or a row of them")) from None
    # NaN is left out, so one that counts is written as another number that makes its row NaN.
    counted = jnp.where(jnp.isnan(x), jnp.inf, x)
    return moments(jnp.where(mask, counted, jnp.nan), axis=axes, skip_nan=True)


def _merged_moments(own: Moments, axis_name: str, groups: Any) -> Moments:
    """The moments of all pieces along a mapped axis, or of those of one's own group; merged by halves."""
    gathered = jax.tree.map(lambda one: jax.lax.all_gather(one, axis_name, axis_index_groups=groups), own)

    def piece(at: int | slice) -> Moments:
        part: Moments = jax.tree.map(lambda one: one[at], gathered)
        return part

    odd = []
    pieces = gathered.shape[0]
    while pieces > 1:
        if pieces % 2:
            odd.append(piece(pieces - 1))
        pieces //= 2
        gathered = piece(slice(pieces)).merge(piece(slice(pieces, 2 * pieces)))
    whole = piece(0)
    for one in odd:
        whole = whole.merge(one)
    return whole
