"""Launch settings of the CUDA kernels, and that every element of every row is taken once."""

import numpy as np
import pytest

from anynorm._kernels.cuda.launch import MOST_THREADS, SLOT_NBYTES, WARP, settings, settings_abreast
from anynorm._kernels.cuda.task import FREE_AXES, as_rows, fill, is_aligned, is_aligned_across

FEATURES = (1, 2, 3, 7, 8, 9, 31, 33, 64, 127, 768, 1000, 1024, 4096, 5000, 8192, 16384, 32769, 65536, 262144, 300001)
# Of a block, on sm_80, sm_90 and sm_100 alike.
REGISTERS, REGISTERS_OF_A_THREAD, STATIC_SHARED_NBYTES = 65536, 255, 48 << 10

every_itemsize = pytest.mark.parametrize("itemsize", [2, 4, 8])
either_way = pytest.mark.parametrize("side_by_side", [False, True])


def elements_of(how, features, itemsize, block):
    """Row and feature of each element that the threads of a block take, as Team and Row count them."""
    threads = np.arange(how.block)
    if how.neighbours:
        thread, row = threads // how.neighbours, threads % how.neighbours
    else:
        thread, row = threads % how.threads, threads // how.threads
    size = SLOT_NBYTES // itemsize
    slots = how.held or -(-features // (size * how.threads))
    start = (thread[:, None] + how.threads * np.arange(slots)) * size
    feature = (start[:, :, None] + np.arange(size)).reshape(len(threads), -1)
    row = np.broadcast_to((block * how.rows + row)[:, None], feature.shape)
    inside = feature < features
    return row[inside], feature[inside]


@either_way
@every_itemsize
@pytest.mark.parametrize("features", FEATURES)
@pytest.mark.parametrize("rows", [1, 3, 130])
def test_every_element_is_taken_once(rows, features, itemsize, side_by_side):
    how = settings(features, itemsize, side_by_side)
    blocks = how.blocks(rows)
    assert (blocks - 1) * how.rows < rows <= blocks * how.rows
    # The first and the last block stand for all: which rows are whose is the same in each.
    for block in {0, blocks - 1}:
        row, feature = elements_of(how, features, itemsize, block)
        count = np.bincount((row - block * how.rows) * features + feature, minlength=how.rows * features)
        assert (count == 1).all()


@either_way
@every_itemsize
@pytest.mark.parametrize("features", FEATURES)
def test_settings_are_valid_on_every_card(features, itemsize, side_by_side):
    how = settings(features, itemsize, side_by_side)
    assert how.block <= MOST_THREADS
    assert how.block % WARP == 0
    assert how.threads & (how.threads - 1) == 0
    assert how.block * min(REGISTERS_OF_A_THREAD, REGISTERS // MOST_THREADS) <= REGISTERS
    if how.neighbours:
        assert how.neighbours == how.rows
        assert how.neighbours * itemsize >= 32
    elif how.threads > WARP:
        assert how.rows == 1


@every_itemsize
@pytest.mark.parametrize("features", FEATURES)
def test_the_order_of_sums_does_not_depend_on_the_layout(features, itemsize):
    rows, columns = settings(features, itemsize), settings(features, itemsize, True)
    assert (rows.threads, rows.held) == (columns.threads, columns.held)


@pytest.mark.parametrize("itemsize", [2, 4])
@pytest.mark.parametrize("features", [features for features in FEATURES if features % 8 == 0])
def test_slots_across_rows(features, itemsize):
    most_nbytes = 48 << 10
    how, rows = settings_abreast(features, itemsize, most_nbytes), settings(features, itemsize)
    if how is None:  # of a larger block one slot each does not fit
        assert 32 * features > most_nbytes
        return
    assert (how.threads, how.held) == (rows.threads, rows.held)
    assert how.block <= MOST_THREADS
    assert how.block % WARP == 0
    assert how.neighbours == how.rows
    assert how.neighbours * itemsize >= 32
    assert how.shared_nbytes <= most_nbytes
    # As Team and Abreast count them: each of the rows of a block is in one slot of one thread.
    lanes = how.block // how.threads
    assert how.rows == lanes * how.abreast == lanes * SLOT_NBYTES // itemsize


def test_slots_across_rows_lie_in_shared_memory_where_registers_would_not_do():
    assert not settings_abreast(512, 4, 227 << 10).in_shared
    assert not settings_abreast(256, 2, 227 << 10).in_shared
    assert settings_abreast(264, 2, 227 << 10).in_shared
    assert settings_abreast(2048, 2, 99 << 10).shared_nbytes > 48 << 10
    assert settings_abreast(16384, 4, 227 << 10) is None


def test_rows_that_fit_are_held():
    assert settings(16384, 4).held
    assert not settings(16385, 4).held
    assert settings(512, 4).threads == WARP
    assert settings(513, 4).threads > WARP


def test_layouts():
    x = np.zeros((4, 3, 5, 8), np.float32)
    rows = as_rows(x.shape, [x.strides] * 4, (3,), 4)
    assert (rows.total, rows.normalized.length, len(rows.free), rows.side_by_side) == (60, 8, 1, False)
    assert as_rows(x.shape, [x.strides] * 4, (1,), 4).side_by_side
    assert as_rows(x.shape, [x.strides] * 4, (2, 3), 4).normalized.length == 40
    assert "no single stride" in as_rows(x.shape, [x.strides] * 4, (1, 3), 4)
    assert "no multiples" in as_rows((2, 2), [(9, 4)] * 4, (1,), 4)
    shape = (2,) * (FREE_AXES + 2)
    apart = tuple(4 * 3**i for i in range(len(shape)))
    assert "more than" in as_rows(shape, [apart] * 4, (0,), 4)
    assert as_rows((1,), [(4,)] * 4, (0,), 4).total == 1


def test_alignment():
    x = np.zeros((4, 8), np.float32)
    rows = as_rows(x.shape, [x.strides] * 4, (1,), 4)
    assert is_aligned(rows, [0, 16, 32, 256, None])
    assert not is_aligned(rows, [0, 16, 32, 4, None])
    assert not is_aligned(as_rows((4, 7), [(28, 4)] * 4, (1,), 4), [0] * 4)
    assert not is_aligned(as_rows((4, 8), [(36, 4)] * 4, (1,), 4), [0] * 4)
    assert not is_aligned(as_rows((4, 8), [(64, 8)] * 4, (1,), 4), [0] * 4)


def test_alignment_across_rows():
    def found(shape, addresses=(0, 16, None), axis=1, itemsize=4, strides=None):
        strides = strides or np.empty(shape, f"f{itemsize}").strides
        return is_aligned_across(as_rows(shape, [strides] * 4, (axis,), itemsize), addresses)

    assert found((2, 8, 4))
    assert found((8, 4), axis=0)
    assert found((2, 8, 8), itemsize=2)
    assert not found((2, 8, 4), itemsize=2)
    assert not found((2, 8, 5))
    assert not found((2, 7, 4))
    assert not found((2, 8, 4), (0, 4))
    assert not found((2, 8, 4), axis=2)
    assert not found((2, 8, 4), strides=(160, 20, 4))
    assert not found((2, 8, 4), strides=(256, 32, 8))


def test_strides_are_counted_in_elements():
    x = np.zeros((4, 6, 8), np.float32)[:, ::2]
    rows = as_rows(x.shape, [x.strides] * 4, (2,), 4)
    task = fill(rows, [1, 2, 3, 4])
    assert (task.rows, task.features, task.free_axes) == (12, 8, 1)
    assert list(task.lengths)[:1] == [12]
    assert [task.strides[3][0], task.steps[3], task.arrays[3]] == [16, 1, 4]
