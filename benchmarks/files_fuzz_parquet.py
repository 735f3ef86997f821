"""Files of .parquet, changed at random: each is refused in one line, or gives a file that can be read, or is shown.

    python -m benchmarks.files_fuzz_parquet --files 500

Every command runs in a child of its own, under a limit of the address space and an alarm. A crash, a hang, more than
one line, a changed source, a result that cannot be read or a file left behind ends the run.
"""

import argparse
import contextlib
import faulthandler
import io
import os
import random
import re
import resource
import signal
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

ROOM = 1 << 30  # of addresses, beyond those that a process has when it begins
SECONDS = 20  # after which a command hangs
NORMALIZE = ("--norm", "rms", "--column", "e", "--quiet")
COMMANDS = (
    ["normalize", "x.parquet", "y.parquet", *NORMALIZE], ["normalize", "x.parquet", "y.npy", *NORMALIZE],
    ["show", "x.parquet"],
)  # fmt: skip
FOOTER = 8  # length and magic, at the end of a file


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=int, default=500, help="how many in all (default 500)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", type=Path, help="where to put a file that did harm")
    parsed = parser.parse_args()
    os.environ["ANYNORM_KERNEL"] = "definition"  # whatever runs, the files are the same
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        originals = list(write_files())
        warm_up()
        print(fuzz(originals, parsed.files, random.Random(parsed.seed), parsed.keep), flush=True)


def fuzz(originals, files, chance, keep=None):
    """Change files so many times; return in words what became of them."""
    accepted, slowest = 0, 0.0
    for number in range(files):
        changed = change(originals[number % len(originals)], chance)
        Path("x.parquet").write_bytes(changed)
        start = time.perf_counter()
        arguments = COMMANDS[(number + number // len(originals)) % len(COMMANDS)]  # another one the next time
        status = in_child(arguments)
        slowest = max(slowest, time.perf_counter() - start)
        try:
            check(changed, status, arguments)
        except AssertionError:
            if keep is not None:
                keep.write_bytes(changed)
            raise
        accepted += status == 0
        for target in ("y.parquet", "y.npy"):
            Path(target).unlink(missing_ok=True)
    return f"{files} files, {accepted} of them still good, none did harm; the slowest took {slowest:.2f} s"


def write_files():
    """Good files, as bytes: of each kind of column, page and compression some."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    x = np.random.default_rng(0).standard_normal((64, 8)).astype(np.float32)
    rows, null = list(x), [None if i % 7 == 3 else row for i, row in enumerate(x)]
    words = [f"word {i % 3}" for i in range(64)]
    tensor = pa.fixed_shape_tensor(pa.float32(), [8])
    others = {
        "words": pa.array(words).dictionary_encode(),
        "text": pa.array([None if i % 5 == 0 else word * i for i, word in enumerate(words)]),
        "struct": pa.array([{"a": i, "b": [str(i)] * (i % 4)} for i in range(64)]),
        "when": pa.array(range(64), pa.timestamp("us", "UTC")),
        "bytes": pa.array([bytes(range(i)) for i in range(64)], pa.large_binary()),
        "flag": pa.array([i % 3 == 0 for i in range(64)]),
        "decimal": pa.array(range(64), pa.decimal128(12, 2)),
    }
    columns = (
        pa.array(rows, pa.list_(pa.float32())), pa.array(null, pa.large_list(pa.float32())),
        pa.array(null, pa.list_(pa.float32(), 8)), pa.array(null, pa.list_view(pa.float32())),
        pa.ExtensionArray.from_storage(tensor, pa.array(rows, pa.list_(pa.float32(), 8))),
    )  # fmt: skip
    plain = dict.fromkeys(("text", "when", "decimal"), "PLAIN")
    ways = (
        {}, {"compression": "NONE", "data_page_version": "2.0"}, {"compression": "zstd", "write_page_checksum": True},
        {"compression": "NONE", "use_dictionary": False, "column_encoding": plain}, {"compression": "gzip"},
        {"compression": "NONE", "use_dictionary": False, "use_byte_stream_split": ["e.list.element"]},
    )  # fmt: skip
    for column in columns:
        for way in ways:
            file = io.BytesIO()
            pq.write_table(pa.table({"e": column, **others}), file, row_group_size=40, **way)
            yield file.getvalue()


def change(original, chance):
    """Change one to four things in a file, the footer as often as all before it."""
    data = bytearray(original)
    for _ in range(chance.choice((1, 1, 1, 2, 3, 4))):
        footer = len(data) - FOOTER - int.from_bytes(data[-FOOTER:-4], "little")
        first, last = (0, footer) if chance.random() < 0.5 or not 0 < footer < len(data) else (footer, len(data))
        at, kind = chance.randrange(first, max(last, first + 1)), chance.randrange(6)
        to = min(len(data), at + chance.randrange(1, 12))
        if kind < 2:
            data[at : at + 1] = bytes([chance.randrange(256)])
        elif kind == 2:
            data[at : at + 1] = bytes([data[min(at, len(data) - 1)] ^ 1 << chance.randrange(8)])
        elif kind == 3:
            data[at:to] = chance.choice((b"\0", b"\xff")) * (to - at)
        elif kind == 4:
            data[at:to] = chance.randbytes(to - at)
        else:  # a piece is lost, or there twice
            data[at:to] = data[at:to] * chance.choice((0, 2))
    return bytes(data)


def warm_up():
    """Import in this process what its children need."""
    Path("x.parquet").write_bytes(next(write_files()))
    for arguments in COMMANDS:
        assert command(arguments) == (0, "")
    Path("y.parquet").unlink()
    Path("y.npy").unlink()


def command(arguments):
    """Status and what stands on standard error."""
    from anynorm import cli

    with contextlib.redirect_stderr(io.StringIO()) as error, contextlib.redirect_stdout(io.StringIO()):
        status = cli.main(arguments)
    return status, error.getvalue()


def in_child(arguments):
    """Run the command; its status, that of a process that a signal has ended, or 99 for more than one line."""
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    faulthandler.enable()
    signal.alarm(SECONDS)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    limit = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize() + ROOM
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    try:
        status, error = command(arguments)
        said = error == "" or (re.fullmatch("anynorm: [^\n]*\n", error) and len(error) < 2000)
        if not said:
            print(error, file=sys.stderr)
        os._exit(status if said else 99)
    except BaseException as error:
        print(repr(error), file=sys.stderr)
        os._exit(98)


def check(changed, status, arguments):
    import pyarrow.parquet as pq

    assert status in (0, 1), f"the command ended with {status}"
    assert Path("x.parquet").read_bytes() == changed, "the source has changed"
    written = {one for one in arguments if one.startswith("y.") and status == 0}
    assert set(os.listdir()) == {"x.parquet", *written}, os.listdir()
    if "y.parquet" in written:
        pq.read_table("y.parquet").validate(full=True)
    elif "y.npy" in written:
        np.load("y.npy")


if __name__ == "__main__":
    main()
