"""The table of kernels, in order of preference: the first row that does not refuse a call runs it."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, NamedTuple

from anynorm._check import Call, Gradient
from anynorm._forks import unforked
from anynorm._kernels import blocks, cpu, cuda, definition
from anynorm._moments import Moments


class Kernel(NamedTuple):
    """One row of the table."""

    name: str
    description: str
    missing: Callable[[], str | None]  # what to install before the kernel can run at all; None: nothing
    refuses: Callable[[Call], str | None]  # why this call is not for this kernel; None: it is
    run: Callable[[Call], Any]
    refuses_to_pull: Callable[[Gradient], str | None]  # the same of the derivative
    pull: Callable[[Gradient], tuple[Any, Any, Any]]  # dx, dweight, dbias
    moments: Callable[[Call], Moments] = definition.run_moments
    is_off: Callable[[], str | None] = lambda: None  # why it is not chosen unless it is forced


def _run_on_cpu(call: Call) -> Any:
    # Imported with the first call, as whoever has no use for the kernels should not wait for them.
    with unforked:
        if call.moments is not None:
            from anynorm._kernels.cpu.given import run
        elif call.library.name == "torch" and cpu.wants_gradient(call):
            from anynorm._kernels.cpu.autograd import run
        else:
            from anynorm._kernels.cpu.call import run
    return run(call)


def _moments_on_cpu(call: Call) -> Moments:
    if call.library.name == "torch" and cpu.wants_gradient(call):
        return definition.run_moments(call)
    with unforked:
        from anynorm._kernels.cpu.given import run_moments

    return run_moments(call)


def _pull_on_cpu(gradient: Gradient) -> tuple[Any, Any, Any]:
    with unforked:
        from anynorm._kernels.cpu.pull import pull

    return pull(gradient)


def _run_on_cuda(call: Call) -> Any:
    from anynorm._kernels.cuda.run import run

    return run(call)


def _pull_on_cuda(gradient: Gradient) -> tuple[Any, Any, Any]:
    from anynorm._kernels.cuda.pull import pull

    return pull(gradient)


def _run_block(call: Call) -> Any:
    """Run the call on a block of a Dask array; a forced kernel was asked for the whole of it."""
    return _first(lambda kernel: kernel.refuses(call)).run(call)


def _reduce_block(call: Call) -> Moments:
    return _first(lambda kernel: kernel.refuses(call)).moments(call)


KERNELS = (
    Kernel(
        "cpu",
        "fused, compiled by Numba: NumPy arrays and torch tensors on the CPU",
        cpu.missing,
        cpu.refuses,
        _run_on_cpu,
        cpu.refuses_to_pull,
        _pull_on_cpu,
        _moments_on_cpu,
    ),
    Kernel(
        "cuda",
        "fused, compiled by NVRTC: CuPy arrays and torch tensors on NVIDIA GPUs",
        cuda.missing,
        cuda.refuses,
        _run_on_cuda,
        cuda.refuses_to_pull,
        _pull_on_cuda,
        is_off=cuda.is_off,
    ),
    Kernel(
        "blocks",
        "Dask arrays whose rows lie within blocks: a task for each, through the kernel for its library",
        lambda: None,
        blocks.refuses,
        lambda call: blocks.run(call, _run_block),
        blocks.refuses_to_pull,
        definition.pull,
        lambda call: blocks.run_moments(call, _reduce_block),
    ),
    Kernel(
        "pieces",
        "Dask arrays whose rows are cut: moments of each block, merged and applied",
        lambda: None,
        blocks.refuses_pieces,
        lambda call: blocks.run(call, _run_block, _reduce_block),
        blocks.refuses_to_pull,
        definition.pull,
        lambda call: blocks.run_moments(call, _reduce_block),
    ),
    Kernel(
        "definition",
        "the array API definition: any library, any device",
        lambda: None,
        definition.refuses,
        definition.run,
        definition.refuses,
        definition.pull,
    ),
)

_forced_everywhere = os.environ.get("ANYNORM_KERNEL") or None
_forced_here: ContextVar[str | None] = ContextVar("anynorm_kernel", default=None)
# torch.compile cannot trace a ContextVar, so it is only looked at while some use_kernel block is open.
_open_blocks = 0
_count = threading.Lock()


def choose(call: Call) -> Kernel:
    """Return the kernel that runs a call; RuntimeError where a forced one refuses it."""
    return _choose(lambda kernel: kernel.refuses(call))


def choose_pull(gradient: Gradient) -> Kernel:
    """Return the kernel for a derivative, likewise."""
    return _choose(lambda kernel: kernel.refuses_to_pull(gradient))


def _choose(refusal: Callable[[Kernel], str | None]) -> Kernel:
    forced = (_forced_here.get() if _open_blocks else None) or _forced_everywhere
    if forced is not None:
        return _require(forced, refusal)
    return _first(refusal)


def _first(refusal: Callable[[Kernel], str | None]) -> Kernel:
    for kernel in KERNELS:
        if kernel.is_off() is None and kernel.missing() is None and refusal(kernel) is None:
            return kernel
    raise AssertionError("the definition takes every call")


def is_forced() -> bool:
    """Whether some kernel is forced, here or in another thread."""
    return _open_blocks != 0 or _forced_everywhere is not None


@contextmanager
def use_kernel(name: str) -> Iterator[None]:
    """Force one kernel within a ``with`` block: a call that it refuses raises, nothing else runs instead.

    The environment variable ``ANYNORM_KERNEL`` does the same for a whole process.

    Parameters
    ----------
    name : str
        As `explain` and ``anynorm info`` print it.

    Raises
    ------
    ValueError
        If there is no kernel of that name.
    RuntimeError
        Raised by the norms within the block, with the reason, if the kernel refuses a call.

    Examples
    --------
    >>> import numpy, anynorm
    >>> with anynorm.use_kernel("definition"):
    ...     anynorm.rms_norm(numpy.asarray([3.0, 3.0]), eps=0.0)
    array([1., 1.])
    """
    global _open_blocks
    _find(name)
    token = _forced_here.set(name)
    with _count:
        _open_blocks += 1
    try:
        yield
    finally:
        with _count:
            _open_blocks -= 1
        _forced_here.reset(token)


def _find(name: str) -> Kernel:
    for kernel in KERNELS:
        if kernel.name == name:
            return kernel
    raise ValueError(f"there is no kernel {name!r}; the kernels are {', '.join(kernel.name for kernel in KERNELS)}")


def _require(name: str, refusal: Callable[[Kernel], str | None]) -> Kernel:
    kernel = _find(name)
    reason = kernel.missing() or refusal(kernel)
    if reason is not None:
        raise RuntimeError(f"kernel {name} was asked for and refuses this call: {reason}")
    return kernel
