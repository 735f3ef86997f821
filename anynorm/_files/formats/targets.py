"""Targets of another format than the source: they hold the normalized arrays, and nothing else."""

from __future__ import annotations

import contextlib
import importlib
import io
import math
import os
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any

import numpy
from numpy.lib import format as npy

from anynorm._files.boxes import Box, run_lengths
from anynorm._files.contents import listed, package, readable
from anynorm._files.formats.raw import RawSink, nbytes_out
from anynorm._files.formats.safetensors import header_of
from anynorm._files.formats.zarr import ZarrSink
from anynorm._files.job import ArrayJob
from anynorm._files.sources import Sink
from anynorm._files.target import reserve

Array = Any

_CHUNK_NBYTES = 2 << 20  # that is what boxes of most sources are, each of which then is a chunk
_GROUP_NBYTES = 32 << 20  # so much is in memory until it is written

_MOST_IN_A_LIST = 2**31 - 1  # of Arrow's lists of one length; it counts them in 32 bits

_OF_ONE_ARRAY = (".npy", ".parquet")
_WRITTEN_BY = {".parquet": "pyarrow.parquet", ".zarr": "zarr"}


def require_target_holds(suffix: str, target: Path, tasks: Mapping[str, ArrayJob]) -> None:
    """Raise ValueError for arrays that a format has no place for, and where the package that writes it is not here."""
    if suffix in _WRITTEN_BY:
        package(_WRITTEN_BY[suffix], target)
    if suffix in _OF_ONE_ARRAY and len(tasks) > 1:
        raise ValueError(f"a new {suffix} file holds one array; name one of {listed(list(tasks))}, or an OUT of .zarr")
    if sum(map(nbytes_out, tasks.values())) > sys.maxsize:
        raise ValueError(f"the result would take {sum(map(nbytes_out, tasks.values()))} bytes, which no file can hold")
    for name, task in tasks.items():
        require_held(suffix, task.dtype_out)
        if suffix == ".parquet" and 0 in task.shape[1:] and task.shape[0]:
            raise ValueError(f"{task.name} has rows of no elements, which no column of .parquet is made of")
        if suffix == ".parquet" and math.prod(task.shape[1:]) > _MOST_IN_A_LIST:
            raise ValueError(f"{task.name} has rows of {math.prod(task.shape[1:])} elements, too many for .parquet")
        if suffix == ".safetensors" and name == "__metadata__":
            raise ValueError(f"no tensor of .safetensors can be called {name}")
        if suffix == ".zarr" and name and not all(map(_can_be_a_folder, name.split("/"))):
            raise ValueError(f"no array of .zarr can be called {name}")
        inside = [other for other in tasks if other.startswith(f"{name}/")] if suffix == ".zarr" else []
        if inside:
            raise ValueError(f"an array of .zarr cannot hold another, as {name} would hold {inside[0]}; name only one")


def _can_be_a_folder(part: str) -> bool:
    return part not in ("", ".", "..", "zarr.json") and "\\" not in part and len(os.fsencode(part)) <= 255


def require_held(suffix: str, dtype: Any) -> None:
    """Raise ValueError for bfloat16 where a format has none."""
    names = {".npy": ".npy files have", ".zarr": "Zarr has", ".parquet": "Parquet has"}
    if dtype.kind == "V" and suffix in names:
        raise ValueError(f"{names[suffix]} no {dtype}; choose another --dtype")


@contextlib.contextmanager
def file_sinks(
    suffix: str, target: IO[bytes], tasks: Mapping[str, ArrayJob], ours: bool
) -> Iterator[Mapping[str, Sink]]:
    """Begin a file; give the sinks of its arrays, which are to be filled one after the other; complete the file."""
    if suffix == ".parquet":
        ((name, task),) = tasks.items()
        sink = _ParquetSink(name, task, target)
        try:
            yield {name: sink}
        except BaseException:
            with contextlib.suppress(Exception):  # which would hide the first
                sink.close()
            raise
        sink.finish()
        return
    target.write(_npy_header(*tasks.values()) if suffix == ".npy" else header_of(tasks))
    if ours:
        reserve(target, sum(map(nbytes_out, tasks.values())))
    yield dict.fromkeys(tasks, RawSink(target))


def zarr_sinks(folder: Path, tasks: Mapping[str, ArrayJob]) -> dict[str, Sink]:
    """Make the arrays in an empty folder; one without a name is the folder itself."""
    zarr = importlib.import_module("zarr")
    sinks: dict[str, Sink] = {}
    with readable(folder):
        if "" not in tasks:
            zarr.create_group(store=str(folder))
        for name, task in tasks.items():
            chunks = tuple(max(1, one) for one in run_lengths(task.shape, task.dtype_out.itemsize, _CHUNK_NBYTES))
            sinks[name] = ZarrSink(zarr.create_array(
                store=str(folder), name=name or None, shape=task.shape, chunks=chunks, dtype=task.dtype_out,
            ))  # fmt: skip
    return sinks


def _npy_header(task: ArrayJob) -> bytes:
    written = io.BytesIO()
    described = {"descr": npy.dtype_to_descr(task.dtype_out), "fortran_order": False, "shape": task.shape}
    npy.write_array_header_1_0(written, described)
    return written.getvalue()


class _ParquetSink:
    """A column: of lists of one length, of tensors, or of numbers."""

    def __init__(self, name: str, task: ArrayJob, target: IO[bytes]) -> None:
        arrow, parquet = importlib.import_module("pyarrow"), importlib.import_module("pyarrow.parquet")
        value, row = arrow.from_numpy_dtype(task.dtype_out), task.shape[1:]
        self._arrow = arrow
        if not row:
            self._kind = value
        elif len(row) == 1:
            self._kind = arrow.list_(value, row[0]) if row[0] else arrow.list_(value)
        else:
            self._kind = arrow.fixed_shape_tensor(value, row)
        self._elements = max(1, math.prod(row))
        self._group_elements = max(1, _GROUP_NBYTES // (self._elements * task.dtype_out.itemsize)) * self._elements
        self._pending: list[Array] = []
        self._schema = arrow.schema([arrow.field(name, self._kind)])
        # Dictionaries of numbers that are all different are of no use.
        self._writer = parquet.ParquetWriter(target, self._schema, use_dictionary=False)

    def write(self, box: Box, y: Array) -> None:
        """Keep a box, which begins where the last one ended, until there is a row group."""
        self._pending.append(y.reshape(-1).copy())  # its memory is that of the next box but one
        while sum(len(one) for one in self._pending) >= self._group_elements:
            self._write_group(self._group_elements)

    def finish(self) -> None:
        """Write what is left."""
        if self._pending:
            self._write_group(sum(len(one) for one in self._pending))
        self.close()

    def close(self) -> None:
        """Write the end of the file."""
        self._writer.close()

    def _write_group(self, elements: int) -> None:
        flat = numpy.concatenate(self._pending)
        self._pending = [flat[elements:].copy()] if len(flat) > elements else []
        rows = self._arrow.array(flat[:elements])
        if self._kind != rows.type:
            lists = getattr(self._kind, "storage_type", self._kind)
            rows = self._arrow.FixedSizeListArray.from_arrays(rows, type=lists)
            if lists is not self._kind:
                rows = self._arrow.ExtensionArray.from_storage(self._kind, rows)
        table = self._arrow.Table.from_arrays([rows], schema=self._schema)
        self._writer.write_table(table, row_group_size=max(1, table.num_rows))
