"""Dask with worker processes: a Zarr array from disk to disk, also when a worker dies half-way."""

import contextlib
import os
import signal
import time

import dask
import dask.array as da
import numpy as np
import pytest

import anynorm

distributed = pytest.importorskip("distributed", reason="needs distributed, which runs Dask in several processes")
zarr = pytest.importorskip("zarr", reason="needs zarr, which keeps arrays on disk")

ROWS, FEATURES, BLOCK = 2048, 256, 64
SECONDS_TO_WAIT = 60


@pytest.fixture(scope="module")
def client():
    # What a worker that was killed leaves behind is no concern of these tests.
    quiet = {"distributed.logging.distributed": "critical", "distributed.comm.timeouts.connect": "20s"}
    with (
        dask.config.set(quiet),
        distributed.LocalCluster(n_workers=3, threads_per_worker=1, dashboard_address=":0", memory_limit=0) as cluster,
        distributed.Client(cluster) as client,
    ):
        yield client


@pytest.fixture
def source(tmp_path):
    x = np.random.default_rng(0).standard_normal((ROWS, FEATURES)).astype(np.float32)
    kept = zarr.create_array(str(tmp_path / "x.zarr"), shape=x.shape, chunks=(BLOCK, FEATURES), dtype=x.dtype)
    kept[:] = x
    return x, da.from_zarr(str(tmp_path / "x.zarr")), str(tmp_path / "y.zarr")


def held_up(block, gate):
    """A block from disk; of the 32 the last two come when the gate is opened, and leave one worker of three free."""
    for i in range(30):
        with contextlib.suppress(FileExistsError):
            (gate / str(i)).touch(exist_ok=False)
            return block
    while not (gate / "open").exists():
        time.sleep(0.01)
    return block


def chunks_on_disk(target):
    return sum(len([name for name in names if name != "zarr.json"]) for _, _, names in os.walk(target))


def kill_a_worker(client):
    pid = client.run(os.getpid, workers=[next(iter(client.scheduler_info()["workers"]))]).popitem()[1]
    os.kill(pid, signal.SIGKILL)
    return pid


@pytest.mark.parametrize(
    "chunks",
    [
        pytest.param((BLOCK, FEATURES), id="rows whole", marks=pytest.mark.thorough),
        pytest.param((4 * BLOCK, FEATURES // 4), id="rows cut"),
    ],
)
def test_from_disk_to_disk_though_a_worker_is_killed(client, source, chunks, tmp_path):
    x, lazy, target = source
    (gate := tmp_path / "gate").mkdir()
    client.wait_for_workers(3, timeout=SECONDS_TO_WAIT)  # one that an earlier test has killed comes back
    before = {*client.run(os.getpid).values()}
    y = anynorm.layer_norm(lazy.rechunk(chunks).map_blocks(held_up, gate=gate, meta=x[:0, :0]), x[0], x[1])
    written = client.persist(da.to_zarr(y, target, compute=False))
    until = time.monotonic() + SECONDS_TO_WAIT
    while chunks_on_disk(target) < 8:
        assert time.monotonic() < until
        time.sleep(0.01)
    assert chunks_on_disk(target) < 32  # it is not over yet
    killed = kill_a_worker(client)
    (gate / "open").touch()
    distributed.wait(written, timeout=SECONDS_TO_WAIT)
    assert killed in before
    result, expected = zarr.open_array(target, mode="r")[:], anynorm.layer_norm(x, x[0], x[1])
    if chunks[1] == FEATURES:
        assert (result == expected).all()
    else:
        np.testing.assert_allclose(result, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.thorough
def test_moments_and_norms_travel_to_the_workers(client):
    x = np.random.default_rng(1).standard_normal((64, 64)).astype(np.float32)
    lazy = da.from_array(x, chunks=(32, 16))
    found = anynorm.moments(lazy)
    y = anynorm.rms_norm(lazy, moments=found)
    y, mean = client.gather(client.compute([y, found.mean]))
    np.testing.assert_allclose(y, anynorm.rms_norm(x), rtol=1e-6)
    np.testing.assert_allclose(mean, x.mean(axis=1, keepdims=True), atol=1e-6)
    pieces = client.map(anynorm.moments, np.split(x, 8, axis=1))
    merged = client.submit(lambda pieces: anynorm.Moments.merge(*pieces), client.gather(pieces[:2])).result()
    assert merged.count == 16


def test_no_two_tasks_under_one_key(caplog):
    """What has been computed is still known to the scheduler when other uses of it come."""
    x = np.random.default_rng(2).standard_normal((8, 6)).astype(np.float32)
    with (
        distributed.LocalCluster(processes=False, n_workers=1, threads_per_worker=1, dashboard_address=":0") as cluster,
        distributed.Client(cluster) as client,
    ):
        lazy = da.from_array(x, chunks=(2, 6))
        statistics = anynorm.moments(lazy, axis=0)
        mean = client.persist(statistics.mean)
        distributed.wait(mean, timeout=SECONDS_TO_WAIT)
        own, given = client.gather(
            client.compute([anynorm.layer_norm(lazy, axis=0), anynorm.layer_norm(lazy, axis=0, moments=statistics)])
        )
    assert not [record.message for record in caplog.records if "run_spec" in record.message]
    np.testing.assert_allclose(own, anynorm.layer_norm(x, axis=0), rtol=1e-6, atol=1e-6)
    np.testing.assert_array_equal(own, given)
