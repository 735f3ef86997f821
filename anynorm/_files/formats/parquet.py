"""Columns of a .parquet file, as embeddings are shipped; everything else stays as it was."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

import numpy

from anynorm._files.boxes import Box, Ranges, shape_of
from anynorm._files.contents import package, readable
from anynorm._files.formats.columns import (
    Lists,
    NumberColumns,
    advice,
    chosen_columns,
    columns_of,
    field_of,
    put,
    taken,
)
from anynorm._files.formats.lists import described, is_lists_of_floats
from anynorm._files.job import ArrayJob, Job, dtype_named, fit
from anynorm._files.passes import all_boxes, moments_of_rows, normalized, takes_statistics
from anynorm._files.pipeline import pipelined
from anynorm._files.rows import RowCounts
from anynorm._files.sources import Advance, Entry, Source, UnfitArrayError

Array = Any


class ParquetSource:
    """Columns that make up an array, read a row group at a time."""

    def __init__(self, reader: ParquetReader, rows: Lists | NumberColumns, job: Job, plain: bool) -> None:
        self.rows = rows
        self.nulls: dict[int, Array] = {}  # by the first row of a group, until that is written
        self.buffers = 3  # row groups are large
        self.buffer_nbytes = 0
        self.once = False
        self._reader = reader
        dtype_out = dtype_named(job.dtype) if job.dtype else rows.dtype
        self.task = fit(job, rows.name, reader.shape_of(rows), rows.dtype, dtype_out)
        row = [[slice(0, length)] if length else [] for length in self.task.shape[1:]]
        self.ranges: Ranges = [reader.row_ranges, *row]
        self._takes_nulls = not plain and 0 not in self.task.axes

    def box_of(self, rows: slice) -> Box:
        """A row group."""
        return rows, *(slice(0, length) for length in self.task.shape[1:])

    def read(self, box: Box, buffer: Array) -> Array:
        """The rows of a group; zeros where there is null in place of a list."""
        arrays = self._reader.arrays_of(box[0], self.rows)
        try:
            x, nulls = self.rows.rows(arrays, shape_of(box))
            if nulls is not None and not self._takes_nulls:
                raise UnfitArrayError(
                    "has null in place of lists, which .parquet alone keeps, and not along --axis 0; fill or drop those"
                )
        except UnfitArrayError as error:
            raise UnfitArrayError(f"{self.rows.name} of {self._reader.path} {error}") from None
        if nulls is not None:
            self.nulls[box[0].start] = nulls
        return x


class ParquetReader:
    """A file, whose metadata have been read."""

    def __init__(self, path: Path) -> None:
        self.arrow = package("pyarrow", path)
        self.path = path
        self._file = _opened(path)
        with readable(path):
            self.schema = self._file.schema_arrow
            metadata = self._file.metadata
            lengths = [metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)]
            if sum(lengths) != metadata.num_rows or min(lengths, default=0) < 0:
                raise ValueError("its row groups do not have as many rows as it says")
        self.num_rows = metadata.num_rows
        ends = numpy.cumsum(lengths, dtype=int)
        groups = {int(end) - length: i for i, (end, length) in enumerate(zip(ends, lengths, strict=True)) if length}
        self.group_of = groups  # by its first row
        self.row_ranges = [slice(start, start + lengths[i]) for start, i in groups.items()]

    @property
    def unnamed(self) -> bool:
        """Columns have names."""
        return False

    @property
    def entries(self) -> list[Entry]:
        """Its columns; the length of lists is read."""
        return [self._entry(one) for one in columns_of(self.arrow, self.schema)]

    def _entry(self, column: Any) -> Entry:
        try:
            if is_lists_of_floats(self.arrow, column.kind):
                rows = Lists(self.arrow, column)
                shape = self.shape_of(rows)
                return Entry(column.name, shape, str(rows.dtype), math.prod(shape) * rows.dtype.itemsize)
            why = advice(self.arrow, column.name, column.kind)
        except UnfitArrayError as error:
            why = str(error)
        bits = column.kind.bit_width if self.arrow.types.is_primitive(column.kind) else None
        nbytes = None if bits is None else self.num_rows * bits // 8
        return Entry(column.name, (self.num_rows,), described(column.kind), nbytes, why)

    def left(self, sources: Mapping[str, tuple[ArrayJob, Source]]) -> list[str]:
        """The names of its other columns."""
        used = {one.path for _, source in sources.values() for one in source.rows.columns}  # type: ignore[attr-defined]
        return [one.name for one in columns_of(self.arrow, self.schema) if one.path not in used]

    def sources(self, job: Job, *, plain: bool) -> dict[str, tuple[ArrayJob, Source]]:
        """The arrays that a job is for; one of columns of numbers has no name."""
        sources = [
            ParquetSource(self, one, job, plain) for one in chosen_columns(self.arrow, self.schema, job, self.path)
        ]
        return {"" if job.columns else one.rows.name: (one.task, one) for one in sources}

    def shape_of(self, rows: Lists | NumberColumns) -> tuple[int, ...]:
        """The shape of an array."""
        row = self._length_of_lists(rows) if rows.row is None else rows.row
        return self.num_rows, *row

    def arrays_of(self, at: slice, rows: Lists | NumberColumns) -> list[Any]:
        """Arrow's arrays of a row group."""
        with readable(self.path):
            names = [self.schema.names[one.path[0]] for one in rows.columns]
            table = _read_group(self._file, self.group_of[at.start], at.stop - at.start, list(dict.fromkeys(names)))
            tops = {name: _in_one(table.column(table.column_names.index(name))) for name in dict.fromkeys(names)}
            return [taken(tops[name], one.path[1:]) for name, one in zip(names, rows.columns, strict=True)]

    def _length_of_lists(self, rows: Lists | NumberColumns) -> tuple[int]:
        """That of the first list there is."""
        (column,) = rows.columns
        for group in self.group_of.values():
            with readable(self.path):
                name = self.schema.names[column.path[0]]
                for batch in self._file.iter_batches(1024, row_groups=[group], columns=[name]):
                    batch.validate(full=True)
                    lists = taken(batch.column(batch.schema.names.index(name)), column.path[1:])
                    lengths = lists.value_lengths().drop_null()
                    if len(lengths):
                        return (int(lengths[0].as_py()),)
        return (0,)


