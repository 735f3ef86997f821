"""What the fast path serves: kernels that have run a call the slow path, and so are compiled."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy

from anynorm._check import Call
from anynorm._forks import unforked
from anynorm._kernels import fast_paths
from anynorm._kernels.cpu.fast_path import moments
from anynorm._kernels.cpu.fast_path.arrays import fast_path_of_arrays
from anynorm._kernels.cpu.fast_path.plans import keep
from anynorm._kernels.cpu.fast_path.record import place_of
from anynorm._kernels.cpu.fast_path.tensors import fast_path_of_tensors
from anynorm._kernels.cpu.kernels.task import Task, Variant
from anynorm._kernels.cpu.language.dtypes import CODES
from anynorm._kernels.cpu.launch.layout import Layout
from anynorm._kernels.cpu.launch.machine import LEAST_HUGE_NBYTES, last_cache_nbytes
from anynorm._kernels.cpu.threads import crew

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
    # Results of larger arrays are made in huge pages, or stored past the caches. float32 of 512 x 768, one thread: 105
    # us by the slow path, 68 by this one (EPYC 9005).
    most_nbytes = min(LEAST_HUGE_NBYTES, -(-last_cache_nbytes() // 4)) - 1
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
        if library == "numpy" and variant.code == CODES["bfloat16"]:
            functions.write("bfloat16", numpy.dtype(call.x.dtype.type))
        if library == "numpy" and library not in _served:
            fast_paths.add(numpy.ndarray, fast_path_of_arrays(functions.normalize_arrays(), resume))
        elif library not in _served:
            import torch

            normalize = functions.normalize_tensors()
            if normalize is not None:
                fast_paths.add(torch.Tensor, fast_path_of_tensors(torch, normalize, resume))
        _served.add(library)


def offer_moments(
    call: Call, run: Callable[[int, int, int], int], task: Task, layout: Layout | None, numbers: Any
) -> None:
    """Let calls of `moments` with a small NumPy array like this one go to a kernel from now on."""
    is_public = call.rule.centred  # pieces of rows of the other norms are reduced to moments without a mean
    if is_public and call.library.name == "numpy" and call.x.nbytes < crew.LEAST_SHARED_NBYTES:
        moments.keep(call, run, task, layout, numbers)
        fast_paths.add_moments(numpy.ndarray, moments.quick_moments)
