"""The fast path of torch tensors on the CPU."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from anynorm._kernels.cpu.fast_path.kept import Library
from anynorm._kernels.cpu.fast_path.results import Resume, results_of, run_by
from anynorm._kernels.fast_paths import FastPath, Given
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


def fast_path_of_tensors(torch: Any, program: Callable[..., Any], resume: Resume) -> FastPath:
    """The fast path by the program."""
    run = run_by(Library("torch", program, torch.empty_like), resume, lambda given: None)
    write = _write_by(torch, run)
    is_compiling, is_granted, levels = torch.compiler.is_dynamo_compiling, torch.is_grad_enabled, forward_level(torch)
    is_transformed, count_modes, is_tracing = transforms_question(torch), modes_question(torch), tracing_question(torch)
    profiler = profiler_of(torch)

    def fast_path(given: Given) -> Any:
        # First, for no other question can be asked while a graph is being traced. What follows torch operation by
        # operation would not see what a kernel does.
        if is_compiling() or levels._current_level >= 0 or count_modes() or is_transformed() or is_tracing():
            return None
        rule, x, residual, weight, bias, axis, eps, offset, out, moments = given
        if moments is not None or profiler._is_profiler_enabled:  # the slow path sees to the name
            return None
        if out is not None:
            return write(given)
        found = run(given)
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


def _write_by(torch: Any, run: FastPath) -> FastPath:
    """What writes to given results, which nothing may do before it is known that no gradient is wanted."""
    is_granted, kinds = torch.is_grad_enabled, (torch.Tensor, torch.nn.Parameter)
    increment_version = torch.autograd.graph.increment_version

    def write_unfollowed(given: Given) -> Any:
        _, x, residual, weight, bias, _, _, _, out, _ = given
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
        found = run(given)
        if found is not None:
            for one in results:
                increment_version(one)
        return found

    return write_unfollowed
