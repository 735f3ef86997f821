"""The kernel for the derivative of rows side by side, where neighbours in memory belong to different rows."""

from __future__ import annotations

from anynorm._kernels.cpu.kernels.derivative.block import Memory
from anynorm._kernels.cpu.kernels.derivative.column_steps import differentiate_block
from anynorm._kernels.cpu.kernels.derivative.portions import load_derivative, portions_of
from anynorm._kernels.cpu.kernels.side_by_side.block import blocks_of, count_blocks, tile_of
from anynorm._kernels.cpu.kernels.task import Variant


def differentiate_columns(variant: Variant, address: int, first: int, last: int) -> int:
    """Find the derivative at portions of all blocks of rows side by side, first to last; return the last.

    A portion is some of these blocks, and all else is as in `differentiate_rows`.
    """
    task = load_derivative(variant, address, first)
    memory, tile = Memory(task), tile_of(address)
    for sums, begin, end in portions_of(task, address, first, last, count_blocks(task, address)):
        for neighbours in blocks_of(task, address, tile, begin, end):
            differentiate_block(memory.block(neighbours, variant.has_numbers), sums)
    return last
