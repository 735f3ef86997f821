"""Columns of lists of floats in Arrow, whichever of its kinds of lists they are, as NumPy arrays and back."""

from __future__ import annotations

import re
from typing import Any

import numpy

from anynorm._files.sources import UnfitArrayError

Array = Any

_KIND_LENGTH = 200  # of a type in messages


def storage_of(arrow: Any, kind: Any) -> Any:
    """What the values of a type lie in: for an extension, as of tensors, another type."""
    return kind.storage_type if isinstance(kind, arrow.BaseExtensionType) else kind


def is_lists_of_floats(arrow: Any, kind: Any) -> bool:
    """Whether rows of a type can be normalized."""
    lists, types = storage_of(arrow, kind), arrow.types
    kinds = ("list", "large_list", "fixed_size_list", "list_view", "large_list_view")  # older Arrow lacks some
    found = any(getattr(types, f"is_{one}", lambda _: False)(lists) for one in kinds)
    return bool(found and types.is_floating(lists.value_type))


def float_dtype(kind: Any) -> numpy.dtype[Any]:
    """NumPy's dtype of a type of floats. Older Arrow imports pandas to tell it."""
    return numpy.dtype(f"float{kind.bit_width}")


def described(kind: Any) -> str:
    """A type in messages."""
    return re.sub(r"(?<=<)(element|item): ", "", str(kind))[:_KIND_LENGTH]


def row_shape(arrow: Any, kind: Any) -> tuple[int, ...] | None:
    """The shape of each row; None where only the lists tell. ValueError for tensors in another order of axes."""
    if isinstance(kind, arrow.FixedShapeTensorType):
        if kind.permutation and list(kind.permutation) != list(range(len(kind.shape))):
            raise UnfitArrayError(f"{described(kind)} has its axes permuted; store it with its axes in order")
        return tuple(kind.shape)
    size = getattr(storage_of(arrow, kind), "list_size", None)
    return None if size is None else (size,)


def rows_of(arrow: Any, lists: Any) -> tuple[Array, Array, Array]:
    """The values of all lists one after the other, where there is null in place of a list, the length of each other."""
    lists = lists.storage if isinstance(lists, arrow.ExtensionArray) else lists
    nulls = lists.is_null().to_numpy(zero_copy_only=False)
    values = lists.flatten()  # of the lists that are there
    if values.null_count:
        raise UnfitArrayError("has lists with null in them; fill those first")
    if hasattr(lists.type, "list_size"):
        lengths = numpy.full(len(nulls) - numpy.count_nonzero(nulls), lists.type.list_size)
    else:
        lengths = lists.value_lengths().drop_null().to_numpy(zero_copy_only=False)
    return values.to_numpy(zero_copy_only=False), nulls, lengths


def lists_of(arrow: Any, kind: Any, y: Array, nulls: Array | None) -> Any:
    """An array of a type, of rows in NumPy."""
    lists = storage_of(arrow, kind)
    if lists is not kind:
        return arrow.ExtensionArray.from_storage(kind, lists_of(arrow, lists, y, nulls))
    mask = None if nulls is None else arrow.array(nulls)
    if hasattr(kind, "list_size"):
        return arrow.FixedSizeListArray.from_arrays(arrow.array(y.reshape(-1)), type=kind, mask=mask)
    lengths = numpy.where(False if nulls is None else nulls, 0, y.shape[1]) * numpy.ones(len(y), int)
    offsets = numpy.concatenate([[0], numpy.cumsum(lengths)])
    values = arrow.array((y if nulls is None else y[~nulls]).reshape(-1))
    name = type(arrow.array([], kind)).__name__  # say LargeListArray
    whole = arrow.int64() if name.startswith("Large") else arrow.int32()
    if name.endswith("ViewArray"):
        parts = [arrow.array(offsets[:-1], whole), arrow.array(lengths, whole)]
    else:
        parts = [arrow.array(offsets, whole)]
    return getattr(arrow, name).from_arrays(*parts, values, type=kind, mask=mask)


def retyped(arrow: Any, kind: Any, dtype: Any) -> Any:
    """The same kind of list of another dtype."""
    value_type = arrow.from_numpy_dtype(dtype)
    if isinstance(kind, arrow.FixedShapeTensorType):
        return arrow.fixed_shape_tensor(value_type, kind.shape, kind.dim_names, kind.permutation)
    lists = storage_of(arrow, kind)
    if lists.value_type == value_type:
        return kind
    if lists is not kind:
        raise ValueError(f"the dtype of {described(kind)} cannot be changed; leave --dtype out")
    value = kind.value_field.with_type(value_type)
    if hasattr(kind, "list_size"):
        return arrow.list_(value, kind.list_size)
    make = {"List": "list_", "LargeList": "large_list", "ListView": "list_view", "LargeListView": "large_list_view"}
    return getattr(arrow, make[type(kind).__name__.removesuffix("Type")])(value)
