"""Which columns of a .parquet file make up an array: lists, also those in structs, or numbers side by side."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy

from anynorm._files.contents import chosen, listed
from anynorm._files.formats.lists import (
    described,
    float_dtype,
    is_lists_of_floats,
    lists_of,
    retyped,
    row_shape,
    rows_of,
    storage_of,
)
from anynorm._files.job import Job, narrowed
from anynorm._files.sources import UnfitArrayError

Array = Any


@dataclass(frozen=True)
class Column:
    """A column, or a field of a struct: its name then has dots in it."""

    name: str
    path: tuple[int, ...]  # the number of the column, and of the field in each struct
    kind: Any


def columns_of(arrow: Any, schema: Any) -> list[Column]:
    """All columns that are no structs, and in the place of those their fields."""
    return [one for i, field in enumerate(schema) for one in _within(arrow, field.name, (i,), field.type)]


def _within(arrow: Any, name: str, path: tuple[int, ...], kind: Any) -> Iterator[Column]:
    if not arrow.types.is_struct(kind):
        yield Column(name, path, kind)
        return
    for i in range(kind.num_fields):
        yield from _within(arrow, f"{name}.{kind.field(i).name}", (*path, i), kind.field(i).type)


class Lists:
    """A column of lists of floats, or of tensors."""

    def __init__(self, arrow: Any, column: Column) -> None:
        self.columns = [column]
        self.name = column.name
        self.row = row_shape(arrow, column.kind)  # None: the lists tell
        self.dtype = float_dtype(storage_of(arrow, column.kind).value_type)
        self._arrow = arrow

    def rows(self, arrays: list[Any], shape: tuple[int, ...]) -> tuple[Array, Array | None]:
        """The rows of Arrow's arrays, zeros where there is null in place of a list; and where that is, if anywhere."""
        values, nulls, lengths = rows_of(self._arrow, arrays[0])
        if (lengths != numpy.prod(shape[1:])).any():
            raise UnfitArrayError("has lists of different lengths; normalize takes one length")
        if not nulls.any():
            return values.reshape(shape), None
        x = numpy.zeros(shape, values.dtype)
        x[~nulls] = values.reshape(len(lengths), *shape[1:])
        return x, nulls

    def kinds(self, dtype: Any) -> list[Any]:
        """The types of columns with a result."""
        return [retyped(self._arrow, self.columns[0].kind, dtype)]

    def arrays(self, y: Array, nulls: Array | None, kinds: list[Any]) -> list[Any]:
        """Arrow's arrays of rows."""
        return [lists_of(self._arrow, kinds[0], y.reshape(len(y), -1), nulls)]


class NumberColumns:
    """Columns of floats side by side, which have one number of each row."""

    def __init__(self, arrow: Any, columns: list[Column], name: str) -> None:
        self.columns = columns
        self.name = name
        self.row = (len(columns),)
        self._dtypes = [float_dtype(one.kind) for one in columns]
        self.dtype = numpy.result_type(*self._dtypes)
        self._arrow = arrow

    def rows(self, arrays: list[Any], shape: tuple[int, ...]) -> tuple[Array, Array | None]:
        """The rows of Arrow's arrays."""
        x = numpy.empty(shape, self.dtype)
        for i, (column, one) in enumerate(zip(self.columns, arrays, strict=True)):
            if one.null_count:
                raise UnfitArrayError(f"has null in {column.name}; fill that first")
            x[:, i] = one.to_numpy(zero_copy_only=False)
        return x, None

    def kinds(self, dtype: Any) -> list[Any]:
        """Their own types, unless another one is wanted of the result than they have together."""
        if dtype == self.dtype:
            return [one.kind for one in self.columns]
        return [self._arrow.from_numpy_dtype(dtype)] * len(self.columns)

    def arrays(self, y: Array, nulls: Array | None, kinds: list[Any]) -> list[Any]:
        """Arrow's arrays of rows."""
        return [self._arrow.array(narrowed(y[:, i], float_dtype(kind)), kind) for i, kind in enumerate(kinds)]


