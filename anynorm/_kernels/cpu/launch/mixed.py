"""The norm of the sum with a residual of another dtype: the library adds, a block of rows at a time.

The norm is that of the sum, in its dtype, and then rounded to x's.
"""

from __future__ import annotations

from typing import Any

import numpy

from anynorm._check import Call
from anynorm._kernels.cpu import has_groups
from anynorm._kernels.cpu.launch import groups, norm
from anynorm._kernels.cpu.launch.machine import empty_like
from anynorm._kernels.definition import blocks_of_rows, with_parameters_for
from anynorm._totals import dtype_of_total

# A block of float32 takes 1 MB: enough for threads to share it.
_BLOCK_ELEMENTS = 1 << 18


def run(call: Call) -> tuple[Any, Any]:
    """Return y and the sum."""
    residual: Any = call.residual
    x, memory, library = call.x, call.library.memory, call.library
    xp, dtype = library.namespace, dtype_of_total(x, residual, library)
    if call.out is None:
        y, total = empty_like(memory, x), xp.empty(tuple(x.shape), dtype=dtype, device=x.device)
    else:
        y, total = call.out
    wide = call._replace(residual=None, out=None, precision=library.precision(total))
    with numpy.errstate(all="ignore"):
        for block in blocks_of_rows(tuple(x.shape), call.axes, _BLOCK_ELEMENTS):
            of_sum = total[block]
            of_sum[...] = xp.astype(x[block], dtype) + xp.astype(residual[block], dtype)
            part = with_parameters_for(wide, block)._replace(x=of_sum)
            if dtype == x.dtype:
                part = part._replace(out=(y[block],))
            found = groups.run(part) if has_groups(part) else norm.run(part)
            if dtype != x.dtype:
                y[block] = xp.astype(found, x.dtype)
    if call.out is not None:
        for one in call.out:
            memory.written(one)
    return y, total
