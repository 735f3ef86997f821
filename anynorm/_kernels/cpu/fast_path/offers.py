"""What the fast path serves: kernels that a call has run through the long way, so that they are there."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy

from anynorm._check import Call
from anynorm._forks import unforked
from anynorm._kernels import short_ways
from anynorm._kernels.cpu.fast_path.arrays import way_of_arrays
from anynorm._kernels.cpu.fast_path.tensors import way_of_tensors

# Larger arrays are shared among threads, and what is saved here is little to them.
MOST_NBYTES = 512 << 10
_offered: set[tuple[str, Any, int, bool]] = set()


def offer(
    call: Call, code: int, in_float64: bool, address: int, most_nbytes: int, resume: Callable[[Call, int], Any]
) -> None:
    """Let the kernel at an address serve the fast path, for arrays like x of this call.

    ``code`` is that of x's dtype, ``in_float64`` how it is computed; x has fewer than ``most_nbytes``.
    """
    key = (call.library.name, call.x.dtype, in_float64, call.residual is not None)
    if key in _offered or not address:
        return
    with unforked:
        from anynorm._kernels.cpu.fast_path.program import program
        from anynorm._kernels.cpu.fast_path.record import IN_FLOAT64

        found = program()
        if found is None:
            return
        record = found.record
        record.most_nbytes = most_nbytes - 1
        kernels = record.kernels if call.residual is None else record.kernels_with_residual
        kernels[IN_FLOAT64 if code == 2 and in_float64 else code] = address
        if call.library.name == "numpy":
            if code == 1:
                found.write("bfloat16", numpy.dtype(call.x.dtype.type))
            short_ways.add(numpy.ndarray, way_of_arrays(found.normalize_arrays, resume))
        else:
            import torch

            if found.write_torch(torch):
                short_ways.add(torch.Tensor, way_of_tensors(torch, found.normalize_tensors))
    _offered.add(key)
