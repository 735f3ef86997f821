"""The norms of Hugging Face's transformers: which convention each class goes by, and how one becomes a norm of anynorm.

A class is known by its name and by the module that defines it; transformers is not imported.
"""

from __future__ import annotations

import re
from typing import Any

import torch

from anynorm._convention import CONVENTIONS, encoded
from anynorm._models import CONVENTION_OF_CLASS
from anynorm._numbers import check_number

Module = torch.nn.Module

_DEFINED_IN = re.compile(r"transformers\.models\.(\w+)\.modeling_\w+")
_CENTRED = ("cohere", "nemotron")


def convention_of(kind: type) -> str | None:
    """The name of the convention that a class of transformers goes by; None for all others."""
    return CONVENTION_OF_CLASS.get(kind.__name__) if _DEFINED_IN.fullmatch(kind.__module__) else None


def is_centred(kind: type) -> bool:
    """Whether such a class is a LayerNorm, not an RMSNorm."""
    return convention_of(kind) in _CENTRED


def why_unfit(module: Any) -> str | None:
    """Why such a norm would not compute the same as one of ours."""
    weight = module._parameters.get("weight")
    if weight is None:
        return "it has no weight"
    if not weight.ndim:
        return "its weight has no axes"
    try:
        check_number("eps", _eps_of(module), least=0.0)
    except (AttributeError, TypeError, ValueError) as error:
        return str(error).partition(";")[0]
    return None


def dress(module: Any) -> None:
    """Give it what a norm of anynorm.torch has, all but the class."""
    kind = type(module)
    convention = CONVENTIONS[str(convention_of(kind))]
    given = {
        "eps": float(_eps_of(module)),
        "normalized_shape": tuple(module.weight.shape[-1:]),  # also where each head has a weight
        "elementwise_affine": True,
        "weight_offset": convention.weight_offset,
        "_by": encoded(convention),
    }
    module.swapped_from = kind, {name: vars(module)[name] for name in given if name in vars(module)}
    vars(module).update(given)
    if "bias" not in module._parameters:
        module.register_parameter("bias", None)


def undress(module: Any) -> None:
    """Take it away again, and give back the class."""
    kind, before = module.swapped_from
    for name in ("swapped_from", "eps", "normalized_shape", "elementwise_affine", "weight_offset", "_by"):
        del vars(module)[name]
    vars(module).update(before)
    if not is_centred(kind):
        del module.bias
    module.__class__ = kind


def _eps_of(module: Any) -> Any:
    return module.variance_epsilon if hasattr(module, "variance_epsilon") else module.eps
