"""Norms made of what was found in a file."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

import numpy

from anynorm._checkpoints.facts import LAYER, RMS, SCALE, Facts, Found
from anynorm._checkpoints.stored import FLOATS, Tensor, values
from anynorm._convention import Convention, check_convention
from anynorm._libraries import Library
from anynorm._modules.loading import library_and_dtype
from anynorm.modules import LayerNorm, RMSNorm, ScaleNorm

Norm = LayerNorm | RMSNorm | ScaleNorm


class Norms(Mapping[str, Norm]):
    """The norms of a model by name, as `anynorm.load_norms` returns them; printed, a line for each sort.

    Attributes
    ----------
    skipped : dict from str to str
        What is named as a norm and was not loaded, and why.
    """

    def __init__(self, norms: Mapping[str, Norm], skipped: Mapping[str, str]) -> None:
        self._norms = dict(norms)
        self.skipped: dict[str, str] = dict(skipped)

    def __getitem__(self, name: str) -> Norm:
        return self._norms[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._norms)

    def __len__(self) -> int:
        return len(self._norms)

    def __repr__(self) -> str:
        lines = [f"{len(self)} norms, {len(self.skipped)} skipped"]
        for state, told in (("", self._norms), ("skipped ", self.skipped)):
            sorts: dict[tuple[str, str], int] = {}
            for name, one in told.items():
                starred = ".".join("*" if part.isdecimal() else part for part in name.split("."))
                what = str(one)
                if what.startswith(f"{name}."):  # why it was skipped begins with the name of its weight
                    what = starred + what.removeprefix(name)
                sorts[starred, what] = sorts.get((starred, what), 0) + 1
            lines += [f"  {state}{count:>3} x {name}  {one}" for (name, one), count in sorts.items()]
        return "\n".join(lines)


def make_norms(found: Found, given: Facts, where: object, xp: Any, dtype: Any, device: Any) -> Norms:
    """Read the parameters of each norm of which enough is known."""
    library, _ = library_and_dtype(xp, dtype)  # raises before anything is read
    norms: dict[str, Norm] = {}
    skipped = dict(found.skipped)
    for name, (weight, bias, of_file) in found.norms.items():
        facts = of_file.overruled_by(given)
        reason = _why_skipped(weight, bias, facts) or _why_unlike(bias, of_file, given)
        if reason is not None:
            skipped[name] = reason
            continue
        if facts.eps is None or not 0 <= facts.eps < math.inf:
            raise ValueError(f"{where} is damaged: the eps of {name} is {facts.eps}")
        norms[name] = _norm_of(facts, weight, bias, library, dtype, {"xp": xp, "device": device})
    if not norms:
        of_norms = found.norms or skipped
        told = next(((name, reason) for name, reason in skipped.items() if name in of_norms), None)
        if told is None:
            raise ValueError(f"{where} holds no tensor that is named as the weight of a norm")
        raise ValueError(f"no norm of {where} can be made: {told[0]}: {told[1]}")
    return Norms(norms, skipped)


def _why_skipped(weight: Tensor, bias: Tensor | None, facts: Facts) -> str | None:
    """What a norm cannot be made for."""
    missing = facts.missing()
    if missing:
        *others, last = (f"{name}=" for name in missing)
        because = f"{facts.why}; " if facts.why else ""
        return f"{because}pass {', '.join(others)}{' and ' if others else ''}{last}"
    for one in (weight, bias):
        if one is not None and one.dtype not in FLOATS:
            return f"{one.name} has elements of {one.dtype}, not of {', '.join(FLOATS)}"
    if facts.kind == SCALE:
        fits = weight.shape in ((), (1,)) and bias is None
        return None if fits else f"a ScaleNorm has a single number, and no bias; {weight.name} has shape {weight.shape}"
    if not weight.shape or 0 in weight.shape:
        return f"{weight.name} has shape {weight.shape}, and a weight has an element for each feature"
    if bias is not None and bias.shape != weight.shape:
        return f"{bias.name} has shape {bias.shape}, and the weight {weight.shape}"
    if facts.normalized_of(weight) is None:
        do = "pass it to a norm of your own"
        return f"{weight.name} has shape {weight.shape}, and which of these axes are normalized is not known: {do}"
    return None


def _why_unlike(bias: Tensor | None, of_file: Facts, given: Facts) -> str | None:
    """What tells that a norm is not what its file says."""
    if bias is not None and of_file.kind == RMS and of_file.convention is not None and given.kind is None:
        return "it has a bias, which an RMSNorm of this model has not; pass kind="
    return None


def _norm_of(
    facts: Facts, weight: Tensor, bias: Tensor | None, library: Library, dtype: Any, place: dict[str, Any]
) -> Norm:
    """A norm with the elements from the file."""
    state = {"weight": values(weight)} | ({"bias": values(bias)} if bias is not None else {})
    if dtype is None:  # that of the file; by NumPy's name for it where a library has none of its own, and may take it
        dtype = _dtype_for({value.dtype for value in state.values()})
        dtype = getattr(library.namespace, dtype.name, dtype)
    options: dict[str, Any] = {"eps": facts.eps, "convention": _convention(facts), "dtype": dtype} | place
    norm: Norm
    if facts.kind == SCALE:
        norm = ScaleNorm(facts.dim or 1, **options)
    else:
        shape = weight.shape[-(facts.normalized_of(weight) or 1) :]
        made = LayerNorm if facts.kind == LAYER else RMSNorm
        norm = made(shape, bias=bias is not None, weight_shape=weight.shape, **options)
    norm.load_state_dict(state)
    return norm


def _dtype_for(dtypes: set[Any]) -> Any:
    """The dtype that holds numbers of all of these; none of 16 bits holds those of the other one."""
    widest = max(dtypes, key=lambda dtype: dtype.itemsize)
    return widest if len(dtypes) == 1 or widest.itemsize > 2 else numpy.dtype(numpy.float32)


def _convention(facts: Facts) -> Convention:
    """The convention, without the offset where the weight in the file has it; eps is that of the norm."""
    convention = check_convention(facts.convention)
    if not (facts.weight_is_factor and convention.weight_offset):
        return convention
    return convention.replace(weight_offset=0.0, eps=None, rms_eps=None)
