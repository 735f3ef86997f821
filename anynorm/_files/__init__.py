"""Files of any size, normalized a few blocks at a time: .npy, .safetensors, .zarr and .parquet."""

from __future__ import annotations

import io
import sys
from collections.abc import Callable
from pathlib import Path
from typing import IO

from anynorm._files.describe import Description, describe_array
from anynorm._files.job import Job, Task
from anynorm._files.npy import load_npy, open_npy, read_header
from anynorm._files.original import Original, Place, opened
from anynorm._files.outcome import Outcome, Written
from anynorm._files.parquet import ParquetSource, normalize_parquet
from anynorm._files.passes import Advance, Source
from anynorm._files.raw import RawFile, RawSource, normalize_raw
from anynorm._files.rows import RowCounts
from anynorm._files.safetensors import open_safetensors
from anynorm._files.show import Shown
from anynorm._files.target import replacing, replacing_folder, require_apart, require_replaceable, resolved
from anynorm._files.zarr import nbytes_in_zarr, normalize_zarr, sources_in_zarr

__all__ = [
    "SUFFIXES",
    "Job",
    "Outcome",
    "Place",
    "Shown",
    "Written",
    "describe",
    "load_npy",
    "nbytes_of",
    "normalize",
    "normalize_in_place",
    "planned",
    "show",
]

_RAW: dict[str, Callable[[IO[bytes], Path], RawFile]] = {".npy": open_npy, ".safetensors": open_safetensors}
SUFFIXES = (*_RAW, ".zarr", ".parquet")


def normalize(source: Place, target: Place, job: Job, *, overwrite: bool, advance: Advance) -> Outcome:
    """Write the normalized source to the target, which appears whole or not at all unless it is a stream.

    ``advance`` is told the number of bytes of the source dealt with, block by block. Where the formats differ the
    target holds the normalized arrays alone; one without a name is called ``array`` there, or what ``job.names`` says.
    """
    suffix = _suffix_of(source)
    if _suffix_of(target) != suffix:
        raise ValueError(f"{source} and {target} are of different formats; give both one suffix, - is .npy")
    counts = RowCounts()
    with opened(source) as original:
        if source != "-" and target != "-":
            require_apart(source, target)
        if suffix == ".zarr":
            sources_in_zarr(Path(source), job)  # raises before a folder is made
            with replacing_folder(Path(target), overwrite, original.require_unchanged) as folder:
                normalize_zarr(Path(source), folder, job, counts, advance)
        elif target == "-":
            output = _standard_output()
            original.require_apart(output)
            _normalize_file(original, suffix, output, job, counts, advance, ours=False)
            original.require_unchanged()
        else:
            with replacing(target, overwrite, original.require_unchanged) as file:
                _normalize_file(original, suffix, file, job, counts, advance, ours=True)
    return Outcome((), (), counts)


def normalize_in_place(source: Path, job: Job, *, advance: Advance) -> Outcome:
    """Put a normalized file in the place of another one, once it is whole."""
    suffix = _suffix_of(source)
    if suffix == ".zarr":
        raise ValueError("a .zarr folder cannot be normalized in place; give OUT, then put it in the place of IN")
    source = resolved(source)
    counts = RowCounts()
    with opened(source, alone=True) as original:

        def require_same() -> None:
            original.require_unchanged()
            require_replaceable(source)

        require_same()  # another run may have replaced it between opening and locking
        with replacing(source, True, require_same) as target:
            _normalize_file(original, suffix, target, job, counts, advance, ours=True)
    return Outcome((), (), counts)


def planned(source: Place, target: Place | None, job: Job, *, overwrite: bool) -> Outcome:
    """Return what `normalize` would write, with nothing counted; raise what it would raise before it reads elements.

    Without a target, what `normalize_in_place` would write.
    """
    raise NotImplementedError


def show(
    source: Place, names: tuple[str, ...], axis: tuple[int, ...], advance: Advance, *, columns: tuple[str, ...] = ()
) -> list[Shown]:
    """Return what each array of a file is like, or those of these names, in one pass.

    ``columns``: of a .parquet file, patterns of columns of numbers, which make up rows together.
    """
    raise NotImplementedError


def describe(source: Place, job: Job, advance: Advance) -> list[Description]:
    """The statistics of each array of a file that a job is for."""
    suffix = _suffix_of(source)
    with opened(source) as original:
        found = [describe_array(task, one, advance) for task, one in _sources(original, suffix, job)]
        _require_end(original)
        original.require_unchanged()
    return found


def nbytes_of(source: Place) -> int | None:
    """How much there is to read; None where nobody knows."""
    if source == "-":
        return None
    return nbytes_in_zarr(source) if source.is_dir() else source.stat().st_size


def _suffix_of(place: Place) -> str:
    suffix = ".npy" if place == "-" else place.suffix.lower()
    if suffix not in SUFFIXES:
        raise ValueError(f"{place} has no suffix that tells its format; it must be one of {', '.join(SUFFIXES)}")
    return suffix


def _standard_output() -> IO[bytes]:
    if sys.stdout is None:
        raise ValueError("standard output is closed")
    output = sys.stdout.buffer
    if isinstance(output, io.RawIOBase):  # under PYTHONUNBUFFERED, and a raw file may write less than it is given
        return open(output.fileno(), "wb", closefd=False)
    return output


def _normalize_file(
    original: Original, suffix: str, target: IO[bytes], job: Job, counts: RowCounts, advance: Advance, *, ours: bool
) -> None:
    """Write the normalized source; ``ours``: the target is a new file, in which space may be reserved."""
    if suffix == ".parquet":
        normalize_parquet(Path(original.place), target, job, counts, advance)
        return
    stream = original.place == "-"
    normalize_raw(_header(original, suffix), original.file, target, job, counts, advance, stream=stream, ours=ours)
    _require_end(original)
    target.flush()


def _header(original: Original, suffix: str) -> RawFile:
    if original.place == "-":
        return read_header(original.file, Path("standard input"))
    return _RAW[suffix](original.file, original.place)


def _require_end(original: Original) -> None:
    if original.place == "-" and original.file.read(1):
        raise ValueError("standard input holds more than its header tells")


def _sources(original: Original, suffix: str, job: Job) -> list[tuple[Task, Source]]:
    if suffix == ".zarr":
        return list(sources_in_zarr(Path(original.place), job).values())
    if suffix == ".parquet":
        column = ParquetSource(Path(original.place), job)
        return [(column.task, column)]
    found, stream = _header(original, suffix), original.place == "-"
    tasks = found.tasks(job)
    return [
        (tasks[one.name], RawSource(original.file, one, tasks[one.name], stream))
        for one in found.arrays if one.name in tasks
    ]  # fmt: skip
