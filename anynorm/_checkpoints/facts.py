"""What is known of a norm in a file, and what it takes to make one."""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, TypeGuard

from anynorm._checkpoints.stored import Tensor
from anynorm._convention import CONVENTIONS, Convention

Given = Any  # a convention: its name, or an anynorm.Convention; None: not given

LAYER, RMS, SCALE = KINDS = ("layer_norm", "rms_norm", "scale_norm")
# Conventions that belong to one of the three norms; those of libraries, as torch, are for several.
_KIND_OF_CONVENTION = {
    **dict.fromkeys(("llama", "gemma", "gemma3", "qwen3", "olmo2", "t5", "rmsnorm_paper"), RMS),
    **dict.fromkeys(("cohere", "nemotron"), LAYER),
    "scalenorm_paper": SCALE,
}


@dataclass(frozen=True)
class Facts:
    """What is said of a norm by its file or by the caller; None: nothing."""

    kind: str | None = None
    convention: Given = None
    eps: float | None = None
    dim: int | None = None  # of a ScaleNorm, whose parameter does not tell it
    why: str = ""  # not more is known
    weight_is_factor: bool = False  # an offset that the convention adds to the weight is in it already
    normalized: int | None = None  # how many of the weight's axes, the last ones; None: not said

    def missing(self) -> list[str]:
        """What a norm cannot be made without."""
        facts = {"kind": self.kind, "convention": self.convention, "eps": self.eps}
        if self.kind == SCALE:
            facts["dim"] = self.dim
        return [name for name, value in facts.items() if value is None]

    def normalized_of(self, weight: Tensor) -> int | None:
        """How many of a weight's axes are normalized: the last of several by the convention of a model."""
        if self.normalized is None and (len(weight.shape) == 1 or kind_of(self.convention) is not None):
            return 1
        return self.normalized

    def overruled_by(self, given: Facts) -> Facts:
        """The same with what the caller says in the place of what the file does."""
        convention = self.convention if given.convention is None else given.convention
        return replace(
            self,
            kind=given.kind or self.kind or kind_of(given.convention),
            convention=convention,
            eps=self.eps if given.eps is None else given.eps,
            dim=self.dim if given.dim is None else given.dim,
            weight_is_factor=self.weight_is_factor and name_of(convention) is not None,
        )


class Found(NamedTuple):
    """The norms of a file by name: weight, bias, what is known; and what is named as one and was skipped, and why."""

    norms: dict[str, tuple[Tensor, Tensor | None, Facts]]
    skipped: dict[str, str]


def is_eps(value: Any) -> TypeGuard[float]:
    """Whether what a file says is a number that eps may be."""
    return type(value) in (int, float) and 0 <= value <= sys.float_info.max


def kind_of(convention: Given) -> str | None:
    """The norm that a convention is for, where it is for one."""
    return _KIND_OF_CONVENTION.get(name_of(convention) or "")


def name_of(convention: Given) -> str | None:
    """The name that stands for a convention in `CONVENTIONS`; None: it is one of the caller's own."""
    if isinstance(convention, Convention):
        return convention.name if CONVENTIONS.get(convention.name) == convention else None
    return None if convention is None else str(convention)
