"""Which tensors of a model are parameters of a norm, as their names tell."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import NamedTuple

# The last part of a norm's name that is no number: input_layernorm, q_norm, LayerNorm, ln_1, pre_layrnorm (so in CLIP).
_NORM = re.compile(r"norm|layrnorm|(^|_)ln(_|\d|$)|^subln$")
_OTHER_NORM = re.compile(r"(batch|group|instance|weight|spectral|local_?response|global_?response)_?norm")
# What the parameters are called: by torch, by Keras and old files of BERT, by Flax and Haiku, by x-transformers.
_WEIGHTS, _BIASES = ("weight", "gamma", "scale", "g"), ("bias", "beta", "offset")
_RUNNING = ("running_mean", "running_var", "num_batches_tracked", "moving_mean", "moving_variance")


class Named(NamedTuple):
    """The names of the parameters of each norm by the norm's name; what is none that can be loaded, and why."""

    norms: dict[str, tuple[str, str | None]]
    left: dict[str, str]


def norms_among(names: Iterable[str], where: object) -> Named:
    """Find the norms among the names of tensors."""
    weights: dict[str, str] = {}
    biases: dict[str, str] = {}
    left: dict[str, str] = {}
    for name in names:
        norm, last = split(name)
        part = _telling_part(norm)
        if not _NORM.search(part):
            continue
        if last in _RUNNING:
            left[norm] = f"a BatchNorm, for it has {last}"
        elif other := _OTHER_NORM.search(part):
            left.setdefault(norm, f"named as a {other[1]} norm")
        elif last in _WEIGHTS + _BIASES:
            into = weights if last in _WEIGHTS else biases
            if norm in into:
                raise ValueError(f"{where} holds a parameter of {norm} twice: {into[norm]} and {name}")
            into[norm] = name
    for norm in biases:
        if norm not in weights:
            left.setdefault(norm, "a bias without a weight")
    return Named({norm: (name, biases.get(norm)) for norm, name in weights.items() if norm not in left}, left)


def split(name: str) -> tuple[str, str]:
    """The name of a module, and that of a parameter: Keras writes encoder/layer_norm/gamma:0."""
    norm, _, last = name.removesuffix(":0").rpartition("/" if "/" in name else ".")
    return norm, last


def is_parameter(name: str) -> bool:
    """Whether the last part of a name is what parameters of norms are called."""
    return split(name)[1] in _WEIGHTS + _BIASES


def _telling_part(norm: str) -> str:
    """The last part that is no number, in small letters."""
    parts = [part for part in re.split(r"[./]", norm) if part and not part.isdecimal()]
    return parts[-1].lower() if parts else ""
