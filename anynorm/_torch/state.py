"""What state torch is in: by private names of torch, or without them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any


def is_followed(torch: Any) -> bool:
    """Whether something observes torch operation by operation, and would not see what a kernel does.

    There is no public way to ask for most of these: the transforms of torch.func, dispatch modes such as those of
    make_fx and of fake tensors, torch.jit.trace, and the levels of forward-mode derivatives. Where a release of torch
    cannot be asked, the answer is yes: the definition, in torch's operations, is right in any case.
    """
    return followed_question(torch)()


def transforms_question(torch: Any) -> Callable[[], bool]:
    """The function that tells whether a transform of torch.func is active, which torch.compile can evaluate."""
    found: Callable[[], bool] = getattr(torch._C, "_are_functorch_transforms_active", lambda: True)
    return found


def modes_question(torch: Any) -> Callable[[], int]:
    """The function that tells how many dispatch modes are active."""
    found: Callable[[], int] = getattr(torch._C, "_len_torch_dispatch_stack", lambda: 1)
    return found


def tracing_question(torch: Any) -> Callable[[], bool]:
    """The function that tells whether torch.jit.trace is at work: what the public one asks, or that, a slower way."""
    found: Callable[[], bool] = getattr(torch._C, "_is_tracing", torch.jit.is_tracing)
    return found


def forward_level(torch: Any) -> Any:
    """What tells by `_current_level` how many forward-mode derivatives are being formed, less 1."""
    forward_ad = torch.autograd.forward_ad
    return forward_ad if hasattr(forward_ad, "_current_level") else _Unknown


class _Unknown:
    _current_level = 0  # there may be one


def followed_question(torch: Any) -> Callable[[], bool]:
    """The function that tells what `is_followed` does, for those who ask often: names are looked up once."""
    levels, is_transformed = forward_level(torch), transforms_question(torch)
    count_modes, is_tracing = modes_question(torch), tracing_question(torch)

    def ask() -> bool:
        return levels._current_level >= 0 or is_transformed() or count_modes() > 0 or is_tracing()

    return ask


def has_tangent(torch: Any, tensors: Iterable[Any]) -> bool:
    """Whether a forward-mode derivative may be wanted of an operator."""
    forward_ad = torch.autograd.forward_ad
    level = getattr(forward_ad, "_current_level", None)
    if level is not None:
        return bool(level >= 0)
    return any(forward_ad.unpack_dual(tensor).tangent is not None for tensor in tensors)


def below_autograd(torch: Any) -> Any:
    """A block in which operators are called as if there were no autograd; None where torch lacks it."""
    return getattr(torch._C, "_AutoDispatchBelowAutograd", None)


def direct_apply(torch: Any, function: Any) -> Callable[..., Any]:
    """`apply` of a torch.autograd.Function without the checks for torch.func, which the caller has made.

    They take 5 of 25 microseconds for a row of 768.
    """
    found = getattr(super(torch.autograd.Function, function), "apply", None)
    return function.apply if found is None else found  # type: ignore[no-any-return]
