"""Files of any size, normalized a few blocks at a time: .npy, .safetensors, .zarr and .parquet."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import IO, Any, Literal

from anynorm._files.describe import Description, describe_array
from anynorm._files.in_place import normalize_in_place, rewrites
from anynorm._files.job import Job, Task
from anynorm._files.journal import UnfinishedError, is_done, note_done, path_of_journal, require_whole
from anynorm._files.nans import NanRows
from anynorm._files.npy import map_npy, open_npy, read_header
from anynorm._files.parquet import ParquetSource, normalize_parquet
from anynorm._files.passes import Advance, Source
from anynorm._files.raw import BLOCK_NBYTES, RawFile, RawSource, normalize_raw
from anynorm._files.safetensors import open_safetensors
from anynorm._files.target import replacing, replacing_folder, require_apart, require_regular, resolved
from anynorm._files.zarr import nbytes_in_zarr, normalize_zarr, sources_in_zarr

__all__ = [
    "Job", "Place", "UnfinishedError", "describe", "map_npy", "nbytes_of", "normalize", "normalize_where_it_is",
    "path_of_journal",
]  # fmt: skip

Place = Path | Literal["-"]  # the latter: standard input, or output, in .npy format

_RAW: dict[str, Callable[[Path], RawFile]] = {".npy": open_npy, ".safetensors": open_safetensors}
_SUFFIXES = (*_RAW, ".zarr", ".parquet")


def normalize(source: Place, target: Place, job: Job, *, overwrite: bool, advance: Advance) -> NanRows:
    """Write the normalized source to the target, which appears whole or not at all unless it is a stream.

    ``advance`` is told the number of bytes of the source dealt with, block by block.
    """
    suffix = _suffix_of(source)
    if _suffix_of(target) != suffix:
        raise ValueError(f"{source} and {target} are of different formats; give both one suffix, - is .npy")
    if source != "-":
        _require_readable(source)
        if target != "-":
            require_apart(source, target)
    nans = NanRows()
    if suffix == ".zarr":
        sources_in_zarr(Path(source), job)  # raises before a folder is made
        with replacing_folder(Path(target), overwrite) as folder:
            normalize_zarr(Path(source), folder, job, nans, advance)
        return nans
    with _writing(target, overwrite) as file:
        _normalize_file(source, suffix, file, job, nans, advance)
    return nans


def normalize_where_it_is(source: Path, job: Job, *, said: str, advance: Advance) -> NanRows | None:
    """Normalize a file in place, or complete what a killed run with the same job has begun; None: it was done before.

    Where the result has the dtype of the data and no compression, the data are overwritten with a journal beside them.
    Other files are replaced by another one, once that is whole. ``said``: the command, for messages.
    """
    suffix = _suffix_of(source)
    if suffix == ".zarr":
        raise ValueError("a .zarr folder cannot be normalized in place; give OUT, then put it in the place of IN")
    require_regular(source)
    source = resolved(source)
    if is_done(source, job.digest()):
        return None
    nans = NanRows()
    if suffix in _RAW:
        file = _RAW[suffix](source)
        if rewrites(file, job):
            normalize_in_place(file, job, said, nans, advance)
            return nans
    _require_readable(source)
    with replacing(source, True, lambda part: note_done(source, job.digest(), said, part)) as target:
        _normalize_file(source, suffix, target, job, nans, advance)
    return nans


def describe(source: Place, job: Job, advance: Advance) -> Iterator[Description]:
    """The statistics of each array of a file that a job is for."""
    suffix = _suffix_of(source)
    if source != "-":
        _require_readable(source)
    with _sources(source, suffix, job) as sources:
        for task, one in sources:
            yield describe_array(task, one, advance)


def nbytes_of(source: Place) -> int | None:
    """How much there is to read; None where nobody knows."""
    if source == "-":
        return None
    return nbytes_in_zarr(source) if source.is_dir() else source.stat().st_size


def _suffix_of(place: Place) -> str:
    suffix = ".npy" if place == "-" else place.suffix.lower()
    if suffix not in _SUFFIXES:
        raise ValueError(f"{place} has no suffix that tells its format; it must be one of {', '.join(_SUFFIXES)}")
    return suffix


def _require_readable(source: Path) -> None:
    require_regular(source)
    require_whole(resolved(source))


def _writing(target: Place, overwrite: bool) -> AbstractContextManager[IO[bytes]]:
    return nullcontext(sys.stdout.buffer) if target == "-" else replacing(target, overwrite)


def _normalize_file(source: Place, suffix: str, target: IO[bytes], job: Job, nans: NanRows, advance: Advance) -> None:
    if suffix == ".parquet":
        normalize_parquet(Path(source), target, job, nans, advance)
        return
    with _reading(source, suffix) as (found, file):
        normalize_raw(found, file, target, job, nans, advance, stream=source == "-")
    target.flush()


@contextmanager
def _reading(source: Place, suffix: str) -> Iterator[tuple[RawFile, IO[bytes]]]:
    """The header of a file, and the file."""
    if source != "-":
        with open(source, "rb", buffering=0) as file:
            yield _RAW[suffix](source), file
        return
    stream = sys.stdin.buffer
    yield read_header(stream, Path("standard input")), stream
    if stream.read(1):
        raise ValueError("standard input holds more than its header tells")


@contextmanager
def _sources(source: Place, suffix: str, job: Job) -> Iterator[list[tuple[Task, Source]]]:
    if suffix == ".zarr":
        yield list(sources_in_zarr(Path(source), job).values())
    elif suffix == ".parquet":
        column = ParquetSource(Path(source), job)
        yield [(column.task, column)]
    else:
        with _reading(source, suffix) as (found, file):
            tasks = found.tasks(job)
            arrays: list[Any] = [array for array in found.arrays if array.name in tasks]
            yield [
                (tasks[one.name], RawSource(file, one, tasks[one.name], BLOCK_NBYTES, stream=source == "-"))
                for one in arrays
            ]