class _ParquetSink:
    """Writes row groups, the other columns of each read when it is."""

    def __init__(self, reader: ParquetReader, sources: list[ParquetSource], file: IO[bytes]) -> None:
        self._reader = reader
        self._target = file
        self._file = _opened(reader.path)  # which another thread reads from
        self._sources = [(one, one.rows.kinds(one.task.dtype_out)) for one in sources]
        self._schema = reader.schema
        for source, kinds in self._sources:
            for column, kind in zip(source.rows.columns, kinds, strict=True):
                field = field_of(reader.arrow, self._schema.field(column.path[0]), column.path[1:], kind)
                self._schema = self._schema.set(column.path[0], field)
        self._writer: Any = None

    def write(self, rows: slice, results: list[Array]) -> None:
        """Write a row group."""
        arrow, group = self._reader.arrow, self._reader.group_of[rows.start]
        with readable(self._reader.path):
            table = _read_group(self._file, group, rows.stop - rows.start, None)
        if self._writer is None:
            self._open(_options(self._file.metadata, group))
        columns = list(table.columns)
        for (source, kinds), y in zip(self._sources, results, strict=True):
            arrays = source.rows.arrays(y, source.nulls.pop(rows.start, None), kinds)
            for column, array in zip(source.rows.columns, arrays, strict=True):
                first, *path = column.path
                columns[first] = put(arrow, _in_one(columns[first]) if path else None, tuple(path), array)
        table = arrow.Table.from_arrays(columns, schema=self._schema)
        self._writer.write_table(table, row_group_size=max(1, table.num_rows))

    def close(self) -> None:
        """Complete the file."""
        if self._writer is None:  # there are no rows
            self._open({})
        self._writer.close()

    def _open(self, options: dict[str, Any]) -> None:
        writer = package("pyarrow.parquet", self._reader.path).ParquetWriter
        self._writer = writer(self._target, self._schema, **options)


