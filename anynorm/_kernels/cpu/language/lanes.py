"""Vectors of LANES numbers, and memory by its address: what the CPU kernels are written in.

Compiled, each function is an instruction or a few. Under ANYNORM_INTERPRET=1 the kernels run as plain Python, for a
debugger and to see which lines are run; the functions then do the same in NumPy, to the bit.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from anynorm._kernels.cpu.language.dtypes import INTERPRETED

_arithmetic: Any
_memory: Any
_flow: Any
if INTERPRETED:
    from anynorm._kernels.cpu.language import interpreted, interpreted_memory

    _arithmetic, _memory, _flow = interpreted, interpreted_memory, interpreted
else:
    from anynorm._kernels.cpu.language import compiled, compiled_memory, tracing

    _arithmetic, _memory, _flow = compiled, compiled_memory, tracing

cases = _flow.cases
cell = _flow.cell
loop = _flow.loop
when = _flow.when

buffer = _memory.buffer
copy = _memory.copy
fence = _memory.fence
integer = _memory.integer
load = _memory.load
peek = _memory.peek
poke = _memory.poke
prefetch = _memory.prefetch
real = _memory.real
size_of = _memory.size_of
store = _memory.store
store_integer = _memory.store_integer
stream = _memory.stream
stream_line = _memory.stream_line

alike = _arithmetic.alike
as_lanes = _arithmetic.as_lanes
fma = _arithmetic.fma
larger = _arithmetic.larger
magnitude = _arithmetic.magnitude
number = _arithmetic.number
part = _arithmetic.part
root = _arithmetic.root
smaller = _arithmetic.smaller
splat = _arithmetic.splat
split = _arithmetic.split
sum_lanes = _arithmetic.sum_lanes
sum_lane_pairs = _arithmetic.sum_lane_pairs
weighted = _arithmetic.weighted
where = _arithmetic.where
where_less = _arithmetic.where_less


def combinations(*conditions: Any) -> Iterator[tuple[bool, ...]]:
    """`cases` of several conditions at once."""
    if not conditions:
        yield ()
        return
    for flag in cases(conditions[0]):
        for others in combinations(*conditions[1:]):
            yield (flag, *others)
