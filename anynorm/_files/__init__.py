"""Files of any size, normalized a few blocks at a time: .npy, .safetensors, .zarr and .parquet."""

from __future__ import annotations

import io
import math
import sys
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO

from anynorm._files.contents import require_there
from anynorm._files.formats.npy import load_npy, open_npy, read_header
from anynorm._files.formats.parquet import ParquetReader, normalize_parquet
from anynorm._files.formats.raw import RawReader, normalize_raw
from anynorm._files.formats.safetensors import open_safetensors
from anynorm._files.formats.targets import file_sinks, require_held, require_target_holds, zarr_sinks
from anynorm._files.formats.zarr import ZarrReader, normalize_zarr
from anynorm._files.job import ArrayJob, Job
from anynorm._files.original import Original, Place, opened
from anynorm._files.outcome import Outcome, Written, written
from anynorm._files.passes import normalize_array
from anynorm._files.rows import RowCounts
from anynorm._files.shown import Shown, show_array
from anynorm._files.sources import Advance, Entry, Reader, Sink, Source, UnfitArrayError
from anynorm._files.target import (
    replacing,
    replacing_folder,
    require_absent,
    require_apart,
    require_replaceable,
    resolved,
)  # fmt: skip

__all__ = [
    "SUFFIXES",
    "Job",
    "Outcome",
    "Place",
    "Shown",
    "Written",
    "load_npy",
    "nbytes_of",
    "normalize",
    "normalize_in_place",
    "planned",
    "show",
    "suffix_of",
]

SUFFIXES = (".npy", ".safetensors", ".zarr", ".parquet")

_UNNAMED = "array"  # what an array without a name is called where it must have one


@dataclass(frozen=True)
class _Run:
    """What is read, and what of it becomes what."""

    original: Original
    reader: Reader
    suffix: str  # of the target
    same: bool  # as that of the source
    sources: dict[str, tuple[ArrayJob, Source]]  # by name in the target
    left: tuple[str, ...]
    unnamed: str  # how an array without a name is called in what is told

    @property
    def tasks(self) -> dict[str, ArrayJob]:
        return {name: task for name, (task, _) in self.sources.items()}

    def outcome(self, counts: RowCounts) -> Outcome:
        return Outcome(
            tuple(written(name or self.unnamed, task) for name, task in self.tasks.items()), self.left, counts
        )


def normalize(source: Place, target: Place, job: Job, *, overwrite: bool, advance: Advance) -> Outcome:
    """Write the normalized source to the target, which appears whole or not at all unless it is a stream.

    ``advance`` is told the number of bytes of the source dealt with, block by block. Where the formats differ the
    target holds the normalized arrays alone; one without a name is called ``array`` there, or what ``job.names`` says.
    """
    counts = RowCounts()
    with opened(source) as original:
        run = _run(original, target, job)
        if target == "-":
            output = _standard_output()
            original.require_apart(output)
            _write_file(run, output, counts, advance, ours=False)
            original.require_unchanged()
        elif run.suffix == ".zarr":
            with replacing_folder(target, overwrite, original.require_unchanged) as folder:
                _write_folder(run, folder, counts, advance)
        else:
            with replacing(target, overwrite, original.require_unchanged) as file:
                _write_file(run, file, counts, advance, ours=True)
    return run.outcome(counts)


def normalize_in_place(source: Path, job: Job, *, advance: Advance) -> Outcome:
    """Put a normalized file in the place of another one, once it is whole."""
    _require_no_folder(source)
    source = resolved(source)
    counts = RowCounts()
    with opened(source, alone=True) as original:

        def require_same() -> None:
            original.require_unchanged()
            require_replaceable(source)

        require_same()  # another run may have replaced it between opening and locking
        run = _run(original, None, job)
        with replacing(source, True, require_same) as target:
            _write_file(run, target, counts, advance, ours=True)
    return run.outcome(counts)


def planned(source: Place, target: Place | None, job: Job, *, overwrite: bool, new_folder: bool = False) -> Outcome:
    """Return what `normalize` would write, with nothing counted; raise what it would raise before it reads elements.

    Without a target, what `normalize_in_place` would write; ``new_folder``: that of the target is yet to be made.
    """
    if target is None and source != "-":
        _require_no_folder(source)
        require_replaceable(source)
    with opened(source) as original:
        run = _run(original, target, job)
    if target is not None and target != "-" and not new_folder:
        require_absent(resolved(target), overwrite, folder=run.suffix == ".zarr")
    return run.outcome(RowCounts())


def show(
    source: Place, names: tuple[str, ...], axis: tuple[int, ...], advance: Advance, *, columns: tuple[str, ...] = ()
) -> Iterator[Shown]:
    """Give what each array of a file is like, or those of these names, one after the other as they are read.

    ``columns``: of a .parquet file, patterns of columns of numbers, which make up rows together.
    """
    suffix = suffix_of(source)
    with opened(source) as original:
        reader = _reader(original, suffix)
        if columns:
            ((task, rows),) = reader.sources(replace(_show_job(axis), columns=columns), plain=False).values()
            nbytes = math.prod(task.shape) * int(task.dtype.itemsize)
            shown = show_array(Entry(task.name, task.shape, str(task.dtype), nbytes), task, rows, advance)
            original.require_unchanged()
            yield shown
            return
        entries = reader.entries
        require_there(names, [one.name for one in entries], source)
        wanted = [one for one in entries if not names or one.name in names]
        for entry in wanted:
            shown = _shown(reader, entry, axis, advance)
            if shown.why is None:
                _require_end(original)
            if suffix != ".zarr" or entry is wanted[-1]:  # in a folder that takes a look at each chunk of all arrays
                original.require_unchanged()
            yield shown


