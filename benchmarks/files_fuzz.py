"""Headers of .npy and .safetensors files, mutated at random: each is refused in one line, or its file normalized.

The result is of the same format, or of another one; each of them has its share.

    python -m benchmarks.files_fuzz --headers 5000

Every command runs under a limit of the address space, twice the file's size beyond what Python takes after a first
command (256 MB where a library writes the result), and under an alarm. A crash, a hang, more than one line, a changed
source or a file left behind ends the run.
"""

import argparse
import contextlib
import io
import os
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

MEGABYTES = 8
ROOM = 256 << 20
SECONDS = 20  # after which a command hangs
SUFFIXES = (".npy", ".safetensors")
SUFFIXES_OUT = (*SUFFIXES, ".zarr", ".parquet")
TOKENS = (
    b"'<f8'", b"'|O'", b"'<f2'", b"('<f4', (2,))", b"[('a', '<f4')]", b"True", b"-1", b"0", b"10" * 20, b"(((((",
    b"[" * 90, b"{}", b"None", b"\x00", b"\xff\xfe", b"\\", b"'", b'"', b"#", b"\n", b"1e9", b"9" * 18, b"F64", b"BF16",
    b"I8", b'"data_offsets":[0,0]', b"[18446744073709551615,0]", b'"__metadata__":{"a":1},', b"4294967296",
    b"descr", b"shape",
)  # fmt: skip


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--headers", type=int, default=5000, help="of each format (default 5000)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)
    parsed = parser.parse_args()
    if not parsed.here:  # with one heap for all threads, each of which reserves 64 MB of addresses otherwise
        command = [sys.executable, "-m", "benchmarks.files_fuzz", "--here", *sys.argv[1:]]
        sys.exit(subprocess.run(command, env=os.environ | {"MALLOC_ARENA_MAX": "1"}, check=False).returncode)
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        for suffix in SUFFIXES:
            for out in SUFFIXES_OUT:
                headers = parsed.headers // 2 if out == suffix else parsed.headers // 6
                print(f"{suffix:13}{out:13}{fuzz(suffix, out, headers, random.Random(parsed.seed))}", flush=True)


def fuzz(suffix, out, headers, chance):
    """Try so many mutations of one header; return in words what became of them."""
    path, length = write_file(suffix)
    original, target = path.read_bytes(), Path(f"y{out}")
    command = ["normalize", path.name, target.name, "--norm", "rms", "--quiet"]
    command += ["--tensor", "a"] if suffix == ".safetensors" else []
    assert run(command) == (0, ""), "the file as it is should go through"
    remove(target)
    limit = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (addresses() + (2 * len(original) if out in SUFFIXES else ROOM), limit[1]))
    accepted, slowest = 0, 0.0
    try:
        for _ in range(headers):
            mutated = mutate(original[:length], chance)
            begin = mutated + original[len(mutated) : length + 1000]  # of a file that keeps its size, mostly
            with open(path, "r+b") as file:
                file.write(begin)
                file.truncate(len(original) if chance.random() < 0.9 else chance.randrange(len(original)))
            start = time.perf_counter()
            status, error = run(command)
            slowest = max(slowest, time.perf_counter() - start)
            check(path, target, begin, status, error)
            accepted += status == 0
            remove(target)
            path.write_bytes(original) if path.stat().st_size != len(original) else restore(path, original, len(begin))
    finally:
        resource.setrlimit(resource.RLIMIT_AS, limit)
        path.unlink()
    return f"{headers} headers, {accepted} of them still good, none did harm; the slowest took {slowest:.2f} s"


def write_file(suffix):
    """A good file, and the length of its header."""
    path = Path(f"x{suffix}")
    x = np.zeros((MEGABYTES * 256, 1024), np.float32)
    if suffix == ".npy":
        np.save(path, x)
        return path, 128
    from safetensors.numpy import save_file

    save_file({"a": x[:-9], "b": x[-9:-1], "c": x[-1:].astype(np.float16)}, path, {"format": "np"})
    return path, 8 + int.from_bytes(path.read_bytes()[:8], "little")


def mutate(header, chance):
    """Change one to four things in a header."""
    for _ in range(chance.randint(1, 4)):
        at, to = sorted(chance.randrange(len(header) + 1) for _ in range(2))
        to = min(to, at + 12)
        kind = chance.randrange(6)
        if kind == 0:
            header = header[:at] + bytes([chance.randrange(256)]) + header[at + 1 :]
        elif kind == 1:
            header = header[:at] + header[to:]
        elif kind == 2:
            header = header[:at] + header[at:to] * chance.randint(2, 5) + header[to:]
        elif kind == 3:
            header = header[:at] + chance.choice(TOKENS) + header[at if chance.random() < 0.5 else to :]
        elif kind == 4:  # a number for another one
            numbers = list(re.finditer(rb"\d+", header))
            if numbers:
                number, other = chance.choice(numbers), str(chance.choice((0, 1, 7, 2**31, 2**63, 2**64, 10**30)))
                header = header[: number.start()] + other.encode() + header[number.end() :]
        else:  # the length of the header, where it is told
            header = header[:8] + chance.randbytes(chance.choice((1, 2, 4))) + header[12:]
    return header


def run(command):
    """Status and what stands on standard error."""
    from anynorm import cli

    signal.signal(signal.SIGALRM, hang)
    signal.alarm(SECONDS)
    with contextlib.redirect_stderr(io.StringIO()) as error:
        status = cli.main(command)
    signal.alarm(0)
    return status, error.getvalue()


def hang(*_):
    raise AssertionError(f"a command takes more than {SECONDS} s")


def remove(target):
    if target.is_dir():
        shutil.rmtree(target)
    target.unlink(missing_ok=True)


def check(path, target, begin, status, error):
    with open(path, "rb") as file:
        assert file.read(len(begin)) == begin[: path.stat().st_size], "the source has changed"
    expected = {path.name, target.name} if status == 0 else {path.name}
    assert set(os.listdir()) == expected, os.listdir()
    said = re.fullmatch("anynorm: .*\n", error)
    assert status == 0 or (status == 1 and said and "memory" not in error), (status, error)


def restore(path, original, length):
    with open(path, "r+b") as file:
        file.write(original[:length])


def addresses():
    """The size of this process in its address space, in bytes."""
    return int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()


if __name__ == "__main__":
    main()
