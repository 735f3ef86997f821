"""Launch settings of the CUDA kernels of the derivative, and that every element of every row is taken once."""

import itertools

import numpy as np
import pytest

from anynorm._kernels.cuda.device import Device
from anynorm._kernels.cuda.launch import SLOT_NBYTES, WARP
from anynorm._kernels.cuda.launch_derivative import SLOTS, STREAM_THREADS, derivative_settings, slots_of_sums

FEATURES = (1, 2, 3, 8, 9, 33, 64, 257, 768, 1000, 1024, 4096, 4097, 5120, 8192, 16384, 32769, 65536, 65537, 300001)
every_itemsize = pytest.mark.parametrize("itemsize", [2, 4])


@every_itemsize
@pytest.mark.parametrize("features", FEATURES)
def test_every_element_is_taken_once(features, itemsize):
    how, size = derivative_settings(features, itemsize), SLOT_NBYTES // itemsize
    part, slot, thread = np.ogrid[: how.parts, :SLOTS, : how.threads]
    start = ((part * SLOTS + slot) * how.threads + thread) * size
    feature = (start[..., None] + np.arange(size)).ravel()
    assert (np.bincount(feature[feature < features], minlength=features) == 1).all()


@every_itemsize
@pytest.mark.parametrize("features", FEATURES)
def test_settings_are_valid_on_every_card(features, itemsize):
    rows, columns = (derivative_settings(features, itemsize, side_by_side, 16) for side_by_side in (False, True))
    # The order of sums depends on no layout, and on no card.
    older = derivative_settings(features, itemsize)
    assert {(how.threads, how.teams, how.parts) for how in (rows, columns, older)} == {rows[:1] + rows[2:4]}
    assert rows.block % WARP == 0
    assert rows.block <= STREAM_THREADS
    assert columns.single_block % WARP == 0
    assert columns.single_block <= 1024
    if rows.threads > WARP:
        assert rows.threads % WARP == 0
        assert rows.rows == 1
    if columns.neighbours:
        assert columns.neighbours * itemsize >= 32
        assert not columns.is_streamed
    # With both sums, on a card for data centres.
    assert (
        2 * slots_of_sums(itemsize) * SLOT_NBYTES * rows.block
        <= Device("sm_80", False, False, 163 << 10).most_shared_nbytes
    )


@every_itemsize
def test_blocks_that_share_a_row(itemsize):
    assert derivative_settings(4096, itemsize).parts == 1
    assert derivative_settings(4097, itemsize).parts == 2
    assert derivative_settings(12289, itemsize).parts == 4
    for features, most_cluster, is_streamed in (
        (4096, 1, True),
        (4097, 1, False),
        (32768, 8, True),
        (32769, 8, False),
        (65536, 16, True),
        (65537, 16, False),
    ):
        assert derivative_settings(features, itemsize, False, most_cluster).is_streamed == is_streamed


def test_columns_of_up_to_1024_features_are_taken_side_by_side():
    assert derivative_settings(1024, 4, True).neighbours == 8
    assert not derivative_settings(1025, 4, True).neighbours


@pytest.mark.parametrize("features", [3, 1024, 4096, 65536])
@pytest.mark.parametrize("rows", [1, 5, 4096, 3_000_000])
def test_every_row_is_in_a_block(rows, features):
    how = derivative_settings(features, 4)
    count = how.blocks(rows)
    bounds = [rows * block // count for block in range(count + 1)]
    assert (bounds[0], bounds[-1]) == (0, rows)
    assert all(first < last for first, last in itertools.pairwise(bounds))
    assert count <= 65535


def test_blocks_are_as_many_as_multiprocessors_or_a_multiple():
    assert derivative_settings(4096, 4).blocks(4096) == 132
    assert derivative_settings(4096, 4).blocks(2 * 132 * 64 - 1) == 132
    assert derivative_settings(4096, 4).blocks(2 * 132 * 64) == 264
    assert derivative_settings(65536, 4).blocks(256) == 6


def test_what_cards_have():
    assert Device("sm_80", False, False, 163 << 10).most_cluster == 1
    assert Device("sm_90", False, True, 227 << 10).most_cluster == 16
    assert Device("sm_120", False, True, 99 << 10).most_cluster == 8
    assert Device("sm_75", False, False, 64 << 10).most_shared_nbytes == 52 << 10
