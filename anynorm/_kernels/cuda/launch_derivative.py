"""How the kernels of the derivative are started, which hold more of a row and sums over rows as well.

As in `launch`, all of it follows from the shape and the size of an element: the order in which a row and the rows are
summed up must never depend on the device, nor on strides.
"""

from __future__ import annotations

from typing import NamedTuple

from anynorm._kernels.cuda.launch import SLOT_NBYTES, WARP, _power_of_two, settings

# Threads of a multiprocessor that may have 128 registers each. A thread takes two slots, 8 elements of float32 or 16 of
# 16 bits, and what is made of them stays in registers; the sums over rows of their features lie in shared memory.
STREAM_THREADS = 512
SLOTS = 2
STATIC_NBYTES = 20 << 10  # of shared memory, for what is merged
_PART = 4096  # features of a row that the threads of a block share
_BLOCK = 128  # threads of a block where rows of a warp or less share it
# Float64: with more threads of four slots ptxas spills (sm_80, NVRTC 12.9).
_MOST_THREADS_OF_DOUBLE = 256
# What is written of the sums of blocks is to be little beside the rows. So a block has all the threads there may be on
# a multiprocessor, and blocks are as many as an H100 has of those, or a multiple where each still has rows enough.
_MULTIPROCESSORS = 132
# Of clusters, by their blocks: they lie within groups of multiprocessors, some of which have less than 16.
_CLUSTERS = {2: 64, 4: 28, 8: 12, 16: 6}
_ROWS_ENOUGH = 64
_MOST_WAVES = 4
# Neighbouring rows, as in `launch`.
_SECTOR_NBYTES = 32
_COLUMNS_NBYTES = 64
_COLUMNS_BLOCK = 256
_MOST_OF_COLUMNS = 1024


class DerivativeSettings(NamedTuple):
    """How the kernels are started."""

    threads: int  # that share a row, or a part of one
    rows: int  # of a block that takes no others
    teams: int  # or that a block takes at a time, and whose sums over rows are formed apart
    parts: int = 1  # of a row, of blocks side by side or taken by the same threads one after the other
    neighbours: int = 0  # rows whose elements lie side by side, taken by neighbouring threads; 0: none do
    held: int = 0  # slots of float64 that stay in registers
    is_streamed: bool = False  # whether a block goes over many rows and adds them up

    @property
    def block(self) -> int:
        """Threads of a block that takes rows one after the other."""
        return self.threads * self.teams

    @property
    def single_block(self) -> int:
        """Threads of a block that takes ``rows`` rows alone."""
        return self.threads * self.rows

    def blocks(self, rows: int) -> int:
        """How many blocks of rows there are whose sums are formed one by one."""
        of_multiprocessor = STREAM_THREADS // (self.threads * self.teams)
        at_once = of_multiprocessor * (_MULTIPROCESSORS if self.parts == 1 else _CLUSTERS.get(self.parts, 1))
        waves = min(max(1, rows // (self.teams * at_once * _ROWS_ENOUGH)), _MOST_WAVES)
        return min(at_once * waves, -(-rows // self.teams))


def derivative_settings(
    features: int, itemsize: int, side_by_side: bool = False, most_cluster: int = 1
) -> DerivativeSettings:
    """Return the settings for rows of so many features, which must not be 0, on a device of such clusters."""
    if itemsize == 8:
        how = settings(features, itemsize, side_by_side)
        held = how.held if how.block <= _MOST_THREADS_OF_DOUBLE else 0
        return DerivativeSettings(how.threads, how.rows, _teams(how.threads), 1, how.neighbours, held)
    slots = -(-features * itemsize // SLOT_NBYTES)
    parts = _power_of_two(-(-features // _PART))
    threads = -(-slots // (parts * SLOTS))
    threads = _power_of_two(threads) if threads <= WARP else -(-threads // WARP) * WARP
    teams = _teams(threads) if parts == 1 else 1
    neighbours = min(_MOST_OF_COLUMNS // threads, max(_COLUMNS_BLOCK // threads, _COLUMNS_NBYTES // itemsize))
    if side_by_side and parts == 1 and neighbours * itemsize >= _SECTOR_NBYTES:
        return DerivativeSettings(threads, neighbours, teams, parts, neighbours)
    return DerivativeSettings(threads, teams if threads <= WARP else 1, teams, parts, is_streamed=parts <= most_cluster)


def slots_of_sums(itemsize: int) -> int:
    """Slots of shared memory for a thread's sums of float64, where one parameter wants a gradient."""
    return SLOTS * 8 // itemsize


def _teams(threads: int) -> int:
    return max(1, (_BLOCK if threads <= WARP else STREAM_THREADS) // threads)
