"""Between memory, by its address, and numbers and lanes.

An element in memory is of a `Dtype`. Where ``residual`` is given, the address of another element, it is the sum of both
as their dtype rounds it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from anynorm._kernels.cpu.language.dtypes import FLOAT64, INTERPRETED, Number

if TYPE_CHECKING or INTERPRETED:
    from anynorm._kernels.cpu.language import interpreted_memory as words
else:
    from anynorm._kernels.cpu.language import compiled_memory as words

call_kernel = words.call_kernel
buffer, copy, fence, prefetch = words.buffer, words.copy, words.fence, words.prefetch
integer, load, peek = words.integer, words.load, words.peek
store, store_integer, stream, stream_line = words.store, words.store_integer, words.stream, words.stream_line


def real(address: int) -> Number:
    """A float64 from an address."""
    return peek(address, FLOAT64)


def store_real(address: int, value: Number) -> None:
    """A float64, or lanes of it, to an address."""
    store(address, FLOAT64, value)