def normalize_parquet(
    reader: ParquetReader,
    found: Mapping[str, tuple[ArrayJob, Source]],
    target: IO[bytes],
    counts: RowCounts,
    advance: Advance,
) -> None:
    """Write a .parquet file with some of its columns normalized."""
    sources = [one for _, one in found.values() if isinstance(one, ParquetSource)]
    sink = _ParquetSink(reader, sources, target)
    try:
        _normalize_together(reader, sources, sink, counts, advance)
    except BaseException:
        with contextlib.suppress(Exception):  # which would hide the first
            sink.close()
        raise
    sink.close()


def _normalize_together(
    reader: ParquetReader, sources: list[ParquetSource], sink: _ParquetSink, counts: RowCounts, advance: Advance
) -> None:
    """Row group by row group all columns; statistics along the rows are taken before, of one column after the other."""
    statistics = [
        moments_of_rows(one.task, one, all_boxes(one), counts, lambda nbytes: advance(nbytes // 2))
        if takes_statistics(one.task, one) else None
        for one in sources
    ]  # fmt: skip

    def read(rows: slice, buffer: Any) -> list[Array]:
        return [one.read(one.box_of(rows), None) for one in sources]

    def compute(rows: slice, xs: list[Array]) -> list[Array]:
        results = []
        for one, x, found in zip(sources, xs, statistics, strict=True):
            nbytes = x.nbytes
            results.append(normalized(one.task, one.box_of(rows), x, counts, found))
            advance(nbytes if found is None else nbytes - nbytes // 2)
        return results

    pipelined(reader.row_ranges, read, compute, sink.write, [None] * 3)


def _opened(path: Path) -> Any:
    parquet = package("pyarrow.parquet", path)
    with readable(path):
        return parquet.ParquetFile(path, page_checksum_verification=True)


def _read_group(file: Any, group: int, rows: int, columns: list[str] | None) -> Any:
    """A row group, validated in full: Arrow would follow an index past its dictionary wherever it leads."""
    table = file.read_row_group(group, columns=columns)
    for name, column in zip(table.column_names, table.columns, strict=True):
        try:
            column.validate(full=True)
        except ValueError as error:
            raise ValueError(f"{name} is damaged: {str(error).rpartition('Invalid: ')[2]}") from None
    if table.num_rows != rows:
        raise ValueError(f"row group {group} has {table.num_rows} rows, and its metadata says {rows}")
    return table


def _in_one(column: Any) -> Any:
    """A column of a row group as one array."""
    column = column.combine_chunks()
    if hasattr(column, "chunks"):
        if column.num_chunks != 1:
            raise ValueError("a row group has too many elements for one array; write smaller ones")
        column = column.chunk(0)
    return column


def _options(metadata: Any, group: int) -> dict[str, Any]:
    """How a row group was written: its version, the compression of each column, which have dictionaries.

    It must have been read: where metadata of columns are damaged Arrow ends the process rather than raise.
    """
    found = metadata.row_group(group)
    columns = [found.column(i) for i in range(found.num_columns)]
    compression = {
        one.path_in_schema: "NONE" if one.compression == "UNCOMPRESSED" else one.compression for one in columns
    }
    dictionaries = [one.path_in_schema for one in columns if one.has_dictionary_page]
    version = metadata.format_version if metadata.format_version in ("1.0", "2.4", "2.6") else "2.6"
    return {"version": version, "compression": compression, "use_dictionary": dictionaries or False}
