"""A column of lists of floats in a .parquet file, as embeddings are shipped; everything else stays as it was."""

from __future__ import annotations

from pathlib import Path
from typing import IO, Any

import numpy

from anynorm._files.boxes import Box, Ranges, shape_of
from anynorm._files.contents import chosen, package, readable
from anynorm._files.job import Job, dtype_named, fit
from anynorm._files.passes import Advance, normalize_array
from anynorm._files.rows import RowCounts
from anynorm._files.target import require_regular

Array = Any


class ParquetSource:
    """A column, read a row group at a time: rows are lists, all of one length."""

    def __init__(self, path: Path, job: Job) -> None:
        arrow, parquet = package("pyarrow", path), package("pyarrow.parquet", path)
        require_regular(path)
        self._path = path
        with readable(path):
            self._file = parquet.ParquetFile(path)
            schema = self._file.schema_arrow
            metadata = self._file.metadata
        names = chosen(job, [field.name for field in schema if _is_list_of_floats(arrow, field.type)], path, "--column")
        if len(names) > 1:
            raise ValueError(f"one --column of {path} at a time")
        (self.name,) = names
        if schema.names.count(self.name) > 1:
            raise ValueError(f"{path} has several columns of the name {self.name}")
        ends = numpy.cumsum([metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)], dtype=int)
        self._groups = {int(end) - metadata.row_group(i).num_rows: i for i, end in enumerate(ends)}
        self.nulls: dict[int, Array] = {}  # by the first row of a group, until that is written
        self.buffers = 3  # row groups are large
        self.buffer_nbytes = 0
        kind = schema.field(self.name).type
        features = kind.list_size if hasattr(kind, "list_size") else self._length_of_lists()
        dtype = numpy.dtype(kind.value_type.to_pandas_dtype())
        dtype_out = dtype_named(job.dtype) if job.dtype else dtype
        if dtype_out.kind == "V":
            raise ValueError(f"Parquet has no {dtype_out}; choose another --dtype")
        self.task = fit(job, self.name, (metadata.num_rows, features), dtype, dtype_out)
        rows = [slice(start, start + metadata.row_group(i).num_rows) for start, i in self._groups.items()]
        self.ranges: Ranges = [[one for one in rows if one.start < one.stop], [slice(0, features)] if features else []]

    def group_of(self, box: Box) -> int:
        """The number of the row group that a box is."""
        return self._groups[box[0].start]

    def read(self, box: Box, buffer: Array) -> Array:
        """The rows of a group; zeros where there is null in place of a list."""
        with readable(self._path):
            column = self._column(self.group_of(box))
        shape = shape_of(box)
        nulls = column.is_null().to_numpy(zero_copy_only=False)
        values = column.flatten()  # of the lists that are there
        if values.null_count:
            raise ValueError(f"{self.name} of {self._path} has lists with null in them; fill those first")
        lengths = numpy.diff(column.offsets.to_numpy())[~nulls] if hasattr(column, "offsets") else numpy.asarray([])
        if (lengths != shape[1]).any():
            raise ValueError(f"{self.name} of {self._path} has lists of different lengths; normalize takes one length")
        rows = values.to_numpy(zero_copy_only=False).reshape(-1, shape[1])
        if not nulls.any():
            return rows
        if 0 in self.task.axes:
            raise ValueError(f"{self.name} of {self._path} has null in place of lists; normalize over --axis=-1 alone")
        self.nulls[box[0].start] = nulls
        x = numpy.zeros(shape, rows.dtype)
        x[~nulls] = rows
        return x

    def _column(self, group: int) -> Any:
        column = self._file.read_row_group(group, columns=[self.name]).column(self.name).combine_chunks()
        if not hasattr(column, "chunks"):
            return column
        if column.num_chunks != 1:
            raise ValueError("a row group has too many elements for one array; write smaller ones")
        return column.chunk(0)

    def _length_of_lists(self) -> int:
        """That of the first list there is."""
        for group in self._groups.values():
            with readable(self._path):
                for batch in self._file.iter_batches(1024, row_groups=[group], columns=[self.name]):
                    lengths = batch.column(0).value_lengths().drop_null()
                    if len(lengths):
                        return int(lengths[0].as_py())
        return 0


