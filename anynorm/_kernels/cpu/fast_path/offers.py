"""What the fast path serves: kernels that have run a call the slow path, and so are compiled."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy

from anynorm._check import Call
from anynorm._forks import unforked
from anynorm._kernels import fast_paths
from anynorm._kernels.cpu.fast_path import moments, own_rows
from anynorm._kernels.cpu.fast_path.arrays import fast_path_of_arrays
from anynorm._kernels.cpu.fast_path.plans import keep
from anynorm._kernels.cpu.fast_path.record import place_of
from anynorm._kernels.cpu.fast_path.tensors import fast_path_of_tensors
from anynorm._kernels.cpu.kernels.task import Task, Variant
from anynorm._kernels.cpu.launch.layout import Layout
from anynorm._kernels.cpu.launch.machine import LEAST_HUGE_NBYTES, last_cache_nbytes
from anynorm._kernels.cpu.threads import crew
from anynorm._libraries import dtype_name

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
        keep(call, variant, address, layout, layout_address, results, numbers)
    if (library, id(call.rule), variant, numbers is None) in _offered:
        return
    with unforked:
        from anynorm._kernels.cpu.fast_path import functions

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
    from anynorm._kernels.cpu.fast_path import functions

    _served.add(library)
    if library == "numpy":
        fast_paths.add(numpy.ndarray, fast_path_of_arrays(functions.normalize_arrays(), resume))
        return
    import torch

    normalize = functions.normalize_tensors()
    if normalize is not None:
        fast_paths.add(torch.Tensor, fast_path_of_tensors(torch, normalize, resume))


def offer_own_rows(call: Call, resume: Callable[[Call, int], Any], kernel: int, *plan: Any) -> None:
    """The same for calls whose weight or bias differs from row to row.

    ``plan`` is what `own_rows.keep` keeps.
    """
    if not kernel or call.weight_offset or call.x.nbytes > _most_nbytes():
        return
    with unforked:
        from anynorm._kernels.cpu.fast_path import functions

        if not functions.is_served():
            return
        _serve(call.library.name, resume)
        if call.library.name == "numpy":
            _write_bfloat16(call.x, call.weight, call.bias)
        own_rows.keep(call, kernel, *plan)


def _write_bfloat16(*arrays: Any) -> None:
    """Let the program know the dtype, where one of the arrays has it."""
    from anynorm._kernels.cpu.fast_path import functions

    for one in arrays:
        if one is not None and dtype_name(one.dtype) == "bfloat16":
            functions.write("bfloat16", numpy.dtype(one.dtype.type))
            return


def offer_moments(
    call: Call, run: Callable[[int, int, int], int], task: Task, layout: Layout | None, numbers: Any
) -> None:
    """Let calls of `moments` with a small NumPy array like this one go to a kernel from now on."""
    is_public = call.rule.centred  # pieces of rows of the other norms are reduced to moments without a mean
    if is_public and call.library.name == "numpy" and call.x.nbytes < crew.LEAST_SHARED_NBYTES:
        moments.keep(call, run, task, layout, numbers)
        fast_paths.add_moments(numpy.ndarray, moments.quick_moments)
