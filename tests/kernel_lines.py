"""Prints digests of what the CPU kernels return for dtypes, and with --lines which of their lines were not run.

ANYNORM_INTERPRET=1 has them interpreted.
"""

import json
import sys
from pathlib import Path
from types import CodeType

import anynorm
from tests.kernel_calls import digests

KERNELS = Path(anynorm.__file__).parent / "_kernels" / "cpu" / "kernels"
KERNEL_FILES = [str(path) for path in sorted(KERNELS.rglob("[!_]*.py")) if not path.name.endswith("task.py")]


def name_of(path):
    """The name of a file among those of the kernels."""
    return Path(path).relative_to(KERNELS).as_posix()


def lines_of(path):
    """The lines that hold something to run."""

    def lines(code):
        yield from (line for _, _, line in code.co_lines() if line)
        for constant in code.co_consts:
            if isinstance(constant, CodeType):
                yield from lines(constant)

    return set(lines(compile(Path(path).read_text(), path, "exec")))


def main():
    run = {path: set() for path in KERNEL_FILES}

    def trace(frame, event, _):
        lines = run.get(frame.f_code.co_filename)
        if lines is None:
            return None
        lines.add(frame.f_lineno)
        return trace

    dtypes = [name for name in sys.argv[1:] if name != "--lines"]
    if len(dtypes) == len(sys.argv[1:]):
        print(json.dumps({"digests": digests(dtypes)}))
        return
    sys.settrace(trace)
    found = digests(dtypes)
    sys.settrace(None)
    missed = {name_of(path): sorted(lines_of(path) - run[path]) for path in KERNEL_FILES}
    print(json.dumps({"digests": found, "missed": missed}))


if __name__ == "__main__":
    main()