def chosen_columns(arrow: Any, schema: Any, job: Job, path: Path) -> list[Lists | NumberColumns]:
    """The arrays that a job is for."""
    columns = columns_of(arrow, schema)
    if job.columns:
        return [_numbers(arrow, columns, job, path)]
    tops = [Column(field.name, (i,), field.type) for i, field in enumerate(schema)]
    there = {one.name: one for one in (*columns, *tops)}
    for name in job.names:
        if name in there and not is_lists_of_floats(arrow, kind := there[name].kind):
            raise ValueError(f"{name} of {path} is {described(kind)}; {advice(arrow, name, kind)}")
    names = [one.name for one in columns if is_lists_of_floats(arrow, one.kind)]
    if not names:
        listing = listed([f"{field.name}: {described(field.type)}" for field in schema])
        numbers = any(arrow.types.is_floating(one.kind) for one in columns)
        do = "; --columns 'f*' makes rows of columns of numbers whose names match" if numbers else ""
        raise ValueError(f"{path} holds no column of lists of floats; it holds {listing}{do}")
    wanted = chosen(job, names, path, "--column")
    for name in wanted:
        if names.count(name) > 1:
            raise ValueError(f"{path} has several columns of the name {name}")
    return [Lists(arrow, there[name]) for name in wanted]


def _numbers(arrow: Any, columns: list[Column], job: Job, path: Path) -> NumberColumns:
    if job.names:
        raise ValueError("--columns and --column exclude each other; leave one out")
    floats = [one for one in columns if arrow.types.is_floating(one.kind)]
    for pattern in job.columns:
        if not any(fnmatch.fnmatchcase(one.name, pattern) for one in floats):
            there = listed([one.name for one in floats]) if floats else "none"
            do = f"; write --columns for each of {pattern}" if "," in pattern else ""
            raise ValueError(f"no column of floats of {path} matches {pattern}; such columns are: {there}{do}")
    found = [one for one in floats if any(fnmatch.fnmatchcase(one.name, pattern) for pattern in job.columns)]
    return NumberColumns(arrow, found, ", ".join(job.columns))


def advice(arrow: Any, name: str, kind: Any) -> str:
    """What can be done with a column that does not hold lists of floats."""
    if arrow.types.is_floating(kind):
        return f"--column takes lists of floats, and --columns {name} columns of numbers"
    lists = storage_of(arrow, kind)
    if getattr(lists, "num_fields", 0) == 1 and arrow.types.is_integer(getattr(lists, "value_type", arrow.null())):
        to = str(lists).replace(str(lists.value_type), "float")
        return f"--column takes lists of floats: cast it to {described(to)} first"
    return "--column takes lists of floats"


def taken(array: Any, path: tuple[int, ...]) -> Any:
    """A field within structs, null where they are."""
    for i in path:
        array = array.flatten()[i]
    return array


def put(arrow: Any, array: Any, path: tuple[int, ...], new: Any) -> Any:
    """Structs with another array in the place of a field."""
    if not path:
        return new
    fields = [array.field(i) for i in range(array.type.num_fields)]
    fields[path[0]] = put(arrow, fields[path[0]], path[1:], new)
    described = [array.type.field(i).with_type(one.type) for i, one in enumerate(fields)]
    return arrow.StructArray.from_arrays(fields, fields=described, mask=array.is_null())


def field_of(arrow: Any, field: Any, path: tuple[int, ...], kind: Any) -> Any:
    """A field of a schema, whose type or that of a field within is another one."""
    if not path:
        return field.with_type(kind)
    inner = [field.type.field(i) for i in range(field.type.num_fields)]
    inner[path[0]] = field_of(arrow, inner[path[0]], path[1:], kind)
    return field.with_type(arrow.struct(inner))