def nbytes_of(source: Place, names: tuple[str, ...]) -> int | None:
    """How many bytes of elements `normalize` and `show` deal with; None where that is not known before."""
    if source == "-":
        return None
    with suppress(OSError, TypeError, ValueError), opened(source) as original:  # reading it will report the error
        entries = _reader(original, suffix_of(source)).entries
        sizes = [one.nbytes for one in entries if (one.name in names if names else not one.why)]
        return sum(size for size in sizes if size is not None) if sizes and None not in sizes else None
    return None


def suffix_of(place: Place) -> str:
    """The suffix that tells the format; ValueError where it tells none."""
    suffix = ".npy" if place == "-" else place.suffix.lower()
    if suffix not in SUFFIXES:
        has = f"has the suffix {suffix}" if suffix else "has no suffix that tells its format"
        also = "; put an array of it into an .npy file, as numpy.save writes" if suffix == ".npz" else ""
        raise ValueError(f"{place} {has}; it must be one of {', '.join(SUFFIXES)}{also}")
    return suffix


def _require_no_folder(source: Path) -> None:
    if suffix_of(source) == ".zarr":
        raise ValueError("a .zarr folder cannot be normalized in place; give OUT, then put it in the place of IN")


def _run(original: Original, target: Place | None, job: Job) -> _Run:
    """Read the header of a source and fit a job to it, before anything is made."""
    source = original.place
    suffix, suffix_out = suffix_of(source), suffix_of(source if target is None else target)
    if target is not None and source != "-" and target != "-":
        require_apart(source, target)
    reader = _reader(original, suffix)
    if suffix == suffix_out:
        sources = dict(reader.sources(job, plain=False))
        for task, _ in sources.values():
            require_held(suffix_out, task.dtype_out)
        return _Run(original, reader, suffix_out, True, sources, (), ", ".join(job.columns))
    name = "" if suffix_out in (".npy", ".zarr") else _UNNAMED
    if reader.unnamed and len(job.names) == 1 and suffix_out != ".npy":
        name, job = job.names[0], replace(job, names=())
    found = reader.sources(job, plain=True)
    left = tuple(reader.left(found))
    # Those of the widest elements first, so that each begins where its elements are aligned.
    ordered = sorted(found.items(), key=lambda item: -int(item[1][0].dtype_out.itemsize))
    sources = {key or name: one for key, one in ordered}
    tasks = {key: task for key, (task, _) in sources.items()}
    require_target_holds(suffix_out, Path(original.place if target is None else target), tasks)
    if suffix_out == ".npy":
        (only,) = sources.values()
        sources = {"": only}
    return _Run(original, reader, suffix_out, False, sources, left, "")


def _reader(original: Original, suffix: str) -> Reader:
    path = Path(original.place)
    if original.place == "-":
        return RawReader(read_header(original.file, Path("standard input")), original.file, stream=True)
    if suffix == ".zarr":
        return ZarrReader(path)
    if suffix == ".parquet":
        return ParquetReader(path)
    return RawReader((open_npy if suffix == ".npy" else open_safetensors)(original.file, path), original.file)


def _write_file(run: _Run, target: IO[bytes], counts: RowCounts, advance: Advance, *, ours: bool) -> None:
    """Write the normalized source; ``ours``: the target is a new file, in which space may be reserved."""
    if isinstance(run.reader, ParquetReader) and run.same:
        normalize_parquet(run.reader, run.sources, target, counts, advance)
    elif isinstance(run.reader, RawReader) and run.same:
        normalize_raw(run.reader, run.sources, target, counts, advance, ours=ours)
    else:
        with file_sinks(run.suffix, target, run.tasks, ours) as sinks:
            _fill(run, sinks, counts, advance)
    _require_end(run.original)
    target.flush()


def _write_folder(run: _Run, folder: Path, counts: RowCounts, advance: Advance) -> None:
    if isinstance(run.reader, ZarrReader) and run.same:
        normalize_zarr(run.reader, run.sources, folder, counts, advance)
    else:
        _fill(run, zarr_sinks(folder, run.tasks), counts, advance)
        _require_end(run.original)


def _fill(run: _Run, sinks: Mapping[str, Sink], counts: RowCounts, advance: Advance) -> None:
    for name, (task, source) in run.sources.items():
        normalize_array(task, source, sinks[name], counts, advance)


def _shown(reader: Reader, entry: Entry, axis: tuple[int, ...], advance: Advance) -> Shown:
    why = entry.why
    try:
        job = replace(_show_job(axis), names=() if reader.unnamed else (entry.name,))
        found = () if why else reader.sources(job, plain=False).values()
    except (TypeError, ValueError) as error:  # the job does not fit
        found, why = (), str(error)
    try:
        for task, source in found:
            return show_array(entry, task, source, advance)
    except UnfitArrayError as error:
        why = str(error)
    return Shown(entry.name, entry.shape, entry.dtype, entry.nbytes, why)


def _show_job(axis: tuple[int, ...]) -> Job:
    return Job("layer_norm", None, None, axis, 0.0)


def _standard_output() -> IO[bytes]:
    if sys.stdout is None:
        raise ValueError("standard output is closed")
    output = sys.stdout.buffer
    if isinstance(output, io.RawIOBase):  # under PYTHONUNBUFFERED, and a raw file may write less than it is given
        return open(output.fileno(), "wb", closefd=False)
    return output


def _require_end(original: Original) -> None:
    if original.place == "-" and original.file.read(1):
        raise ValueError("standard input holds more than its header says")
