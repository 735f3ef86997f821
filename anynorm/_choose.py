"""The table of kernels, in order of preference: the first row that does not refuse a call runs it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from anynorm._check import Call, Gradient
from anynorm._forced import forced
from anynorm._forks import unforked
from anynorm._kernels import (
    blocks,
    blocks_given,
    blocks_vjp,
    by_moments,
    cpu,
    cuda,
    definition,
    definition_vjp,
    pieces_vjp,
    xla,
)
from anynorm._kernels.fast_paths import try_fast_paths as try_fast_paths
from anynorm._kernels.fast_paths import try_moments as try_moments
from anynorm._kernels.fast_paths import try_vjp as try_vjp
from anynorm._moments import Moments
from anynorm._moments_gradient import MomentsGradient, parts_of
from anynorm._profiled import is_profiled, with_names
from anynorm._totals import is_mixed
from anynorm._wording import describe, sentence


class Kernel(NamedTuple):
    """One row of the table."""

    name: str
    description: str
    missing: Callable[[], str | None]  # what to install before the kernel can run at all; None: nothing
    refuses: Callable[[Call], str | None]  # why this call is not for this kernel; None: it is
    run: Callable[[Call], Any]
    refuses_vjp: Callable[[Gradient], str | None]  # the same of the derivative
    vjp: Callable[[Gradient], tuple[Any, ...]]  # dx, dweight, dbias; of given moments their gradient too
    moments: Callable[[Call], Moments] = definition.run_moments
    vjp_moments: Callable[[Call, Moments, MomentsGradient], Any] = by_moments.vjp_moments  # dx by way of x's own


def _run_on_cpu(call: Call) -> Any:
    if not cpu.has_compiler():
        return choose(call).run(call)
    if cpu.wants_gradient(call):
        return _follow_on_cpu(call)
    # Imported with the first call: a process without use for the kernels should not wait for them.
    if call.moments is not None:
        with unforked:
            from anynorm._kernels.cpu.launch import given
        return given.run(call)
    if is_mixed(call.x, call.residual):
        with unforked:
            from anynorm._kernels.cpu.launch import mixed
        return mixed.run(call)
    with unforked:
        from anynorm._kernels.cpu.launch.norm import run
    return _groups_on_cpu().run(call) if cpu.has_groups(call) else run(call)


def _groups_on_cpu() -> Any:
    with unforked:
        from anynorm._kernels.cpu.launch import groups
    return groups


def _follow_on_cpu(call: Call) -> Any:
    with unforked:
        from anynorm._kernels.cpu.launch import autograd, autograd_given
    run = autograd.run if call.moments is None else autograd_given.run
    return run(call, choose_vjp)  # the table is above what needs it when torch goes back


def _moments_on_cpu(call: Call) -> Moments:
    if not cpu.has_compiler():
        return choose(call).moments(call)
    if cpu.wants_gradient(call):
        with unforked:
            from anynorm._kernels.cpu.launch import autograd_given
        return autograd_given.run_moments(call, choose)
    with unforked:
        from anynorm._kernels.cpu.launch.given import run_moments

    return run_moments(call)


def _vjp_on_cpu(gradient: Gradient) -> tuple[Any, ...]:
    if not cpu.has_compiler():
        return choose_vjp(gradient).vjp(gradient)
    with unforked:
        if gradient.call.moments is not None:
            from anynorm._kernels.cpu.launch.given_vjp import vjp
        elif cpu.has_groups(gradient.call):
            from anynorm._kernels.cpu.launch.groups_vjp import vjp
        else:
            from anynorm._kernels.cpu.launch.vjp import vjp
    return vjp(gradient)


def _vjp_moments_on_cpu(call: Call, moments: Moments, gradient: MomentsGradient) -> Any:
    if cpu.wants_gradient(call, *parts_of(gradient)):
        return by_moments.vjp_moments(call, moments, gradient)
    if not cpu.has_compiler():
        return choose(call).vjp_moments(call, moments, gradient)
    with unforked:
        from anynorm._kernels.cpu.launch.given_vjp import vjp_moments

    return vjp_moments(call, moments, gradient)


def _run_on_cuda(call: Call) -> Any:
    if cpu.wants_gradient(call):
        from anynorm._kernels.cuda import autograd

        return autograd.run(call, choose_vjp)
    from anynorm._kernels.cuda.run import run

    return run(call)


def _vjp_on_cuda(gradient: Gradient) -> tuple[Any, ...]:
    from anynorm._kernels.cuda.vjp import vjp

    return vjp(gradient)


def _run_block(call: Call) -> Any:
    """Run the call on a block of a Dask array; a forced kernel was asked for the whole of it."""
    return _first(lambda kernel: kernel.refuses(call)).run(call)


def _reduce_block(call: Call) -> Moments:
    return _first(lambda kernel: kernel.refuses(call)).moments(call)


def _vjp_block(gradient: Gradient) -> tuple[Any, ...]:
    return _first(lambda kernel: kernel.refuses_vjp(gradient)).vjp(gradient)


def _vjp_moments_block(call: Call, moments: Moments, gradient: MomentsGradient) -> Any:
    return _first(lambda kernel: kernel.refuses(call)).vjp_moments(call, moments, gradient)


def _vjp_blocks(gradient: Gradient) -> tuple[Any, ...]:
    if gradient.call.moments is not None:
        return blocks_given.vjp(gradient, _vjp_block)
    return blocks_vjp.vjp(gradient, _vjp_block)


def _vjp_pieces(gradient: Gradient) -> tuple[Any, ...]:
    if gradient.call.moments is not None:
        return blocks_given.vjp(gradient, _vjp_block)
    return pieces_vjp.vjp(gradient, _reduce_block, _vjp_block)


def _vjp_moments_blocks(call: Call, moments: Moments, gradient: MomentsGradient) -> Any:
    return blocks_given.vjp_moments(call, moments, gradient, _vjp_moments_block)


def _run_definition(call: Call) -> Any:
    """The definition itself; of Dask arrays, in each block."""
    is_lazy = call.library.block is not None
    return blocks.run(call, definition.run, definition.run_moments) if is_lazy else definition.run(call)


def _moments_by_definition(call: Call) -> Moments:
    is_lazy = call.library.block is not None
    return blocks.run_moments(call, definition.run_moments) if is_lazy else definition.run_moments(call)


def _vjp_definition(gradient: Gradient) -> tuple[Any, ...]:
    call = gradient.call
    if call.library.block is None:
        return definition_vjp.vjp(gradient) if call.moments is None else by_moments.vjp(gradient)
    if call.moments is not None:
        return blocks_given.vjp(gradient, by_moments.vjp)
    return pieces_vjp.vjp(gradient, definition.run_moments, definition_vjp.vjp)


def _vjp_moments_definition(call: Call, moments: Moments, gradient: MomentsGradient) -> Any:
    if call.library.block is not None:
        return blocks_given.vjp_moments(call, moments, gradient, by_moments.vjp_moments)
    return by_moments.vjp_moments(call, moments, gradient)


KERNELS = (
    Kernel(
        "cpu",
        "fused, compiled by LLVM: NumPy arrays and torch tensors on the CPU",
        cpu.missing,
        cpu.refuses,
        _run_on_cpu,
        cpu.refuses_vjp,
        _vjp_on_cpu,
        _moments_on_cpu,
        _vjp_moments_on_cpu,
    ),
    Kernel(
        "cuda",
        "fused, compiled by NVRTC: CuPy arrays and torch tensors on NVIDIA GPUs",
        cuda.missing,
        cuda.refuses,
        _run_on_cuda,
        cuda.refuses_vjp,
        _vjp_on_cuda,
    ),
    Kernel(
        "blocks",
        "Dask arrays whose rows lie within blocks: a task for each, through the kernel for its library",
        lambda: None,
        blocks.refuses,
        lambda call: blocks.run(call, _run_block),
        blocks.refuses_vjp,
        _vjp_blocks,
        lambda call: blocks.run_moments(call, _reduce_block),
        _vjp_moments_blocks,
    ),
    Kernel(
        "pieces",
        "Dask arrays whose rows are cut: moments of each block, merged and applied",
        lambda: None,
        blocks.refuses_pieces,
        lambda call: blocks.run(call, _run_block, _reduce_block),
        blocks.refuses_vjp_pieces,
        _vjp_pieces,
        lambda call: blocks.run_moments(call, _reduce_block),
        _vjp_moments_blocks,
    ),
    Kernel(
        "xla",
        "JAX arrays: the definition as one program, compiled by XLA",
        lambda: None,
        xla.refuses,
        xla.run,
        xla.refuses_vjp,
        xla.vjp,
        xla.run_moments,
        xla.vjp_moments,
    ),
    Kernel(
        "definition",
        "the array API definition: any library, any device",
        lambda: None,
        definition.refuses,
        _run_definition,
        definition.refuses,
        _vjp_definition,
        _moments_by_definition,
        _vjp_moments_definition,
    ),
)


def choose(call: Call) -> Kernel:
    """Return the kernel that runs a call; RuntimeError where a forced one refuses it."""
    return _choose(call, lambda kernel: kernel.refuses(call))


def choose_vjp(gradient: Gradient) -> Kernel:
    """Return the kernel for a derivative, likewise."""
    return _choose(gradient.call, lambda kernel: kernel.refuses_vjp(gradient))


def _choose(call: Call, refusal: Callable[[Kernel], str | None]) -> Kernel:
    name = forced()
    kernel = _first(refusal) if name is None else _require(name, refusal)
    is_named = call.library.name == "torch" and is_profiled()
    return with_names(kernel) if is_named else kernel


def _first(refusal: Callable[[Kernel], str | None]) -> Kernel:
    for kernel in KERNELS:
        if kernel.missing() is None and refusal(kernel) is None:
            return kernel
    raise AssertionError("the definition takes every call")


def kernel_named(name: Any, argument: str = "name") -> Kernel:
    """The row of this name; ValueError or TypeError where there is none."""
    for kernel in KERNELS:
        if isinstance(name, str) and kernel.name == name:
            return kernel
    known = ", ".join(kernel.name for kernel in KERNELS)
    wrong = ValueError if isinstance(name, str) else TypeError
    raise wrong(sentence(argument, f"be one of the kernels {known}", describe(name), "pass one of these names"))


def _require(name: str, refusal: Callable[[Kernel], str | None]) -> Kernel:
    kernel = kernel_named(name, "the environment variable ANYNORM_KERNEL")  # the names that were passed are known
    reason = refusal(kernel) or kernel.missing()
    if reason is not None:
        raise RuntimeError(f"kernel {name} was asked for and refuses this call: {reason}")
    return kernel
