"""What the fast path serves: kernels that have run a call the slow path, and so are compiled."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy

from anynorm._check import Call, Gradient
from anynorm._forks import unforked
from anynorm._kernels import fast_paths
from anynorm._kernels.cpu.compiler.entries import Kernel
from anynorm._kernels.cpu.fast_path import functions
from anynorm._kernels.cpu.fast_path.arrays import fast_path_of_arrays
from anynorm._kernels.cpu.fast_path.derivative import keep_derivative, quick_vjp_by
from anynorm._kernels.cpu.fast_path.moments import keep_moments, quick_moments
from anynorm._kernels.cpu.fast_path.own_rows import keep_own_rows
from anynorm._kernels.cpu.fast_path.plans import keep_plan
from anynorm._kernels.cpu.fast_path.record import place_of
from anynorm._kernels.cpu.fast_path.tensors import fast_path_of_tensors
from anynorm._kernels.cpu.kernels.task import Task, Variant
from anynorm._kernels.cpu.launch.layout import Layout
from anynorm._kernels.cpu.launch.machine import LEAST_HUGE_NBYTES, last_cache_nbytes
from anynorm._kernels.cpu.threads import crew
from anynorm._libraries import dtype_name
from anynorm._libraries.numpy_arrays import NumPy

_offered: set[tuple[str, int, Variant, bool]] = set()  # by the address of a rule, which is kept in the record
_served: set[str] = set()  # libraries


def offer(
    call: Call,
    variant: Variant,
    address: int,
    layout: Layout | None,
    layout_address: int,
    results: tuple[Any, ...],
    resume: Callable[[Call, int], Any],
    numbers: Any = None,
) -> None:
    """Let small calls like this one go to the kernel at an address from now on; that is 0 where it is interpreted."""
    library = call.library.name
    most_nbytes = _most_nbytes()
    if not address or call.x.nbytes > most_nbytes:
        return
    if layout is not None or len(call.axes) > 1 or numbers is not None:
        keep_plan(call, variant, address, layout, layout_address, results, numbers)
    if (library, id(call.rule), variant, numbers is None) in _offered:
        return
    with unforked:
        if not functions.is_served():
            return
        rule = functions.place_of_rule(call.rule, variant)
        if rule is None:
            return
        _offered.add((library, id(call.rule), variant, numbers is None))
        record = functions.record()
        record.most_nbytes, record.least_shared_nbytes = most_nbytes, crew.LEAST_SHARED_NBYTES
        if layout is None and numbers is None:
            place = place_of(rule, variant.has_residual, variant.code, variant.in_float64)
            record.kernels[place] = address
        if library == "numpy":
            _write_bfloat16(call.x)
        _serve(library, resume)


def _most_nbytes() -> int:
    """Results of larger arrays are made in huge pages, or stored past the caches."""
    # float32 of 512 x 768, one thread: 105 us by the slow path, 68 by this one (EPYC 9005).
    return min(LEAST_HUGE_NBYTES, -(-last_cache_nbytes() // 4)) - 1


def _serve(library: str, resume: Callable[[Call, int], Any]) -> None:
    """Let calls with arrays of a library try the fast path."""
    if library in _served:
        return
    _served.add(library)
    if library == "numpy":
        _add(numpy.ndarray, lambda: fast_path_of_arrays(functions.program_of("numpy"), resume))
        return
    import torch

    def make() -> fast_paths.FastPath | None:
        program = functions.program_of("torch")
        return None if program is None else fast_path_of_tensors(torch, program, resume)

    _add(torch.Tensor, make)


def _add(kind: type, make: Callable[[], fast_paths.FastPath | None]) -> None:
    """Let calls with an x of this type try a fast path that is made, once, when the first one does.

    That compiles the program, for which a process that makes one call alone shall not wait.
    """
    make = cache(make)

    def begin(given: fast_paths.Given) -> Any:
        with unforked:
            fast_path = make()
            if fast_path is not None:
                fast_paths.add(kind, fast_path)
            fast_paths.remove(kind, begin)
        return None if fast_path is None else fast_path(given)

    fast_paths.add(kind, begin)


def offer_own_rows(call: Call, resume: Callable[[Call, int], Any], kernel: int, *plan: Any) -> None:
    """The same for calls whose weight or bias differs from row to row.

    ``plan`` is what `keep_own_rows` keeps.
    """
    if not kernel or call.weight_offset or call.x.nbytes > _most_nbytes():
        return
    with unforked:
        if not functions.is_served():
            return
        _serve(call.library.name, resume)
        if call.library.name == "numpy":
            _write_bfloat16(call.x, call.weight, call.bias)
        keep_own_rows(call, kernel, *plan)


def _write_bfloat16(*arrays: Any) -> None:
    """Let the program know the dtype, where one of the arrays has it."""
    for one in arrays:
        if one is not None and dtype_name(one.dtype) == "bfloat16":
            with unforked:  # threads that make the first record at once would have one each
                functions.write("bfloat16", numpy.dtype(one.dtype.type))
            return


def offer_moments(call: Call, kernel: int, task: Task, layout: Layout | None, numbers: Any) -> None:
    """Let calls of `moments` with a small NumPy array like this one go to a kernel from now on."""
    is_public = call.rule.centred  # pieces of rows of the other norms are reduced to moments without a mean
    if not is_public or call.library.name != "numpy" or call.x.nbytes >= crew.LEAST_SHARED_NBYTES or not kernel:
        return
    if functions.is_served():
        _write_bfloat16(call.x)
        keep_moments(call, kernel, task, layout, numbers)
        fast_paths.add_moments(numpy.ndarray, quick_moments)


_quick_vjp = quick_vjp_by("numpy", NumPy, NumPy.empty_like)


def offer_derivative(
    gradient: Gradient, compute: Kernel, task: Task, portions: int, length: int, dweight: Any, keepalive: Any
) -> None:
    """The same for derivatives like this one, for those of tensors where torch's autograd asks."""
    call, is_array = gradient.call, gradient.call.library.name == "numpy"
    parameters = [one for one in (call.weight, call.bias) if one is not None and type(one) is not float]
    are_read_as_they_are = all(map(call.library.memory.is_contiguous, parameters))
    if not compute.address or not are_read_as_they_are or gradient.dtotal is not None or not functions.is_served():
        return
    if is_array:
        _write_bfloat16(call.x, *parameters)
        fast_paths.add_vjp(numpy.ndarray, _quick_vjp)
    if is_array or call.rule.averaged:  # a scale in a tensor may lie anywhere
        keep_derivative(gradient, compute, task, portions, length, dweight, keepalive)
