"""The source of a run, opened once; whether it is still what was opened is asked before a result gets its name."""

from __future__ import annotations

import os
import stat
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, Literal

from anynorm._files.locks import lock
from anynorm._files.target import require_regular

Place = Path | Literal["-"]  # the latter: standard input, or output, in .npy format


class Original:
    """A file, a folder or standard input, as it was when it was opened."""

    def __init__(self, place: Place, file: IO[bytes] | None) -> None:
        self.place = place
        self._file = file  # None: a folder
        self._state = self._state_of_opened()

    @property
    def file(self) -> IO[bytes]:
        """The open file; a folder has none."""
        if self._file is None:
            raise IsADirectoryError(f"{self.place} is a directory; name a file")
        return self._file

    def require_unchanged(self) -> None:
        """Raise ValueError where the place holds another file by now, or this one was written to."""
        try:
            now = self._state_of_opened() if self.place == "-" else _state_of(self.place)
        except FileNotFoundError:
            now = None
        if now != self._state:
            what = "standard input" if self.place == "-" else self.place
            raise ValueError(f"{what} was changed or replaced while it was read; run the command again")

    def require_apart(self, output: IO[bytes]) -> None:
        """Raise ValueError where an open output is the source itself, which would be read as it grows."""
        try:
            here, there = os.fstat(self.file.fileno()), os.fstat(output.fileno())
        except OSError:  # a stream that is no file
            return
        if stat.S_ISREG(here.st_mode) and os.path.samestat(here, there):
            raise ValueError("standard output is the file that is read; name another one")

    def _state_of_opened(self) -> Any:
        if self._file is None:
            return _state_of(Path(self.place))
        try:
            found = os.fstat(self._file.fileno())
        except OSError:  # a stream that is no file
            return None
        return _state(found) if stat.S_ISREG(found.st_mode) else None


@contextmanager
def opened(place: Place, *, alone: bool = False) -> Iterator[Original]:
    """Open a source; ``alone``: ValueError where another run holds it so."""
    if place == "-":
        if sys.stdin is None:
            raise ValueError("standard input is closed")
        yield Original(place, sys.stdin.buffer)
        return
    require_regular(place)
    if place.is_dir():
        yield Original(place, None)
        return
    with open(place, "rb", buffering=0) as file:
        if alone and not lock(file):
            raise ValueError(f"{place} is being normalized in place by another process")
        yield Original(place, file)


def _state_of(path: Path) -> Any:
    """Whatever changes when another program writes to a file, or to a file in a folder, or replaces it."""
    if not path.is_dir():
        return _state(path.stat())
    return {one: _state(one.stat()) for one in path.rglob("*") if one.is_file()}


def _state(found: os.stat_result) -> tuple[int, ...]:
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns
