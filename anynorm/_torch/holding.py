"""What the modules of anynorm.torch have in common: conventions, how their parameters start, what they print."""

from typing import Any

import torch

from anynorm._by_convention import held
from anynorm._convention import RMS_NORM_EPS, Convention, decoded, encoded
from anynorm._definition.norms import Rule
from anynorm._modules.loading import check_weight_shape

Tensor = torch.Tensor


class ByConvention(torch.nn.Module):
    """A module that may have a convention."""

    _by: str = ""  # the convention as `encoded` writes it; '' for none

    @torch.jit.unused  # type: ignore[prop-decorator]
    @property
    def convention(self) -> Convention | None:
        """How it is computed; None where by no convention."""
        return decoded(self._by)


def take_over(
    norm: torch.nn.Module, rule: Rule, convention: Convention | str | None, eps: Any, weight_offset: Any
) -> tuple[Any, Any]:
    """Have a module keep its convention, and return the eps and the offset that it has then."""
    if convention is None:
        return eps, weight_offset
    has_no_eps = eps is None
    given, eps, offset = held(rule, convention, RMS_NORM_EPS if has_no_eps else eps, weight_offset)
    by_torch = has_no_eps and given is not None and given.eps is None and given.rms_eps is None
    vars(norm)["_by"] = encoded(given)  # torch's own constructor comes later
    return None if by_torch else eps, offset


def shape_parameters(norm: Any, weight_shape: Any) -> None:
    """Give weight and bias, which a module has of the normalized axes, the axes before those too."""
    lengths = check_weight_shape(weight_shape, norm.normalized_shape)
    for name in ("weight", "bias"):
        parameter = getattr(norm, name)
        if parameter is not None and lengths != norm.normalized_shape:
            norm.register_parameter(name, torch.nn.Parameter(parameter.detach().expand(lengths).clone()))


def start_at_one(norm: Any) -> None:
    """Have the factor of each feature start at 1, whatever is added to the weight."""
    if norm.weight is not None and norm.weight_offset:
        torch.nn.init.constant_(norm.weight, 1.0 - norm.weight_offset)


def require_call(self: torch.nn.Module, input: tuple[Tensor]) -> None:
    """Do nothing, as a hook: without one torch.nn.TransformerEncoderLayer may not call a norm but read its parameters.

    It takes it for a layer norm of them then, without an offset.
    """


def said_of(norm: Any) -> str:
    """What a module writes between the parentheses beside what torch's own does."""
    written, by = "", norm._by
    if getattr(norm, "weight_offset", 0.0):
        written += f", weight_offset={norm.weight_offset}"
    weight = getattr(norm, "weight", None)
    if weight is not None and weight.ndim > len(norm.normalized_shape):
        written += f", weight_shape={tuple(weight.shape)}"
    return written + (f", convention={by if by.startswith('Convention(') else repr(by)}" if by else "")
