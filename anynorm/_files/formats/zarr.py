"""Arrays in .zarr folders: a group with some of its arrays normalized, everything else as it was."""

from __future__ import annotations

import math
import os
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from anynorm._files.boxes import Box, cut_chunk_runs, cut_chunks
from anynorm._files.contents import chosen, package, readable
from anynorm._files.job import ArrayJob, Job, dtype_named, fit
from anynorm._files.passes import normalize_array
from anynorm._files.rows import RowCounts
from anynorm._files.sources import Advance, Entry, Source

Array = Any

# Of whole chunks; a chunk that is larger is taken at once.
_BLOCK_NBYTES = 32 << 20
# In a box: Zarr takes kilobytes for each that is being read.
_MOST_CHUNKS = 1024
_METADATA = ("zarr.json", ".zarray", ".zattrs", ".zgroup", ".zmetadata")


class _ZarrSource:
    """An array in a folder, to be read in boxes of whole chunks; ``plain``: in runs of C order."""

    def __init__(self, array: Array, task: ArrayJob, plain: bool) -> None:
        chunks = array.shards or array.chunks  # what is written at once
        itemsize = int(task.dtype.itemsize)
        nbytes = min(_BLOCK_NBYTES, _MOST_CHUNKS * math.prod(chunks) * itemsize)
        if plain:
            self.ranges = cut_chunk_runs(task.shape, chunks, itemsize, nbytes)
        else:
            self.ranges = cut_chunks(task.shape, chunks, task.axes, itemsize, nbytes)
        self.buffers = 4
        self.buffer_nbytes = 0
        self.once = False
        self.nulls: dict[int, Array] = {}
        self._array = array
        self._name = task.name

    def read(self, box: Box, buffer: Array) -> Array:
        """The elements of a box."""
        with readable(self._name):
            return self._array[box]


class ZarrSink:
    """An array in a folder."""

    def __init__(self, array: Array) -> None:
        self._array = array

    def write(self, box: Box, y: Array) -> None:
        """Write a box."""
        self._array[box] = y


class ZarrReader:
    """The arrays of a folder."""

    def __init__(self, path: Path) -> None:
        zarr = package("zarr", path)
        if not path.is_dir():
            path.stat()  # whose message is better where there is nothing
            raise ValueError(f"{path} is not a folder of Zarr")
        with readable(path):
            root = zarr.open(store=str(path), mode="r")
            if isinstance(root, zarr.Group):
                self.arrays = {name: one for name, one in root.members(max_depth=None) if isinstance(one, zarr.Array)}
            else:
                self.arrays = {"": root}
            named = self.arrays.items()
            self.entries = [Entry(name, one.shape, str(one.dtype), int(one.nbytes)) for name, one in named]
        self.path = path

    @property
    def unnamed(self) -> bool:
        """Whether the folder is an array itself."""
        return list(self.arrays) == [""]

    def left(self, sources: Mapping[str, tuple[ArrayJob, Source]]) -> list[str]:
        """The names of its other arrays."""
        return [name for name in self.arrays if name not in sources]

    def sources(self, job: Job, *, plain: bool) -> dict[str, tuple[ArrayJob, Source]]:
        """The arrays that a job is for."""
        found: dict[str, tuple[ArrayJob, Source]] = {}
        for name in chosen(job, list(self.arrays), self.path):
            array = self.arrays[name]
            dtype = dtype_named(job.dtype) if job.dtype else array.dtype
            task = fit(job, name or str(self.path), array.shape, array.dtype, dtype)
            found[name] = task, _ZarrSource(array, task, plain)
        return found


def normalize_zarr(
    reader: ZarrReader,
    sources: Mapping[str, tuple[ArrayJob, Source]],
    target: Path,
    counts: RowCounts,
    advance: Advance,
) -> None:
    """Fill an empty folder with a copy of another one, and its arrays with their normalized elements."""
    source = reader.path
    zarr = package("zarr", source)
    folders = {os.path.join(source, name) if name else str(source) for name in sources}

    def chunks_in(folder: str, names: list[str]) -> list[str]:
        return [name for name in names if folder in folders and name not in _METADATA]

    try:
        shutil.copytree(source, target, ignore=chunks_in, dirs_exist_ok=True)
    except shutil.Error as error:  # with a list of what went wrong
        path, _, reason = error.args[0][0]
        number = re.match(r"\[Errno (\d+)\]", reason)  # names both paths in full, too
        raise OSError(f"{path} cannot be copied: {os.strerror(int(number[1])) if number else reason}") from None
    for name, (task, raw) in sources.items():
        with readable(target):
            if task.dtype_out != task.dtype:
                _retype(zarr, target / name, task.dtype_out)
            array = zarr.open_array(store=str(target / name), mode="r+")
        normalize_array(task, raw, ZarrSink(array), counts, advance)
    with readable(target):
        root = zarr.open(store=str(target), mode="r+")
        retyped = any(task.dtype_out != task.dtype for task, _ in sources.values())
        if retyped and getattr(root.metadata, "consolidated_metadata", None) is not None:
            zarr.consolidate_metadata(str(target))


def _retype(zarr: Any, path: Path, dtype: Any) -> None:
    """Put an empty array of another dtype in the place of one that is otherwise the same."""
    old = zarr.open_array(store=str(path), mode="r")
    third = old.metadata.zarr_format == 3
    zarr.create_array(
        store=str(path), shape=old.shape, dtype=dtype, chunks=old.chunks, shards=old.shards, filters=old.filters,
        compressors=old.compressors, fill_value=None if old.fill_value is None else float(old.fill_value),
        order=old.order, zarr_format=old.metadata.zarr_format, attributes=dict(old.attrs), overwrite=True,
        chunk_key_encoding=old.metadata.chunk_key_encoding if third else {
            "name": "v2", "separator": old.metadata.dimension_separator
        },
        dimension_names=old.metadata.dimension_names if third else None,
    )  # fmt: skip
