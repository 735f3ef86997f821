"""SIGKILL at random moments while `anynorm normalize` runs: every file is the old one or the new one.

    python -m benchmarks.files_killed --kills 50 --megabytes 200

For each way of running it, the command is timed once and its result kept as a checksum. Then it is started again and
again on the same file and killed, mostly after a random part of the time in which it writes, sometimes at any moment
before or after. What is on disk is compared with the old file and the new one after each, and the same command is left
to end on the old file once more, which removes what the killed one has left.
"""

import argparse
import hashlib
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np

FEATURES = 1024


class Way(NamedTuple):
    """A command, and the file that it writes."""

    arguments: str
    written: str


WAYS = (
    Way("x.npy --in-place --norm layer", "x.npy"),
    Way("x.npy --in-place --norm layer --axis 0", "x.npy"),
    Way("x.npy y.npy --force --norm rms", "y.npy"),
    Way("x.npy y.npy --force --norm layer --axis 0", "y.npy"),
    Way("x.safetensors --in-place --norm scale --tensor b --tensor a", "x.safetensors"),
    Way("x.npy --in-place --norm rms --dtype float16", "x.npy"),
)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--megabytes", type=int, default=200, help="size of each file (default 200)")
    parser.add_argument("--seed", type=int, default=0)
    parsed = parser.parse_args()
    chance = random.Random(parsed.seed)
    with tempfile.TemporaryDirectory() as folder:
        originals = Path(folder, "originals")
        write_files(originals, parsed.megabytes)
        for number, way in enumerate(WAYS):
            kills = parsed.kills // len(WAYS) + (number < parsed.kills % len(WAYS))
            print(f"{way.arguments:64}", flush=True, end=" ")
            print(kill_often(way, originals, Path(folder, "work"), kills, chance), flush=True)


def write_files(folder, megabytes):
    from safetensors.numpy import save_file

    folder.mkdir()
    x = np.random.default_rng(0).standard_normal((megabytes * 1000 // 4, FEATURES // 4), dtype=np.float32) + 3
    x = x.reshape(-1, FEATURES)
    np.save(folder / "x.npy", x)
    save_file({"a": x[:100], "b": x[100:-7], "c": x[-7:]}, folder / "x.safetensors", {"kept": "yes"})
    (folder / "y.npy").write_bytes(b"precious")


def kill_often(way, originals, work, kills, chance):
    """Kill so often; return in words what was found, or raise AssertionError for what must never be found."""
    old = digest(originals / way.written)
    renew(originals, work)
    process = run(way, work)
    start = time.perf_counter()
    wait_for_writing(process, work, originals)
    before = time.perf_counter() - start
    assert process.wait() == 0
    seconds = time.perf_counter() - start
    new = digest(work / way.written)
    assert new != old
    found = {"old": 0, "new": 0}
    for _ in range(kills):
        renew(originals, work)
        process = run(way, work)
        try:
            if chance.random() < 0.8:
                wait_for_writing(process, work, originals)
                process.wait(chance.uniform(0, seconds - before))
            else:
                process.wait(chance.uniform(0, seconds))
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.wait()
        found[{old: "old", new: "new"}[digest(work / way.written)]] += 1  # KeyError: it is half of each
        shutil.copyfile(originals / way.written, work / way.written)
        assert run(way, work).wait() == 0
        assert digest(work / way.written) == new, "the result is another one than without a kill"
        for path in originals.iterdir():
            assert path.name == way.written or digest(path) == digest(work / path.name), f"{path.name} has changed"
        assert set(os.listdir(work)) == set(os.listdir(originals)), "something is left behind"
    return ", ".join(f"{what}: {count}" for what, count in found.items()) + f" ({seconds:.1f} s alone)"


def wait_for_writing(process, work, originals):
    """Until a file has changed, or there is a new one that is to be the result, or the process ends."""
    known = {path.name: path.stat().st_mtime_ns for path in originals.iterdir()}
    while process.poll() is None:
        if any(name not in known or mtime(work / name) != known[name] for name in os.listdir(work)):
            return
        time.sleep(0.001)


def mtime(path):
    try:
        return path.stat().st_mtime_ns
    except FileNotFoundError:  # renamed since it was listed
        return None


def renew(originals, work):
    shutil.rmtree(work, ignore_errors=True)
    shutil.copytree(originals, work)


def run(way, work):
    command = [sys.executable, "-m", "anynorm", "normalize", *way.arguments.split()]
    return subprocess.Popen(command, cwd=work, stderr=subprocess.DEVNULL)


def digest(path):
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "blake2b").hexdigest()


if __name__ == "__main__":
    main()
