"""Norms of a model that change their class: those of torch.nn and of Hugging Face into anynorm's, and back.

A module whose class is changed remains the same object. Whatever refers to it still works: other places in the
model, an optimizer that has its parameters, hooks, code that torch.compile made, which looks at the class and is made
anew. Nothing is copied that could be forgotten.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch.nn.utils.parametrize import is_parametrized

from anynorm._described import described
from anynorm._libraries import REAL_DTYPES, dtype_name
from anynorm._numbers import check_number
from anynorm._torch import hugging_face
from anynorm._wording import describe, sentence, with_article

Module = torch.nn.Module
# The classes of torch.nn with those of anynorm.torch, which puts them here, and all that it has.
OURS: dict[type[Module], type[Module]] = {}
OWN: set[type[Module]] = set()

_NAMED_AS_NORM = re.compile(r"(layer|rms|scale)_?norm", re.IGNORECASE)
_READ_BY_ENCODER = (
    "torch.nn.TransformerEncoderLayer reads its parameters, without a call, in eval mode with no gradients"
)
_PARAMETRIZED = "it is parametrized (torch.nn.utils.parametrize)"


@described
class Entry(NamedTuple):
    """One norm of a model.

    Attributes
    ----------
    names : tuple of str
        Each place that it has in the model, as ``named_modules`` names them; '' is the model itself.
    kind : str
        The name of its class, before anything was swapped.
    note : str
        Why it was skipped; of one that was swapped, what there is to know about it, mostly nothing.
    """

    names: tuple[str, ...]
    kind: str
    note: str


@described
class Report(NamedTuple):
    """Which norms of a model were swapped, and which were skipped and why; printed, a table.

    Attributes
    ----------
    swapped, skipped : tuple of Entry
        In the order of the model.
    """

    swapped: tuple[Entry, ...]
    skipped: tuple[Entry, ...]

    def __repr__(self) -> str:
        lines = [f"swapped {len(self.swapped)}, skipped {len(self.skipped)}"]
        entries = self.swapped + self.skipped
        written = [(", ".join(name or "(the model)" for name in one.names), one) for one in entries]
        of_names = max((len(names) for names, _ in written), default=0)
        of_kinds = max((len(one.kind) for _, one in written), default=0)
        for i, (names, one) in enumerate(written):
            state = "swapped" if i < len(self.swapped) else "skipped"
            lines.append(f"  {state}  {names:{of_names}}  {one.kind:{of_kinds}}  {one.note}".rstrip())
        return "\n".join(lines)


def convert(model: Module) -> Report:
    """Make each norm of torch.nn and of Hugging Face's transformers in a model one of anynorm's, in place.

    A module stays the object it is and changes its class. So parameters, names, hooks, buffers, devices, dtypes, modes
    and the state_dict stay what they were, an optimizer made before still works, and a model that is such a norm itself
    is swapped too. Results differ from torch's by rounding; they always have x's dtype, and are contiguous as torch's
    are. The norms of the models in transformers (LlamaRMSNorm, T5LayerNorm, Gemma3RMSNorm and some 200 more) become
    norms that go by the convention of their model, as the report says: the same roundings, the same eps.

    Parameters
    ----------
    model : torch.nn.Module
        Also one that torch.compile has compiled, which is compiled anew when it is called next.

    Returns
    -------
    Report
        With ``swapped`` and ``skipped``: of each norm its names in the model, its class and, where it was skipped, why.
        These are skipped: subclasses of torch's norms; norms that are parametrized, whose forward was replaced, whose
        parameters are not plain tensors, or which TorchScript compiled; and classes that are called norms and are not
        known. Printed, it is a table.

    Raises
    ------
    TypeError
        If the model is not a torch.nn.Module.

    Examples
    --------
    >>> import torch, anynorm.torch
    >>> model = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.LayerNorm(8))
    >>> anynorm.torch.convert(model)
    swapped 1, skipped 0
      swapped  1  LayerNorm
    >>> type(model[1]).__module__
    'anynorm.torch'
    """

    def why_skipped(module: Module) -> str | None:
        if type(module) in OURS:
            return _why_unfit(module)
        if hugging_face.convention_of(type(module)) and not is_parametrized(module):
            return hugging_face.why_unfit(module) or _why_unheld(module) or _why_replaced(module)
        if isinstance(module, torch.jit.ScriptModule):
            return "it is compiled by TorchScript"
        if is_parametrized(module):
            return _PARAMETRIZED
        base = next((one for one in OURS if isinstance(module, one)), None)
        if base is not None:
            return f"it is of a subclass of torch.nn.{base.__name__}, which may compute something else"
        return "its class is not one of torch.nn or transformers that is known"

    def swap(module: Any) -> None:
        if hugging_face.convention_of(type(module)):
            base = torch.nn.LayerNorm if hugging_face.is_centred(type(module)) else torch.nn.RMSNorm
            hugging_face.dress(module)
            module.__class__ = OURS[base]
            return
        # The class last: a thread that runs the model meanwhile finds all that the class needs.
        module.weight_offset = 0.0
        if isinstance(module, torch.nn.RMSNorm):
            module.register_parameter("bias", None)
        module.__class__ = OURS[type(module)]

    return _swap_each(model, lambda module: not isinstance(module, tuple(OWN)) and _is_norm(module), why_skipped, swap)


def revert(model: Module) -> Report:
    """Give each LayerNorm and RMSNorm of anynorm in a model torch.nn's class, in place, as `convert` does.

    Those that `convert` made of Hugging Face's norms are these again. Those that torch.nn cannot compute are skipped:
    with a weight_offset, a convention or a weight for each head, an RMSNorm with a bias, a ScaleNorm, subclasses.
    No other thread may run the model meanwhile.

    Parameters
    ----------
    model : torch.nn.Module
        As of `convert`.

    Returns
    -------
    Report
        As of `convert`.

    Raises
    ------
    TypeError
        If the model is not a torch.nn.Module.

    Examples
    --------
    >>> import torch, anynorm.torch
    >>> model = torch.nn.Sequential(anynorm.torch.LayerNorm(8), anynorm.torch.ScaleNorm(8))
    >>> anynorm.torch.revert(model)
    swapped 1, skipped 1
      swapped  0  LayerNorm
      skipped  1  ScaleNorm  torch.nn has no ScaleNorm
    """
    back = {ours: theirs for theirs, ours in OURS.items()}

    def why_skipped(module: Any) -> str | None:
        theirs = back.get(type(module))
        if is_parametrized(module):
            return _PARAMETRIZED
        if theirs is None:
            return "torch.nn has no ScaleNorm" if type(module) in OWN else "it is of a subclass of anynorm's class"
        if hasattr(module, "swapped_from"):
            return _why_replaced(module)
        if module.convention is not None:
            return f"torch.nn.{theirs.__name__} has no convention, and its own is {module.convention.name or 'one'}"
        if module.weight_offset:
            return f"torch.nn.{theirs.__name__} has no weight_offset, and its own is {module.weight_offset}"
        if theirs is torch.nn.RMSNorm and module.bias is not None:
            return "torch.nn.RMSNorm has no bias"
        if module.weight is not None and module.weight.ndim > len(module.normalized_shape):
            return f"torch.nn.{theirs.__name__} has no weight of shape {tuple(module.weight.shape)}"
        return _why_replaced(module)

    def swap(module: Any) -> None:
        if hasattr(module, "swapped_from"):
            hugging_face.undress(module)
            return
        module.__class__ = back[type(module)]
        del module.weight_offset
        if type(module) is torch.nn.RMSNorm:
            del module.bias

    return _swap_each(model, lambda module: isinstance(module, tuple(OWN)), why_skipped, swap)


def _swap_each(
    model: Module,
    concerns: Callable[[Module], bool],
    why_skipped: Callable[[Module], str | None],
    swap: Callable[[Module], None],
) -> Report:
    """Swap each module of a model that is concerned, unless there is a reason to leave it."""
    if not isinstance(model, Module):
        must, do = "be a torch.nn.Module", "pass the model that holds the norms"
        raise TypeError(sentence("model", must, describe(model), do))
    places: dict[Module, list[str]] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        places.setdefault(module, []).append(name)
    swapped, skipped = [], []
    for module, names in places.items():
        if not concerns(module):
            continue
        kind = getattr(module, "original_name", type(module).__name__)  # of what TorchScript compiled
        reason = why_skipped(module)
        if reason is None:
            swap(module)
            swapped.append(Entry(tuple(names), kind, _note(model, module, names)))
        else:
            skipped.append(Entry(tuple(names), kind, reason))
    return Report(tuple(swapped), tuple(skipped))


def _is_norm(module: Module) -> bool:
    """Whether a module is a norm of a kind that anynorm has, or by its name seems to be one."""
    if isinstance(module, (torch.nn.LayerNorm, torch.nn.RMSNorm)):
        return True
    name = getattr(module, "original_name", type(module).__name__)
    return bool(_NAMED_AS_NORM.search(str(name))) and not any(True for _ in module.children())


def _note(model: Module, module: Module, names: list[str]) -> str:
    convention = getattr(module, "convention", None)
    if convention is not None:
        return f"by the convention {convention.name}"
    parents = (model.get_submodule(name.rpartition(".")[0]) for name in names if name)
    return _READ_BY_ENCODER if any(isinstance(one, torch.nn.TransformerEncoderLayer) for one in parents) else ""


def _why_replaced(module: Module) -> str | None:
    return "its forward has been replaced, as some libraries do" if "forward" in vars(module) else None


def _why_unfit(module: Any) -> str | None:
    """Why a norm of torch.nn would not compute the same as one of ours, or not at all."""
    for name in ("weight_offset", *(("bias",) if type(module) is torch.nn.RMSNorm else ())):
        if hasattr(module, name):
            return f"it has been given a {name}, of which torch.nn.{type(module).__name__} knows nothing"
    if module.eps is not None or type(module) is torch.nn.LayerNorm:
        try:
            check_number("eps", module.eps, least=0.0)
        except (TypeError, ValueError) as error:
            return str(error).partition(";")[0]
    return _why_unheld(module) or _why_replaced(module)


def _why_unheld(module: Any) -> str | None:
    """Why its parameters are not such as a norm of ours may have."""
    for name in ("weight", "bias"):
        held = getattr(module, name, None)
        if held is None:
            continue
        if type(held) not in (torch.Tensor, torch.nn.Parameter):
            return f"its {name} is {with_article(type(held).__name__)}; convert before parameters become such"
        if dtype_name(held.dtype) not in REAL_DTYPES:
            return f"its {name} is of {dtype_name(held.dtype)}, and anynorm takes {', '.join(REAL_DTYPES)}"
    return None
