"""What the fast path serves: kernels that have run a call the long way, and so are compiled."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy

from anynorm._check import Call
from anynorm._forks import unforked
from anynorm._kernels import short_ways
from anynorm._kernels.cpu.fast_path.arrays import way_of_arrays
from anynorm._kernels.cpu.fast_path.record import IN_FLOAT64
from anynorm._kernels.cpu.fast_path.tensors import way_of_tensors
from anynorm._kernels.cpu.kernels.task import Variant
from anynorm._kernels.cpu.launch.memory import last_cache_nbytes
from anynorm._kernels.cpu.threads.crew import LEAST_SHARED_NBYTES

_offered: set[tuple[str, Variant]] = set()


def offer(call: Call, variant: Variant, address: int, resume: Callable[[Call, int], Any]) -> None:
    """Let small calls of this kind go to the kernel at an address from now on; 0 where it is interpreted."""
    key = (call.library.name, variant)
    if key in _offered or not address:
        return
    with unforked:
        from anynorm._kernels.cpu.fast_path.program import program

        found = program()
        if found is None:
            return
        record = found.record
        # Larger arrays are shared among threads, or stored past the caches.
        record.most_nbytes = min(LEAST_SHARED_NBYTES, -(-last_cache_nbytes() // 4)) - 1
        kernels = record.kernels_with_residual if variant.has_residual else record.kernels
        kernels[IN_FLOAT64 if variant.code == 2 and variant.in_float64 else variant.code] = address
        if call.library.name == "numpy":
            if variant.code == 1:
                found.write("bfloat16", numpy.dtype(call.x.dtype.type))
            short_ways.add(numpy.ndarray, way_of_arrays(found.normalize_arrays, resume))
        else:
            import torch

            if found.write_torch(torch):
                short_ways.add(torch.Tensor, way_of_tensors(torch, found.normalize_tensors))
        _offered.add(key)
