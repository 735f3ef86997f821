"""What torch is up to."""

from __future__ import annotations

from typing import Any


def is_followed(torch: Any) -> bool:
    """Whether somebody follows what torch does operation by operation, and would not see what a kernel does.

    There are no public questions for these: the transforms of torch.func, dispatch modes such as those of make_fx and
    of fake tensors, torch.jit.trace, and the levels of forward-mode derivatives.
    """
    return bool(
        torch._C._are_functorch_transforms_active()
        or torch._C._len_torch_dispatch_stack()
        or torch._C._get_tracing_state() is not None
        or torch.autograd.forward_ad._current_level >= 0
    )
