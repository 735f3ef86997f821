"""How many threads share a row, how many rows a block, and what of a row stays in registers.

All of it follows from the number of features, the size of an element and where neighbours in memory belong; the sums of
a row are formed in an order that follows from that, so it must never depend on the number of rows, nor on the device.
"""

from __future__ import annotations

from typing import NamedTuple

SLOT_NBYTES = 16  # the widest load of a thread
WARP = 32
# Of the 65536 registers of a multiprocessor 512 threads may have 128 each, of which eight slots take 32. With 1024
# threads of 64 registers ptxas spills from four slots on (sm_90, NVRTC 12.9).
MOST_THREADS = 512
_MOST_HELD = 8
# Short of that four slots a thread, so that more warps wait for memory at a time.
_HELD = 4
# Blocks that share a row, which reach each other's shared memory (from sm_90 on); more do not run on every card.
_MOST_CLUSTER = 8
# Rows of a warp or less share blocks, as more than 16 to 32 blocks would not fit on a multiprocessor.
_BLOCK = 128
# Neighbouring rows: memory is read in sectors of 32 bytes.
_SECTOR_NBYTES = 32
_COLUMNS_NBYTES = 64
_COLUMNS_BLOCK = 256
# Of rows whose slots lie across them, as many elements of a thread stay in registers: with more of 16 bits ptxas spills
# (sm_90, NVRTC 12.9). Of shared memory two blocks fit on a multiprocessor.
_MOST_ABREAST = 64
_MOST_SHARED_NBYTES = 100 << 10
_FINISHED_NBYTES = 48  # of a row, as in abreast.cuh


class Settings(NamedTuple):
    """How a kernel is started."""

    threads: int  # that share a row
    rows: int  # of a block
    held: int  # slots of a thread that stay in registers; 0: a row is read again for every pass over it
    neighbours: int = 0  # rows whose elements lie side by side, taken by neighbouring threads; 0: none do
    cluster: int = 1  # blocks that share a row
    in_shared: bool = False  # whether the held slots lie in shared memory, and not in registers
    abreast: int = 1  # neighbouring rows that a slot lies across; 1: it lies along a row

    @property
    def block(self) -> int:
        """Threads of a block."""
        return self.threads * self.rows // (self.cluster * self.abreast)

    @property
    def shared_nbytes(self) -> int:
        """Shared memory of a block whose size the kernel does not know."""
        return shared_nbytes(self.block, self.held, self.in_shared, self.neighbours, self.abreast)

    def blocks(self, rows: int) -> int:
        """How many blocks there are for so many rows."""
        return -(-rows // self.rows) * self.cluster

    def is_filled(self, features: int, itemsize: int) -> bool:
        """Whether rows of so many features fill the held slots of their threads to the last."""
        return features * itemsize == self.threads * self.held * SLOT_NBYTES


def slots_of_parameters(held: int, itemsize: int, arrays: int) -> int:
    """Slots of shared memory in which a thread keeps so many arrays of parameters of its slots, in float32."""
    return held * 4 // itemsize * arrays


def shared_nbytes(block: int, held: int, in_shared: bool, neighbours: int, abreast: int) -> int:
    """Shared memory of a block whose size the kernel does not know: held slots, and sums of rows abreast."""
    slots = block * abreast * (held * in_shared + (abreast > 1))
    return slots * SLOT_NBYTES + (neighbours * _FINISHED_NBYTES if abreast > 1 else 0)


def settings(features: int, itemsize: int, side_by_side: bool = False, clusters: bool = False) -> Settings:
    """Return the settings for rows of so many features, which must not be 0; ``clusters``: whether there are such."""
    slots = -(-features * itemsize // SLOT_NBYTES)
    if clusters and slots > MOST_THREADS * _HELD:
        return _clustered(slots)
    threads, held = _shared(slots)
    if side_by_side:
        rows = min(MOST_THREADS // threads, max(_COLUMNS_BLOCK // threads, _COLUMNS_NBYTES // itemsize))
        if rows * itemsize >= _SECTOR_NBYTES:
            return Settings(threads, rows, held, rows)
    return Settings(threads, max(1, _BLOCK // threads) if threads <= WARP else 1, held)


def settings_abreast(features: int, itemsize: int, most_nbytes: int) -> Settings | None:
    """The same for slots across neighbouring rows; None where too few would fit into a block or its shared memory."""
    threads, held = _shared(-(-features * itemsize // SLOT_NBYTES))
    size = SLOT_NBYTES // itemsize
    in_shared = held * size**2 > _MOST_ABREAST
    # Small blocks start and end at different times, so that some load while others store.
    lanes = _COLUMNS_BLOCK // threads if in_shared or threads > WARP else 8 * itemsize // 4
    lanes = max(lanes, _BLOCK // threads)
    lanes = min(max(lanes, _COLUMNS_NBYTES // SLOT_NBYTES), MOST_THREADS // threads)
    while lanes * SLOT_NBYTES >= _SECTOR_NBYTES:
        how = Settings(threads, lanes * size, held, lanes * size, in_shared=in_shared, abreast=size)
        if how.shared_nbytes <= min(most_nbytes, _MOST_SHARED_NBYTES):
            return how
        lanes //= 2
    return None


def _clustered(slots: int) -> Settings:
    """Settings for blocks of one row each, several to a row."""
    blocks = min(_power_of_two(-(-slots // (MOST_THREADS * _HELD))), _MOST_CLUSTER)
    threads = blocks * MOST_THREADS
    held = next((held for held in (_HELD, _MOST_HELD) if slots <= threads * held), 0)
    return Settings(threads, 1, held, cluster=blocks)


def _shared(slots: int) -> tuple[int, int]:
    """How many threads share so many slots, and how many each of them holds."""
    if slots <= WARP:
        return _power_of_two(slots), 1
    if slots <= WARP * _HELD:  # a warp needs no barrier
        return WARP, _power_of_two(-(-slots // WARP))
    threads = _power_of_two(-(-slots // _HELD))
    if threads <= MOST_THREADS:
        return threads, _HELD
    return MOST_THREADS, _MOST_HELD if slots <= MOST_THREADS * _MOST_HELD else 0


def _power_of_two(count: int) -> int:
    """The least power of two that is not below."""
    return 1 << (count - 1).bit_length()
