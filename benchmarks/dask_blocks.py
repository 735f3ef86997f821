"""Dask on one machine: the norm of an array beside a copy of the same blocks, rows whole and cut; and a Zarr array.

    python -m benchmarks.dask_blocks
    python -m benchmarks.dask_blocks --zarr-gigabytes 4

The first form times layer_norm and a copy in turns, block by block in the memory of 4 workers, processes of a local
cluster and threads of one process, and prints medians of the ratios; the bounds are 1.3 for whole rows and 2.5 for rows
cut in 4. The second writes a Zarr array of float32 to a temporary folder (TMPDIR chooses the disk), normalizes it into
another one through 4 worker processes, kills one of them half-way, and looks at each row of the result.
"""

import argparse
import os
import signal
import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager

import dask
import dask.array as da
import distributed
import numpy as np
import zarr

import anynorm

WORKERS, ROUNDS, FEATURES = 4, 15, 4096
CHUNKS = {"rows whole": (1024, FEATURES), "rows cut in 4": (4096, FEATURES // 4)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=16384, help=f"of {FEATURES} float32 numbers (default 16384)")
    parser.add_argument("--dtypes", nargs="+", default=["float32", "float64", "float16"])
    parser.add_argument("--zarr-gigabytes", type=float, help="normalize a Zarr array of so many 10**9 bytes instead")
    arguments = parser.parse_args()
    if arguments.zarr_gigabytes:
        from_zarr_to_zarr(arguments.zarr_gigabytes)
        return
    anynorm.layer_norm(np.ones((2, FEATURES), np.float32))  # compiled before anything is timed
    for dtype in arguments.dtypes:
        with dask.config.set(scheduler="threads", num_workers=WORKERS):
            compare("threads", arguments.rows, dtype)
        with cluster():
            compare("processes", arguments.rows, dtype)


@contextmanager
def cluster() -> Iterator[distributed.Client]:
    with (
        distributed.LocalCluster(
            n_workers=WORKERS, threads_per_worker=1, dashboard_address=":0", memory_limit=0
        ) as local,
        distributed.Client(local) as client,
    ):
        yield client


def compare(workers: str, rows: int, dtype: str) -> None:
    for name, chunks in CHUNKS.items():
        # Made where it is to be normalized, as reading a file would.
        x = da.random.default_rng(0).standard_normal((rows, FEATURES), chunks=chunks).astype(dtype).persist()
        distributed.wait(x) if workers == "processes" else None
        ratios = []
        for turn in range(ROUNDS + 1):
            seconds = [timed(make, x, workers) for make in (copied, anynorm.layer_norm)]
            if turn:  # the first one compiles
                ratios.append(seconds[1] / seconds[0])
        quartiles = statistics.quantiles(ratios, n=4)
        print(
            f"{dtype:9}{WORKERS} {workers:11}{name:15}{quartiles[1]:6.2f} of a copy ({quartiles[0]:.2f} to "
            f"{quartiles[2]:.2f}); copy {seconds[0] * 1e3:.0f} ms",
            flush=True,
        )


def copied(x: da.Array) -> da.Array:
    return x.map_blocks(np.copy, dtype=x.dtype, meta=x._meta)


def timed(make, x: da.Array, workers: str) -> float:
    start = time.perf_counter()
    y = make(x).persist()
    if workers == "processes":
        distributed.wait(y)
    return time.perf_counter() - start


def from_zarr_to_zarr(gigabytes: float) -> None:
    rows = int(gigabytes * 1e9) // (FEATURES * 4)
    with tempfile.TemporaryDirectory() as folder:
        source, target = (os.path.join(folder, name) for name in ("x.zarr", "y.zarr"))
        kept = zarr.create_array(source, shape=(rows, FEATURES), chunks=(2048, FEATURES), dtype="float32")
        for first in range(0, rows, 2048):
            count = min(2048, rows - first)
            kept[first : first + count] = np.random.default_rng(first).standard_normal((count, FEATURES), np.float32)
        with cluster() as client:
            start = time.perf_counter()
            written = da.to_zarr(anynorm.layer_norm(da.from_zarr(source)), target, compute=False).persist()
            killed = kill_half_way(client, target, -(-rows // 2048))
            distributed.wait(written)
            print(f"{gigabytes} GB in {time.perf_counter() - start:.1f} s, worker {killed} killed half-way")
        result = zarr.open_array(target, mode="r")
        for first in range(0, rows, 2048):
            expected = anynorm.layer_norm(kept[first : first + 2048])
            assert np.array_equal(result[first : first + 2048], expected), f"rows from {first} on are wrong"
        print(f"all {rows} rows have the bits of the NumPy call")


def kill_half_way(client: distributed.Client, target: str, chunks: int) -> int:
    """Kill a worker as soon as half of the chunks are on disk."""
    while sum(len(files) for _, _, files in os.walk(target)) < chunks // 2:
        time.sleep(0.01)
    pid = next(iter(client.run(os.getpid).values()))
    os.kill(pid, signal.SIGKILL)
    return pid


if __name__ == "__main__":
    main()
