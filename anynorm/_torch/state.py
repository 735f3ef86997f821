"""What state torch is in, and whether tensors are like earlier ones: by private names of torch, or without them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple


def is_followed(torch: Any) -> bool:
    """Whether something observes torch operation by operation, and would not see what a kernel does.

    There is no public way to ask for most of these: the transforms of torch.func, dispatch modes such as those of
    make_fx and of fake tensors, torch.jit.trace, and the levels of forward-mode derivatives. Where a release of torch
    cannot be asked, the answer is yes: the definition, in torch's operations, is right in any case.
    """
    try:
        return bool(
            torch._C._are_functorch_transforms_active()
            or torch._C._len_torch_dispatch_stack()
            or torch.jit.is_tracing()
            or torch.autograd.forward_ad._current_level >= 0
        )
    except AttributeError:
        return True


def transforms_question(torch: Any) -> Callable[[], bool]:
    """The function that tells whether a transform of torch.func is active, which torch.compile can evaluate."""
    found: Callable[[], bool] = getattr(torch._C, "_are_functorch_transforms_active", lambda: True)
    return found


def modes_question(torch: Any) -> Callable[[], int]:
    """The function that tells how many dispatch modes are active."""
    found: Callable[[], int] = getattr(torch._C, "_len_torch_dispatch_stack", lambda: 1)
    return found


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


# Guards that are made in another way than a version expects can end the process, so no other is asked.
_TRIED = ("2.13.",)


class Guards(NamedTuple):
    """What torch made for the code that torch.compile generates; not public, so it is tested before it is used."""

    kind: Callable[..., Any]
    make: Callable[..., Any]  # shape, strides and dtype -> an empty CPU tensor, in half the time of torch.empty_like

    @classmethod
    def of(cls, torch: Any) -> Guards | None:
        """The guards of torch; None where they are missing, are not what they were, or have not been tried."""
        if not torch.__version__.startswith(_TRIED):
            return None
        try:
            found = torch._C._dynamo.guards
            guards = cls(found.TensorGuards, found._empty_strided_cpu)
            return guards if guards._hold(torch) else None
        except Exception:
            return None

    def guard(self, tensors: tuple[Any, ...]) -> Callable[..., bool]:
        """A function that tells whether tensors are like these here and now, in all but their numbers."""
        # Without these two it would end the process.
        made = self.kind(*tensors, dynamic_dims_sizes=None, dynamic_dims_strides=None)
        check: Callable[..., bool] = made.check
        return check

    def _hold(self, torch: Any) -> bool:
        """Whether guards let pass what they should, and nothing else."""
        made = self.make((2, 3), (3, 1), torch.bfloat16)
        as_asked = (made.shape, made.stride(), made.dtype) == ((2, 3), (3, 1), torch.bfloat16)
        if type(made) is not torch.Tensor or not as_asked or not made.is_cpu or made.requires_grad:
            return False
        with torch.no_grad():
            x, weight = torch.zeros(2, 3), torch.zeros(3)
            wanted = torch.zeros(3).requires_grad_()
            alike = self.guard((x, weight))
            others = (
                wanted.double(), torch.zeros(4), torch.zeros(1, 3), torch.zeros(6)[::2], torch._neg_view(weight),
                torch.nn.Parameter(weight), weight.to("meta"), None, 1.0,
            )  # fmt: skip
            passed = alike(x, weight) is True
            refused = not any(alike(x, other) for other in others)
        with torch.enable_grad():
            refused = refused and not alike(x, wanted)
        with torch.inference_mode():
            refused = refused and not alike(x, weight)
        return passed and refused and not torch.func.vmap(lambda x: x * alike(x, weight))(x[None]).any()
