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
    from anynorm._kernels.cpu.compiler import machine_code

    load = machine_code.load

    def load_in_turn(name, write):
        with locked(f"kernel-{name}"):
            return load(name, write)

    machine_code.load = load_in_turn
