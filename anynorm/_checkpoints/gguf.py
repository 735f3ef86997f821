"""The header of .gguf files.

The package gguf is not used for it: it does not compare a header with the file's size (a list of three million numbers
in a file of 172 bytes took it 28 s and 3 GB), and makes an array of each token of a vocabulary on the way.
"""

from __future__ import annotations

import math
import struct
from pathlib import Path
from typing import NamedTuple

from anynorm._checkpoints.stored import Source, Tensor, source

# By the numbers that the format has for types of values: how struct calls them.
_NUMBERS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_TEXT, _LIST = 8, 9
# The same of elements; those of other numbers are quantized or integers.
_FLOATS = {0: ("float32", 4), 1: ("float16", 2), 28: ("float64", 8), 30: ("bfloat16", 2)}
_VERSIONS = (2, 3)
_MOST_AXES = 4
_DEEPEST_LIST = 4
_SHORTEST_VALUE, _SHORTEST_TENSOR = 13, 24  # bytes in the header


class Header(NamedTuple):
    """What is in a file: the values of some keys, and the tensors."""

    values: dict[str, str | int | float | bool]
    tensors: dict[str, Tensor]


def read_header(path: Path) -> Header:
    """Read what is in a file; ValueError where that cannot be so."""
    with source(path) as file:
        if file.size < 4 or file.take(4) != b"GGUF":
            raise ValueError(f"{path} is not a GGUF file: it does not begin with these letters")
        version = file.integer(4)
        if version not in _VERSIONS:
            big = version and version & 0xFFFF == 0
            kind = "of the other byte order" if big else f"of version {version}"
            raise ValueError(f"{path} is a GGUF file {kind}; versions {_VERSIONS} in little endian can be read")
        tensors, keys = file.integer(8), file.integer(8)
        _require_room(file, keys, _SHORTEST_VALUE, "values")
        values: dict[str, str | int | float | bool] = {}
        for _ in range(keys):
            key, value = _value(file)
            if key in values:
                raise file.damaged(f"it has {key} twice")
            if value is not None:
                values[key] = value
        _require_room(file, tensors, _SHORTEST_TENSOR, "tensors")
        described = [_described(file) for _ in range(tensors)]
        alignment = values.get("general.alignment", 32)
        if type(alignment) is not int or alignment <= 0 or alignment & (alignment - 1):
            raise file.damaged(f"its tensors cannot be aligned to {alignment!r}")
        begin = file.at + -file.at % alignment
        return Header(values, _placed(file, described, begin, alignment))


def _require_room(file: Source, count: int, shortest: int, what: str) -> None:
    if count > (file.size - file.at) // shortest:
        raise file.damaged(f"{count} {what} should follow byte {file.at}, and it has {file.size} bytes in all")


def _value(file: Source) -> tuple[str, str | int | float | bool | None]:
    """A key and its value, None where that is not asked for."""
    key, kind = file.text(file.integer(8)), file.integer(4)
    wanted = key.startswith(("general.", "split.")) or key.endswith("_epsilon")
    if kind == _TEXT and wanted and key == "general.architecture":
        return key, file.text(file.integer(8))
    if kind in _NUMBERS and wanted:
        (number,) = struct.unpack("<" + _NUMBERS[kind], file.take(struct.calcsize(_NUMBERS[kind])))
        return key, number
    _skip(file, kind, 0)
    return key, None


def _skip(file: Source, kind: int, depth: int) -> None:
    if kind in _NUMBERS:
        file.skip(struct.calcsize(_NUMBERS[kind]))
    elif kind == _TEXT:
        file.skip(file.integer(8))
    elif kind == _LIST and depth < _DEEPEST_LIST:
        kind, count = file.integer(4), file.integer(8)
        if kind in _NUMBERS:
            file.skip(count * struct.calcsize(_NUMBERS[kind]))
            return
        _require_room(file, count, 8, "items")
        for _ in range(count):
            _skip(file, kind, depth + 1)
    else:
        raise file.damaged(f"it has a value of the unknown type {kind}, or lists in lists in lists")


class _Described(NamedTuple):
    name: str
    shape: tuple[int, ...]
    kind: int
    offset: int


def _described(file: Source) -> _Described:
    name, axes = file.text(file.integer(8)), file.integer(4)
    if axes > _MOST_AXES:
        raise file.damaged(f"{name} has {axes} axes")
    lengths = [file.integer(8) for _ in range(axes)]
    return _Described(name, tuple(reversed(lengths)), file.integer(4), file.integer(8))


def _placed(file: Source, described: list[_Described], begin: int, alignment: int) -> dict[str, Tensor]:
    """The tensors by name, none of which lies beyond the end or where another one begins."""
    tensors: dict[str, Tensor] = {}
    end = 0  # of the tensors so far
    for one in sorted(described, key=lambda one: one.offset):
        dtype, itemsize = _FLOATS.get(one.kind, (f"GGML type {one.kind}", 0))
        nbytes, start = math.prod(one.shape) * itemsize, begin + one.offset
        if one.name in tensors:
            raise file.damaged(f"it has {one.name} twice")
        if one.offset % alignment or start < end or start + nbytes > max(file.size, begin):
            raise file.damaged(f"{one.name} lies beyond its end or in another tensor")
        # Of the size of those that are not floats no more is known than that something is there.
        end = start + (nbytes if itemsize else bool(math.prod(one.shape)))
        tensors[one.name] = Tensor(one.name, one.shape, dtype, file.path, start, nbytes)
    return {one.name: tensors[one.name] for one in described}
