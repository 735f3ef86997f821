"""Time and peak memory of `anynorm normalize` on a large file, beside a plain copy of it.

    python benchmarks/normalize_memory.py --gigabytes 2

The file is float32 of shape (rows, 1024); it and each result lie in a temporary folder (TMPDIR chooses the disk). Peak
memory is VmHWM of Linux: the most that was resident at once, mapped pages of the files included.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

FEATURES = 1024
ROWS_A_BLOCK = 1 << 14
RUNS = ("--norm layer", "--norm rms --dtype float16", "--norm layer --axis 0", "--norm layer --axis 0,1")

NORMALIZE = "import sys; from anynorm.cli import main; status = main(sys.argv[1:]); assert status == 0\n"
PRINT_PEAK = "print(next(line for line in open('/proc/self/status') if line.startswith('VmHWM:')).split()[1])"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gigabytes", type=float, default=2.0, help="size of the file, in 10**9 bytes (default 2)")
    rows = int(parser.parse_args().gigabytes * 1e9) // (FEATURES * 4)
    print(f"float32 of shape ({rows}, {FEATURES})\n{'':32}{'seconds':>10}{'peak MB':>10}")
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder, "in.npy"), Path(folder, "out.npy")
        write_random(source, rows)
        report("import numpy", *peak_of("import numpy\n"))
        report("shutil.copyfile, fsync", seconds_of_copy(source, target))
        target.unlink()
        for options in RUNS:
            report(options, *peak_of(NORMALIZE, "normalize", source, target, *options.split()))
            target.unlink()


def write_random(path, rows):
    """Fill a file with normal deviates, a block at a time, and leave it in the page cache."""
    random = np.random.default_rng(0)
    header = {"descr": "<f4", "fortran_order": False, "shape": (rows, FEATURES)}
    with open(path, "wb") as file:
        np.lib.format.write_array_header_1_0(file, header)
        for first in range(0, rows, ROWS_A_BLOCK):
            shape = (min(ROWS_A_BLOCK, rows - first), FEATURES)
            file.write(random.standard_normal(shape, dtype=np.float32).astype("<f4", copy=False).data)
        os.fsync(file.fileno())


def seconds_of_copy(source, target):
    """Copy until the copy is on disk, as the results are."""
    start = time.perf_counter()
    shutil.copyfile(source, target)
    with open(target, "rb+") as file:
        os.fsync(file.fileno())
    return time.perf_counter() - start


def peak_of(code, *arguments):
    """Run code in a process of its own; return its seconds and its peak in MB."""
    start = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", code + PRINT_PEAK, *arguments], stdout=subprocess.PIPE, check=True)
    return time.perf_counter() - start, int(done.stdout) * 1024 / 1e6


def report(what, seconds, megabytes=None):
    print(f"{what:32}{seconds:10.2f}{'' if megabytes is None else f'{megabytes:10.0f}'}", flush=True)


if __name__ == "__main__":
    main()
