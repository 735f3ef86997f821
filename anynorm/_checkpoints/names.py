"""Which tensors of a model are parameters of a norm, as their names tell."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from anynorm._checkpoints.stored import Tensor

# The last part of a norm's name that is no number: input_layernorm, q_norm, LayerNorm, ln_1, pre_layrnorm (so in CLIP).
_NORM = re.compile(r"norm|layrnorm|(^|_)ln(_|\d|$)|^subln$")
_OTHER_NORM = re.compile(r"(batch|group|instance|weight|spectral|local_?response|global_?response)_?norm")
# What the parameters are called: by torch, by Keras and old files of BERT, by Flax and Haiku, by x-transformers.
_WEIGHTS, _BIASES = ("weight", "gamma", "scale", "g"), ("bias", "beta", "offset")
_RUNNING = ("running_mean", "running_var", "num_batches_tracked", "moving_mean", "moving_variance")


class Named(NamedTuple):
    """The names of the parameters of each norm by the norm's name; what is none that can be loaded, and why."""

    norms: dict[str, tuple[str, str | None]]
    skipped: dict[str, str]


def norms_among(names: Iterable[str], where: object) -> Named:
    """Find the norms among the names of tensors."""
    weights: dict[str, str] = {}
    biases: dict[str, str] = {}
    skipped: dict[str, str] = {}
    for name in names:
        norm, last = split(name)
        why = why_no_norm(norm)
        if why is None:
            continue
        if last in _RUNNING:
            skipped[norm] = f"a BatchNorm, for it has {last}"
        elif why:
            skipped.setdefault(norm, why)
        elif last in _WEIGHTS + _BIASES:
            into = weights if last in _WEIGHTS else biases
            if norm in into:
                raise ValueError(f"{where} holds a parameter of {norm} twice: {into[norm]} and {name}")
            into[norm] = name
    for norm in biases:
        if norm not in weights:
            skipped.setdefault(norm, "a bias without a weight")
    return Named({norm: (name, biases.get(norm)) for norm, name in weights.items() if norm not in skipped}, skipped)


def why_no_norm(name: str) -> str | None:
    """Why what is called so is no norm that can be loaded; '' where it is one, None where it is not named as a norm."""
    part = _telling_part(name)
    other = _OTHER_NORM.search(part)
    return f"named as a {other[1]} norm" if other else "" if _NORM.search(part) else None


def nameless_among(tensors: Mapping[str, Tensor]) -> dict[str, str]:
    """What may be norms by their weights, and has but a number for a name, as in a torch.nn.Sequential."""
    skipped = {}
    for name, tensor in tensors.items():
        norm, last = split(name)
        if last not in _WEIGHTS or len(tensor.shape) != 1 or why_no_norm(norm) is not None:
            continue
        if not re.fullmatch(r"(.*[./])?\d*", norm):
            continue
        has_running = [one for one in _RUNNING if f"{name.removesuffix(last)}{one}" in tensors]
        do = "if it is a norm's, give it to load_state_dict of one"
        of_batch = f"a BatchNorm, for it has {has_running[0]}" if has_running else ""
        skipped[norm] = of_batch or f"its name does not tell what it is, and its weight has one axis; {do}"
    return skipped


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
