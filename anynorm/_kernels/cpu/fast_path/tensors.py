"""The fast path of torch tensors on the CPU."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from anynorm._kernels.cpu.fast_path import own_rows
from anynorm._kernels.cpu.fast_path.plans import find
from anynorm._kernels.cpu.fast_path.results import Resume, results_of, write_by
from anynorm._kernels.fast_paths import FastPath
from anynorm._profiled import profiler_of
from anynorm._torch.state import forward_level, modes_question, tracing_question, transforms_question

Array = Any
# rule, x, residual, weight, bias, axis, eps, offset, result -> the result with what leads back from there, for autograd
Follow = Callable[..., Any]

_follow: Follow | None = None


def follow_by(follow: Follow) -> None:
    """Say how calls are followed that torch's autograd is to differentiate; until then they take the slow path."""
    global _follow
    _follow = follow


def fast_path_of_tensors(torch: Any, normalize: Callable[..., Any], resume: Resume) -> FastPath:
    """The fast path by a function of the program."""
    write = _write_by(torch, normalize, resume)
    is_compiling, is_granted, levels = torch.compiler.is_dynamo_compiling, torch.is_grad_enabled, forward_level(torch)
    is_transformed, count_modes, is_tracing = transforms_question(torch), modes_question(torch), tracing_question(torch)
    profiler = profiler_of(torch)

    def fast_path(
        rule: Any,
        x: Array,
        residual: Array | None,
        weight: Any,
        bias: Array | None,
        axis: int | tuple[int, ...],
        eps: float,
        offset: float,
        out: Any,
        moments: Any,
    ) -> Any:
        # First, for no other question can be asked while a graph is being traced. What follows torch operation by
        # operation would not see what a kernel does.
        if is_compiling() or levels._current_level >= 0 or count_modes() or is_transformed() or is_tracing():
            return None
        if moments is not None or profiler._is_profiler_enabled:  # the slow path sees to the name
            return None
        if out is not None:
            return write(rule, x, residual, weight, bias, axis, eps, offset, out)
        found = None
        if axis == -1:
            found = normalize(rule, x, residual, None, None, weight, bias, eps, offset, 0, 0)
        if found is None and type(offset) is float and offset == 0.0:
            own = own_rows.find("torch", rule, x, residual, weight, bias, axis, None)
            if own is not None:
                of_rows = own_rows.widened("torch", own, weight, bias)
                found = normalize(x, residual, None, None, *of_rows, eps, own.address)
        if found is None:
            plan = find("torch", rule, x, residual, axis, None)
            if plan is not None:
                found = normalize(rule, x, residual, None, None, weight, bias, eps, offset, plan.address, 0)
        if found is None or x.is_neg():
            return None
        # All are known to be tensors by now. One that is negated holds other numbers than it shows.
        wanted = x.requires_grad
        if weight is not None and type(weight) is not float:
            if weight.is_neg():
                return None
            wanted = wanted or weight.requires_grad
        if bias is not None:
            if bias.is_neg():
                return None
            wanted = wanted or bias.requires_grad
        if residual is not None:
            if residual.is_neg():
                return None
            wanted = wanted or residual.requires_grad
        if not wanted or not is_granted():
            return found
        if _follow is None:
            return None
        return _follow(rule, x, residual, weight, bias, axis, eps, offset, found)

    return fast_path


def _write_by(torch: Any, normalize: Callable[..., Any], resume: Resume) -> Callable[..., Any]:
    """What writes to given results, which nothing may do before it is known that no gradient is wanted."""
    write, is_granted, kinds = (
        write_by("torch", normalize, resume),
        torch.is_grad_enabled,
        (torch.Tensor, torch.nn.Parameter),
    )
    increment_version = torch.autograd.graph.increment_version

    def write_unfollowed(
        rule: Any,
        x: Array,
        residual: Array | None,
        weight: Any,
        bias: Array | None,
        axis: int | tuple[int, ...],
        eps: float,
        offset: float,
        out: Any,
    ) -> Any:
        results, is_followed = results_of(residual, out), is_granted()
        if results is None:
            return None
        for one in (x, residual, weight, bias):
            if one is None or type(one) is float:
                continue
            if type(one) not in kinds or one.is_neg() or (is_followed and one.requires_grad):
                return None
        for one in results:
            if type(one) not in kinds or one.is_neg() or one.requires_grad:
                return None
        found = write(rule, x, residual, weight, bias, axis, eps, offset, out)
        if found is not None:
            for one in results:
                increment_version(one)
        return found

    return write_unfollowed