class _ParquetSink:
    """Writes row groups, the other columns of each read when it is."""

    def __init__(self, path: Path, source: ParquetSource, file: IO[bytes]) -> None:
        self._arrow, parquet = package("pyarrow", path), package("pyarrow.parquet", path)
        self._path = path
        self._source = source
        with readable(path):
            self._file = parquet.ParquetFile(path)
        old = self._file.schema_arrow
        self._index = old.get_field_index(source.name)
        field = old.field(self._index)
        self._field = field.with_type(_retyped(self._arrow, field.type, source.task.dtype_out))
        self._schema = old.set(self._index, self._field)
        self.writer = parquet.ParquetWriter(file, self._schema, **_options(self._file.metadata))

    def write(self, box: Box, y: Array) -> None:
        nulls = self._source.nulls.pop(box[0].start, None)
        with readable(self._path):
            table = self._file.read_row_group(self._source.group_of(box))
        table = table.set_column(self._index, self._field, self._lists(y, nulls))
        self.writer.write_table(table.cast(self._schema), row_group_size=max(1, table.num_rows))

    def _lists(self, y: Array, nulls: Array | None) -> Any:
        arrow, kind = self._arrow, self._field.type
        mask = None if nulls is None else arrow.array(nulls)
        if hasattr(kind, "list_size"):
            return arrow.FixedSizeListArray.from_arrays(arrow.array(y.reshape(-1)), type=kind, mask=mask)
        lengths = numpy.where(False if nulls is None else nulls, 0, y.shape[1]) * numpy.ones(len(y), int)
        offsets = numpy.concatenate([[0], numpy.cumsum(lengths)])
        large = arrow.types.is_large_list(kind)
        lists = arrow.LargeListArray if large else arrow.ListArray
        values = arrow.array((y if nulls is None else y[~nulls]).reshape(-1))
        return lists.from_arrays(
            arrow.array(offsets, arrow.int64() if large else arrow.int32()), values, kind, mask=mask
        )


def normalize_parquet(path: Path, target: IO[bytes], job: Job, counts: RowCounts, advance: Advance) -> None:
    """Write a .parquet file with one column normalized."""
    source = ParquetSource(path, job)
    sink = _ParquetSink(path, source, target)
    with sink.writer:
        normalize_array(source.task, source, sink, counts, advance)


def _is_list_of_floats(arrow: Any, kind: Any) -> bool:
    types = arrow.types
    lists = types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind)
    return bool(lists and types.is_floating(kind.value_type))


def _retyped(arrow: Any, kind: Any, dtype: Any) -> Any:
    """The same kind of list of another dtype."""
    value = kind.value_field.with_type(arrow.from_numpy_dtype(dtype))
    if hasattr(kind, "list_size"):
        return arrow.list_(value, kind.list_size)
    return arrow.large_list(value) if arrow.types.is_large_list(kind) else arrow.list_(value)


def _options(metadata: Any) -> dict[str, Any]:
    """How a file was written: its version, the compression of each column, which have dictionaries."""
    if not metadata.num_row_groups:
        return {}
    group = metadata.row_group(0)
    columns = [group.column(i) for i in range(group.num_columns)]
    compression = {
        one.path_in_schema: "NONE" if one.compression == "UNCOMPRESSED" else one.compression for one in columns
    }
    dictionaries = [one.path_in_schema for one in columns if one.has_dictionary_page]
    version = metadata.format_version if metadata.format_version in ("1.0", "2.4", "2.6") else "2.6"
    return {"version": version, "compression": compression, "use_dictionary": dictionaries or False}
