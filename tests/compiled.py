"""What is compiled once in a session of tests, whichever of its processes needs it first."""

import functools
import hashlib
import os
from pathlib import Path

from filelock import FileLock

FOLDER = "ANYNORM_TESTS_FOLDER"  # the environment variable that names the folder which conftest.py has made


def locked(name: str) -> FileLock:
    """A lock by that name, for the processes of this session."""
    return FileLock(Path(os.environ[FOLDER]) / f"{name}.lock")


def one_at_a_time() -> None:
    """Have no two workers compile the same kernel: the second finds it on disk."""
    from anynorm._kernels.cpu.compiler import jit

    def held(compile_entry):
        @functools.wraps(compile_entry)
        def entry(kernel, *signature):
            name = hashlib.sha256(f"{kernel.__module__}.{kernel.__name__}{signature}".encode()).hexdigest()[:16]
            with locked(f"kernel-{name}"):
                return compile_entry(kernel, *signature)

        return entry

    jit.entry, jit.entry_again = held(jit.entry), held(jit.entry_again)
