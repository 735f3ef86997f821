"""What the fast path serves: kernels that have run a call the long way, and so are compiled."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy

from anynorm._check import Call
from anynorm._forks import unforked
from anynorm._kernels import short_ways
from anynorm._kernels.cpu.fast_path.arrays import way_of_arrays
from anynorm._kernels.cpu.fast_path.record import place_of
from anynorm._kernels.cpu.fast_path.tensors import way_of_tensors
from anynorm._kernels.cpu.kernels.task import Variant
from anynorm._kernels.cpu.language.dtypes import CODES
from anynorm._kernels.cpu.launch.machine import last_cache_nbytes
from anynorm._kernels.cpu.threads.crew import LEAST_SHARED_NBYTES

_offered: set[tuple[str, Variant]] = set()
_served: set[str] = set()  # libraries


def offer(call: Call, variant: Variant, address: int, resume: Callable[[Call, int], Any]) -> None:
    """Let small calls of this kind go to the kernel at an address from now on; 0 where it is interpreted."""
    library = call.library.name
    if (library, variant) in _offered or not address:
        return
    with unforked:
        from anynorm._kernels.cpu.fast_path.program import program

        found = program()
        if found is None:
            return
        # Larger arrays are shared among threads, or stored past the caches.
        found.record.most_nbytes = min(LEAST_SHARED_NBYTES, -(-last_cache_nbytes() // 4)) - 1
        found.record.kernels[place_of(variant)] = address
        if library == "numpy" and variant.code == CODES["bfloat16"]:
            found.write("bfloat16", numpy.dtype(call.x.dtype.type))
        if library == "numpy" and library not in _served:
            short_ways.add(numpy.ndarray, way_of_arrays(found.normalize_arrays, resume))
        elif library not in _served:
            import torch

            if found.write_torch(torch):
                short_ways.add(torch.Tensor, way_of_tensors(torch, found.normalize_tensors))
        _served.add(library)
        _offered.add((library, variant))
