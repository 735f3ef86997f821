"""Names of calls in torch's profiler, while that is on: ``anynorm::layer_norm (cpu)``, the norm and what ran it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from anynorm._check import Call


class _Off:
    _is_profiler_enabled = False


def profiler_of(torch: Any) -> Any:
    """What tells by `_is_profiler_enabled` whether a profiler is on.

    There is no public way to ask. To use `record_function` without asking takes microseconds with no profiler on; torch
    itself asks in this way. In a torch that lacks it calls have no names.
    """
    profiler = torch.autograd.profiler
    return profiler if hasattr(profiler, "_is_profiler_enabled") else _Off


def is_profiled() -> bool:
    """Whether a profiler of torch is on; where torch.compile traces, which would trace anew for each answer, never."""
    import torch

    return not torch.compiler.is_compiling() and getattr(torch.autograd.profiler, "_is_profiler_enabled", False)


def name_of(call: Call, kernel: str, what: str = "") -> str:
    """What a call is named that a kernel runs; ``what`` is done besides the norm, or its derivative."""
    return f"anynorm::{'' if call.residual is None else 'add_'}{call.rule.name}{what} ({kernel})"


def named(name: str, inputs: tuple[Any, ...], run: Callable[..., Any], *given: Any) -> Any:
    """Run something under a name, beside which the profiler shows the shapes of the inputs."""
    import torch

    # As torch names what it has compiled: no operator, which dispatch modes and torch.func would have to know.
    record = getattr(torch._C._profiler, "_RecordFunctionFast", None)
    with torch.profiler.record_function(name) if record is None else record(name, inputs):
        return run(*given)


def with_names(kernel: Any) -> Any:
    """A row of the table of kernels whose calls have names."""

    def run(call: Call) -> Any:
        given = (call.x, call.weight, call.bias, call.residual)
        return named(name_of(call, kernel.name), given, kernel.run, call)

    def vjp(gradient: Any) -> Any:
        call = gradient.call
        given = (gradient.dy, call.x, call.weight, call.bias)
        return named(name_of(call, kernel.name, "_backward"), given, kernel.vjp, gradient)

    def moments(call: Call) -> Any:
        return named(f"anynorm::moments ({kernel.name})", (call.x,), kernel.moments, call)

    def vjp_moments(call: Call, *given: Any) -> Any:
        name = f"anynorm::moments_backward ({kernel.name})"
        return named(name, (call.x,), kernel.vjp_moments, call, *given)

    return kernel._replace(run=run, vjp=vjp, moments=moments, vjp_moments=vjp_moments)
