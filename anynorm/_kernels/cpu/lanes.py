"""Vectors of LANES numbers, and memory by its address: what the CPU kernels are written in.

Compiled, each function is an instruction or a few. Under NUMBA_DISABLE_JIT=1 the kernels run as plain Python, for a
debugger and to see which lines are run; the functions then do the same in NumPy, to the bit.
"""

from __future__ import annotations

from typing import Any

from numba import config

_arithmetic: Any
_memory: Any
if config.DISABLE_JIT:
    from anynorm._kernels.cpu import interpreted

    _arithmetic = _memory = interpreted
else:
    from anynorm._kernels.cpu import compiled, compiled_memory

    _arithmetic, _memory = compiled, compiled_memory

buffer = _memory.buffer
copy = _memory.copy
fence = _memory.fence
further = _memory.further
instead = _memory.instead
integer = _memory.integer
load = _memory.load
peek = _memory.peek
poke = _memory.poke
prefetch = _memory.prefetch
size_of = _memory.size_of
store = _memory.store
stream = _memory.stream

alike = _arithmetic.alike
as_lanes = _arithmetic.as_lanes
fma = _arithmetic.fma
magnitude = _arithmetic.magnitude
root = _arithmetic.root
splat = _arithmetic.splat
total = _arithmetic.total
total_pair = _arithmetic.total_pair
weighted = _arithmetic.weighted
where_less = _arithmetic.where_less
