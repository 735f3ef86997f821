"""What a file holds, and which part of it is meant."""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from anynorm._files.job import Job


def package(name: str, path: Path) -> Any:
    """Import what a file is read with; ValueError where it is not installed."""
    try:
        return importlib.import_module(name)
    except ImportError:
        distribution = name.partition(".")[0]
        raise ValueError(f"{path} needs a package that is not installed: pip install {distribution}") from None


@contextmanager
def readable(what: Any) -> Iterator[None]:
    """Turn what a library raises about a file into a ValueError; its exceptions are of many kinds."""
    try:
        with warnings.catch_warnings(action="ignore"):  # of what other programs have put there
            yield
    except MemoryError:
        raise
    except Exception as error:
        if isinstance(error, OSError) and error.errno:  # of the system
            raise
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise ValueError(f"{what} cannot be read: {reason}") from error


def chosen(job: Job, names: list[str], path: Path, option: str = "--tensor") -> list[str]:
    """The arrays of a file that a job is for: those that it names, or the only one there is."""
    if job.columns and option != "--column":
        raise ValueError(f"--columns is for columns of .parquet; {path} has none")
    require_there(job.names, names, path)
    if not job.names and len(names) != 1:
        do = f"; say with {option} which to normalize" if names else ""
        raise ValueError(f"{path} holds {listed(names)}{do}")
    return list(job.names) or names


def require_there(wanted: Iterable[str], names: list[str], path: Path | str) -> None:
    """Raise ValueError where a file does not hold all that is wanted."""
    missing = [name for name in wanted if name not in names]
    if missing:
        import difflib  # for a message alone

        near = difflib.get_close_matches(missing[0], names, 1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise ValueError(f"{path} holds no {missing[0]}; it holds {listed(names)}{hint}")


def listed(names: list[str], most: int = 10) -> str:
    """Names in a message."""
    if names in ([], [""]):
        return "nothing that can be normalized" if not names else "one array, which has no name"
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
