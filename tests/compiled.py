"""What is compiled once in a session of tests, whichever of its processes needs it first."""

import os
from pathlib import Path

from filelock import FileLock

FOLDER = "ANYNORM_TESTS_FOLDER"  # the environment variable that names the folder which conftest.py has made


def locked(name: str) -> FileLock:
    """A lock by that name, for the processes of this session."""
    return FileLock(Path(os.environ[FOLDER]) / f"{name}.lock")


def one_at_a_time() -> None:
    """Have no two workers compile the same kernel: the second finds it on disk."""
    from anynorm._kernels.cpu.compiler import entries

    compiled = entries._compiled

    def compiled_in_turn(name, variant):
        with locked(f"kernel-{name}-{'-'.join(str(int(one)) for one in variant)}"):
            return compiled(name, variant)

    entries._compiled = compiled_in_turn
