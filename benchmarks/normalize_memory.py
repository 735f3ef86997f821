"""Time and peak memory of `anynorm normalize` on a large .npy file, beside `cp` of it.

    python -m benchmarks.normalize_memory --gigabytes 8 --rounds 3

The file is float32 of shape (rows, 1024); it and each result lie in a temporary folder (TMPDIR chooses the disk). In
each round cp, cp with a sync of the copy, and each run of anynorm (which syncs its result) follow each other, each with
none of the source in the page cache and nothing else waiting to be written. What is printed are medians, of seconds and
of the ratios to cp within a round. Peak memory is VmHWM of Linux, the most that was resident at once, beyond that of
Python with NumPy imported.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

FEATURES = 1024
ROWS_A_BLOCK = 1 << 14
RUNS = ("--norm layer", "--norm rms --dtype float16", "--norm layer --axis 0", "--norm layer --in-place")

NORMALIZE = "import sys; from anynorm.cli import main; status = main(sys.argv[1:]); assert status == 0\n"
PRINT_PEAK = "print(next(line for line in open('/proc/self/status') if line.startswith('VmHWM:')).split()[1])"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gigabytes", type=float, default=2.0, help="size of the file, in 10**9 bytes (default 2)")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", choices=RUNS, action="append", help="one of the runs; may be repeated")
    parsed = parser.parse_args()
    runs, rows = parsed.only or RUNS, int(parsed.gigabytes * 1e9) // (FEATURES * 4)
    seconds = {run: [] for run in ("cp", "cp, sync", *runs)}
    peaks = dict.fromkeys(runs, 0.0)
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder, "in.npy"), Path(folder, "out.npy")
        write_random(source, rows)
        least = peak_of("import numpy\n")
        for _ in range(parsed.rounds):
            for what in seconds:
                settle(source)
                start = time.perf_counter()
                if what in peaks:
                    files = [source] if "--in-place" in what else [source, target]
                    peak = peak_of(NORMALIZE, "normalize", *files, *what.split()) - least
                    peaks[what] = max(peaks[what], peak)
                else:
                    subprocess.run(["cp", source, target], check=True)
                    if what != "cp":
                        subprocess.run(["sync", target], check=True)
                seconds[what].append(time.perf_counter() - start)
                target.unlink(missing_ok=True)
    print(f"float32 of shape ({rows}, {FEATURES})\n{'':32}{'seconds':>10}{'/ cp':>8}{'/ cp, sync':>12}{'peak MB':>10}")
    for what, taken in seconds.items():
        ratios = [statistics.median(map(float.__truediv__, taken, seconds[of])) for of in ("cp", "cp, sync")]
        peak = f"{peaks[what]:10.0f}" if what in peaks else ""
        print(f"{what:32}{statistics.median(taken):10.2f}{ratios[0]:8.2f}{ratios[1]:12.2f}{peak}")


def write_random(path, rows):
    """Fill a file with normal deviates, a block at a time."""
    random = np.random.default_rng(0)
    header = {"descr": "<f4", "fortran_order": False, "shape": (rows, FEATURES)}
    with open(path, "wb") as file:
        np.lib.format.write_array_header_1_0(file, header)
        for first in range(0, rows, ROWS_A_BLOCK):
            shape = (min(ROWS_A_BLOCK, rows - first), FEATURES)
            file.write(random.standard_normal(shape, dtype=np.float32).astype("<f4", copy=False).data)


def settle(path):
    """Have all that was written on disk, and none of a file in memory."""
    os.sync()
    with open(path, "rb") as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    time.sleep(1)


def peak_of(code, *arguments):
    """Run code in a process of its own; return its peak in MB."""
    done = subprocess.run([sys.executable, "-c", code + PRINT_PEAK, *arguments], stdout=subprocess.PIPE, check=True)
    return int(done.stdout) * 1024 / 1e6


if __name__ == "__main__":
    main()
