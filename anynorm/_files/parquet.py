"""A column of lists of floats in a .parquet file, as embeddings are shipped; everything else stays as it was."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import IO, Any

import numpy

from anynorm._files.boxes import Box, Ranges, shape_of
from anynorm._files.contents import chosen, listed, package, readable
from anynorm._files.job import Job, dtype_named, fit
from anynorm._files.lists import described, is_lists_of_floats, lists_of, retyped, row_shape, rows_of, storage_of
from anynorm._files.passes import Advance, normalize_array
from anynorm._files.rows import RowCounts

Array = Any


class ParquetSource:
    """A column, read a row group at a time: rows are lists, all of one length, or tensors."""

    def __init__(self, path: Path, job: Job) -> None:
        self._arrow = package("pyarrow", path)
        self._path = path
        self._file = _opened(path)
        with readable(path):
            schema = self._file.schema_arrow
            metadata = self._file.metadata
            lengths = [metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)]
            if sum(lengths) != metadata.num_rows or min(lengths, default=0) < 0:
                raise ValueError("its row groups have other rows than it tells")
        self.name = _column_in(self._arrow, schema, job, path)
        ends = numpy.cumsum(lengths, dtype=int)
        self._groups = {int(end) - length: i for i, (end, length) in enumerate(zip(ends, lengths, strict=True))}
        self.nulls: dict[int, Array] = {}  # by the first row of a group, until that is written
        self.buffers = 3  # row groups are large
        self.buffer_nbytes = 0
        kind = schema.field(self.name).type
        row = row_shape(self._arrow, kind) or (self._length_of_lists(),)
        dtype = numpy.dtype(storage_of(self._arrow, kind).value_type.to_pandas_dtype())
        dtype_out = dtype_named(job.dtype) if job.dtype else dtype
        if dtype_out.kind == "V":
            raise ValueError(f"Parquet has no {dtype_out}; choose another --dtype")
        self.task = fit(job, self.name, (metadata.num_rows, *row), dtype, dtype_out)
        rows = [slice(start, start + lengths[i]) for start, i in self._groups.items()]
        of_rows = [[slice(0, length)] if length else [] for length in row]
        self.ranges: Ranges = [[one for one in rows if one.start < one.stop], *of_rows]

    def group_of(self, box: Box) -> int:
        """The number of the row group that a box is."""
        return self._groups[box[0].start]

    def read(self, box: Box, buffer: Array) -> Array:
        """The rows of a group; zeros where there is null in place of a list."""
        shape = shape_of(box)
        with readable(self._path):
            column = _read_group(self._file, self.group_of(box), shape[0], [self.name]).column(0).combine_chunks()
            if hasattr(column, "chunks"):
                if column.num_chunks != 1:
                    raise ValueError("a row group has too many elements for one array; write smaller ones")
                column = column.chunk(0)
        try:
            values, nulls, lengths = rows_of(self._arrow, column)
        except ValueError as error:
            raise ValueError(f"{self.name} of {self._path} {error}") from None
        if (lengths != numpy.prod(shape[1:])).any():
            raise ValueError(f"{self.name} of {self._path} has lists of different lengths; normalize takes one length")
        rows = values.reshape(-1, *shape[1:])
        if not nulls.any():
            return rows
        if 0 in self.task.axes:
            raise ValueError(f"{self.name} of {self._path} has null in place of lists; normalize over --axis=-1 alone")
        self.nulls[box[0].start] = nulls
        x = numpy.zeros(shape, rows.dtype)
        x[~nulls] = rows
        return x

    def _length_of_lists(self) -> int:
        """That of the first list there is."""
        for group in self._groups.values():
            with readable(self._path):
                for batch in self._file.iter_batches(1024, row_groups=[group], columns=[self.name]):
                    batch.validate(full=True)
                    lengths = batch.column(0).value_lengths().drop_null()
                    if len(lengths):
                        return int(lengths[0].as_py())
        return 0


class _ParquetSink:
    """Writes row groups, the other columns of each read when it is."""

    def __init__(self, path: Path, source: ParquetSource, file: IO[bytes]) -> None:
        self._arrow = package("pyarrow", path)
        self._path = path
        self._source = source
        self._target = file
        self._file = _opened(path)
        old = self._file.schema_arrow
        self._index = old.get_field_index(source.name)
        field = old.field(self._index)
        self._field = field.with_type(retyped(self._arrow, field.type, source.task.dtype_out))
        self._schema = old.set(self._index, self._field)
        self._writer: Any = None

    def write(self, box: Box, y: Array) -> None:
        """Write a row group."""
        group, nulls = self._source.group_of(box), self._source.nulls.pop(box[0].start, None)
        with readable(self._path):
            table = _read_group(self._file, group, len(y), None)
        if self._writer is None:
            self._open(_options(self._file.metadata, group))
        lists = lists_of(self._arrow, self._field.type, y.reshape(len(y), -1), nulls)
        columns = table.set_column(self._index, self._field, lists).columns
        table = self._arrow.Table.from_arrays(columns, schema=self._schema)
        self._writer.write_table(table, row_group_size=max(1, table.num_rows))

    def close(self) -> None:
        """Complete the file."""
        if self._writer is None:  # there are no rows
            self._open({})
        self._writer.close()

    def _open(self, options: dict[str, Any]) -> None:
        self._writer = package("pyarrow.parquet", self._path).ParquetWriter(self._target, self._schema, **options)


def normalize_parquet(path: Path, target: IO[bytes], job: Job, counts: RowCounts, advance: Advance) -> None:
    """Write a .parquet file with one column normalized."""
    source = ParquetSource(path, job)
    sink = _ParquetSink(path, source, target)
    try:
        normalize_array(source.task, source, sink, counts, advance)
    except BaseException:
        with contextlib.suppress(Exception):  # which would hide the first
            sink.close()
        raise
    sink.close()


def _opened(path: Path) -> Any:
    parquet = package("pyarrow.parquet", path)
    with readable(path):
        return parquet.ParquetFile(path, page_checksum_verification=True)


def _read_group(file: Any, group: int, rows: int, columns: list[str] | None) -> Any:
    """A row group, of which nothing is believed: an index past its dictionary, say, is followed wherever it leads."""
    table = file.read_row_group(group, columns=columns)
    for name, column in zip(table.column_names, table.columns, strict=True):
        try:
            column.validate(full=True)
        except ValueError as error:
            raise ValueError(f"{name} is damaged: {str(error).rpartition('Invalid: ')[2]}") from None
    if table.num_rows != rows:
        raise ValueError(f"row group {group} has {table.num_rows} rows, and {rows} by its own account")
    return table


def _column_in(arrow: Any, schema: Any, job: Job, path: Path) -> str:
    """The column that a job is for."""
    for name in job.names:
        if name in schema.names and not is_lists_of_floats(arrow, kind := schema.field(schema.names.index(name)).type):
            raise ValueError(f"{name} of {path} is {described(kind)}; --column takes lists of floats")
    names = [field.name for field in schema if is_lists_of_floats(arrow, field.type)]
    if not names:
        there = listed([f"{field.name}: {described(field.type)}" for field in schema])
        raise ValueError(f"{path} holds no column of lists of floats; it holds {there}")
    (name, *more) = chosen(job, names, path, "--column")
    if more:
        raise ValueError(f"one --column of {path} at a time")
    if schema.names.count(name) > 1:
        raise ValueError(f"{path} has several columns of the name {name}")
    return name


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
