"""The headers of .safetensors files."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

from anynorm._files.contents import package
from anynorm._files.formats.raw import RawArray, RawFile, nbytes_out
from anynorm._files.job import ArrayJob, dtype_named

# The names of dtypes in the format; of those that are not here nothing is needed but their bytes.
_DTYPES = {"F16": "float16", "BF16": "bfloat16", "F32": "float32", "F64": "float64"}


def open_safetensors(file: IO[bytes], path: Path) -> RawFile:
    """Read the header of a .safetensors file; ValueError where it is none."""
    safetensors = package("safetensors", path)
    try:
        # The library looks at all that a header may lie about: lengths, gaps, overlaps, the end of the file.
        with safetensors.safe_open(path, "numpy"):
            pass
    except (safetensors.SafetensorError, ValueError, OverflowError) as error:
        raise ValueError(f"{path} is not a readable .safetensors file: {error}") from None
    length = int.from_bytes(file.read(8), "little")
    text = file.read(length)
    described = json.loads(text)
    described.pop("__metadata__", None)
    arrays = [_array(name, one, 8 + length) for name, one in described.items()]
    arrays.sort(key=lambda array: (array.start, array.nbytes))

    def header_for(dtypes: Mapping[str, Any]) -> bytes:
        if all(dtypes.get(array.name, array.dtype) == array.dtype for array in arrays):
            return length.to_bytes(8, "little") + text
        return _header(json.loads(text), arrays, dtypes)

    return RawFile(path, tuple(arrays), header_for)


def _array(name: str, described: dict[str, Any], data: int) -> RawArray:
    first, last = described["data_offsets"]
    kind = described["dtype"]
    dtype = dtype_named(_DTYPES[kind]) if kind in _DTYPES else kind
    return RawArray(name, tuple(described["shape"]), dtype, data + first, last - first)


def _header(described: dict[str, Any], arrays: list[RawArray], dtypes: Mapping[str, Any]) -> bytes:
    """The header with other dtypes in it, the arrays one after the other as before."""
    names = {name: key for key, name in _DTYPES.items()}
    end = 0
    for array in arrays:
        one, nbytes = described[array.name], array.nbytes
        if array.name in dtypes:
            one["dtype"] = names[dtypes[array.name].name]
            nbytes = math.prod(array.shape) * dtypes[array.name].itemsize
        one["data_offsets"] = [end, end + nbytes]
        end += nbytes
    return _bytes_of(described)


def header_of(tasks: Mapping[str, ArrayJob]) -> bytes:
    """The header of a new file of such results, one after the other."""
    names, described, end = {name: key for key, name in _DTYPES.items()}, {}, 0
    for name, task in tasks.items():
        first, end = end, end + nbytes_out(task)
        described[name] = {"dtype": names[task.dtype_out.name], "shape": task.shape, "data_offsets": [first, end]}
    return _bytes_of(described)


def _bytes_of(described: dict[str, Any]) -> bytes:
    text = json.dumps(described, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # so that the arrays begin where their elements are aligned
    return len(text).to_bytes(8, "little") + text
