"""The headers of .npy files, and of streams in that format."""

from __future__ import annotations

import io
import math
import sys
import tokenize
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

import numpy
from numpy.lib import format as npy

from anynorm._files.formats.raw import UNTYPED, RawArray, RawFile, fill, is_untyped
from anynorm._files.original import opened

Array = Any

_AS_FLOAT32 = "numpy.save(path, numpy.load(path).view(ml_dtypes.bfloat16).astype('float32'))"
_MAX_HEADER_NBYTES = 10_000  # NumPy's own bound, which it looks at when the header is read


def open_npy(file: IO[bytes], path: Path) -> RawFile:
    """Read the header of an .npy file; ValueError where it is none."""
    found = read_header(file, path)
    length = file.seek(0, io.SEEK_END)
    (array,) = found.arrays
    if length != array.start + array.nbytes:
        kind = "is cut off" if length < array.start + array.nbytes else "holds more than its header says"
        raise ValueError(
            f"{path} is not a readable .npy file: it {kind}, with {length - array.start} bytes of data "
            f"where {array.shape} of {array.dtype} are {array.nbytes}"
        )
    return found


def load_npy(path: Path) -> Array:
    """The array of an .npy file, in memory, where no other program can change it meanwhile."""
    with opened(path) as original:
        (array,) = open_npy(original.file, path).arrays
        if is_untyped(array.dtype):
            raise ValueError(f"{path} holds {UNTYPED}; save it as float32: {_AS_FLOAT32}")
        data = numpy.empty(array.nbytes, numpy.uint8)
        original.file.seek(array.start)
        fill(original.file, data)
        original.require_unchanged()
    values = data.view(array.dtype)
    return values.reshape(array.shape, order="F" if array.in_reverse else "C")


def read_header(file: IO[bytes], path: Path) -> RawFile:
    """Read the header that a file begins with."""
    try:
        header = _bytes_of_header(file)
        shape, fortran, dtype = _parsed(header)
    except ValueError as error:
        raise ValueError(f"{path} is not a readable .npy file: {error}") from None
    in_reverse = fortran and len(shape) > 1
    nbytes = math.prod(shape) * dtype.itemsize
    if nbytes > sys.maxsize:
        raise ValueError(f"{path} is not a readable .npy file: its shape is {shape}, which no file can hold")
    array = RawArray("", shape, dtype, len(header), nbytes, in_reverse)

    def header_for(dtypes: Mapping[str, Any]) -> bytes:
        wanted = dtypes[""]
        if wanted == dtype:
            return header
        written = io.BytesIO()
        described = {"descr": npy.dtype_to_descr(wanted), "fortran_order": fortran, "shape": shape}
        npy.write_array_header_1_0(written, described)
        return written.getvalue()

    return RawFile(path, (array,), header_for)


def _bytes_of_header(file: IO[bytes]) -> bytes:
    """The bytes of the header, no more than a header may have, whatever length it claims."""
    begin = file.read(npy.MAGIC_LEN)
    if not begin:
        raise ValueError("it is empty")
    if not begin.startswith(npy.MAGIC_PREFIX[: len(begin)]):
        raise ValueError("it holds another format")
    if len(begin) < npy.MAGIC_LEN:
        raise ValueError("it ends within its header")
    version = npy.read_magic(io.BytesIO(begin))
    if version not in ((1, 0), (2, 0), (3, 0)):
        raise ValueError(f"its format is of version {version}, which is not known")
    begin += file.read(2 if version == (1, 0) else 4)
    length = int.from_bytes(begin[npy.MAGIC_LEN :], "little")
    if length > _MAX_HEADER_NBYTES:
        raise ValueError(f"its header claims to be {length} bytes long")
    header = begin + file.read(length)
    if len(header) < len(begin) + length:
        raise ValueError("it ends within its header")
    return header


# What NumPy raises for headers, and with warnings as errors for those that it takes in spite of what is odd in them.
_DAMAGED = (ValueError, EOFError, TypeError, SyntaxError, RecursionError, MemoryError, tokenize.TokenError, Warning)


def _parsed(header: bytes) -> tuple[tuple[int, ...], bool, Any]:
    """Shape, order and dtype; an array of Python objects, which would be a pickle, has no dtype for us."""
    version = npy.read_magic(file := io.BytesIO(header))
    # 3.0 differs from 2.0 in the names of fields alone.
    read = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
    try:
        with warnings.catch_warnings(action="error"):
            shape, fortran, dtype = read(file)
    except _DAMAGED:
        raise ValueError("its header is damaged") from None
    if any(isinstance(length, bool) or length < 0 for length in shape):
        raise ValueError(f"its shape is {shape}")
    if dtype.hasobject:
        raise ValueError("it holds Python objects, which are never loaded")
    if dtype.subdtype is not None:
        raise ValueError(f"its elements are arrays, of dtype {dtype}")
    return shape, fortran, dtype
