"""Normalizes an .npy file into another, block by block, so that memory stays flat whatever the file's size."""

from __future__ import annotations

import errno
import math
import os
import secrets
import shutil
import stat
import tokenize
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any

import numpy

from anynorm._explain import explain
from anynorm._moments import Moments
from anynorm._norms import layer_norm, moments, rms_norm, scale_norm

Array = Any

# Large enough to keep the disk busy, small enough that a block and its float64 temporaries stay near 50 MB.
_BLOCK_NBYTES = 4 << 20

_NORMS: dict[str, Callable[..., Array]] = {"layer_norm": layer_norm, "rms_norm": rms_norm, "scale_norm": scale_norm}


@dataclass(frozen=True)
class Job:
    """What to do to a file."""

    norm: str
    weight: Array | float | None
    bias: Array | None
    axis: tuple[int, ...]
    eps: float
    dtype: str | None = None  # of the result; None: the file's own


@dataclass(frozen=True)
class _Piece:
    """A C-ordered part of the file's data, and how to normalize it."""

    start: int  # in elements from the file's first
    shape: tuple[int, ...]
    axes: tuple[int, ...]


def open_npy(path: Path) -> Any:
    """Map an .npy file; ValueError where it is none, OSError where it cannot be read."""
    mode = path.stat().st_mode
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):  # opening a pipe waits for whoever writes into it
        raise ValueError(f"{path} is not a regular file; give the data in a file")
    try:
        with warnings.catch_warnings(action="error"):  # of headers that NumPy takes in spite of what is odd in them
            _refuse_elements_that_are_arrays(path)
            # Not numpy.load, which takes archives and pickles for what they are.
            return numpy.lib.format.open_memmap(path, mode="r")
    except (ValueError, EOFError, TypeError, OverflowError, SyntaxError, tokenize.TokenError, Warning) as error:
        reason = str(error).partition("\n")[0]
        if "magic" in reason:
            reason = "it holds another format"
        raise ValueError(f"{path} is not a readable .npy file: {reason}") from None


def _refuse_elements_that_are_arrays(path: Path) -> None:
    """Raise ValueError for a dtype such as ('<f4', (2,)), which numpy.load refuses and open_memmap does not."""
    with path.open("rb") as file:
        version = numpy.lib.format.read_magic(file)
        # 3.0 differs from 2.0 in the names of fields alone.
        read = numpy.lib.format.read_array_header_1_0 if version == (1, 0) else numpy.lib.format.read_array_header_2_0
        dtype = read(file)[2]
    if dtype.subdtype is not None:
        raise ValueError(f"its elements are arrays, of dtype {dtype}")


def normalize_npy(
    source: Path, target: Path, job: Job, *, overwrite: bool, advance: Callable[[int], Any] = lambda nbytes: None
) -> None:
    """Write the normalized ``source`` to ``target``, which appears whole or not at all.

    ``advance`` is told the number of bytes of the source dealt with so far, block by block.
    """
    x = open_npy(source)
    explain(x, job.weight, job.bias, norm=job.norm, axis=job.axis, eps=job.eps)  # raises for what does not fit
    dtype = numpy.dtype(job.dtype or x.dtype)
    fortran = x.ndim > 1 and x.flags.f_contiguous and not x.flags.c_contiguous
    header = {"descr": numpy.lib.format.dtype_to_descr(dtype), "fortran_order": fortran, "shape": x.shape}
    axes = tuple(sorted(axis % x.ndim for axis in job.axis))
    whole = _Piece(0, x.shape, axes)
    if fortran:  # data in Fortran order is the transpose in C order
        whole = _Piece(0, x.shape[::-1], tuple(sorted(x.ndim - 1 - axis for axis in axes)))
        job = replace(job, weight=_transposed(job.weight), bias=_transposed(job.bias))
    with _replacing(target, overwrite) as file:
        numpy.lib.format.write_array_header_1_0(file, header)
        _reserve(file, x.size * dtype.itemsize)
        if x.size:
            work = _Work(source, x.offset, x.dtype, dtype, job, file, advance)
            for piece in _pieces(whole, x.dtype.itemsize):
                work.normalize(piece)


def _transposed(parameter: Array | float | None) -> Array | float | None:
    return parameter.T if isinstance(parameter, numpy.ndarray) else parameter


def _pieces(piece: _Piece, itemsize: int) -> Iterator[_Piece]:
    """Take leading axes off while one step along them is too much to hold."""
    step = math.prod(piece.shape[1:])
    if 0 in piece.axes or step * itemsize <= _BLOCK_NBYTES:
        yield piece
        return
    for index in range(piece.shape[0]):
        inner = _Piece(piece.start + index * step, piece.shape[1:], tuple(axis - 1 for axis in piece.axes))
        yield from _pieces(inner, itemsize)


@dataclass(frozen=True)
class _Work:
    """One file on its way into another."""

    source: Path
    offset: int
    dtype_in: Any
    dtype_out: Any
    job: Job
    file: IO[bytes]
    advance: Callable[[int], Any]

    def normalize(self, piece: _Piece) -> None:
        """One pass where rows are whole in each block; two where the blocks cut them, with moments between."""
        statistics: Moments | None = None
        # Axes 0, 1, ... that are all normalized are one long axis, which blocks may cut anywhere.
        leading = next((i for i in range(len(piece.shape)) if i not in piece.axes), len(piece.shape))
        if leading:
            piece = _Piece(
                piece.start,
                (math.prod(piece.shape[:leading]), *piece.shape[leading:]),
                (0, *(axis - leading + 1 for axis in piece.axes[leading:])),
            )
            for _, block in self._blocks(piece, advancing=0.5):
                part = moments(block, axis=piece.axes)
                statistics = part if statistics is None else statistics.merge(part)
        weight, bias = self.job.weight, self.job.bias
        if leading:  # once, for it copies a parameter whose memory is in another order
            weight, bias = (_joined(parameter, leading) for parameter in (weight, bias))
        for where, block in self._blocks(piece, advancing=0.5 if leading else 1.0):
            if leading:
                self._write(self._norm(block, piece, _part(weight, where), _part(bias, where), statistics))
            else:
                self._write(self._norm(block, piece, weight, bias, statistics))

    def _blocks(self, piece: _Piece, advancing: float) -> Iterator[tuple[slice, Array]]:
        """Map one block after the other, each for itself, so that pages of those behind are let go."""
        step = math.prod(piece.shape[1:])
        rows = max(1, _BLOCK_NBYTES // (step * self.dtype_in.itemsize))
        for first in range(0, piece.shape[0], rows):
            where = slice(first, min(first + rows, piece.shape[0]))
            block = numpy.memmap(
                self.source,
                self.dtype_in,
                "r",
                self.offset + (piece.start + first * step) * self.dtype_in.itemsize,
                (where.stop - first, *piece.shape[1:]),
            )
            # A result wider than the data is computed in its own dtype, so that it is rounded once.
            yield where, block.astype(numpy.promote_types(self.dtype_in, self.dtype_out), copy=False)
            self.advance(int(block.nbytes * advancing))

    def _norm(self, block: Array, piece: _Piece, weight: Any, bias: Any, statistics: Moments | None) -> Array:
        options: dict[str, Any] = {"axis": piece.axes, "eps": self.job.eps, "moments": statistics}
        if self.job.norm == "scale_norm":
            return scale_norm(block, weight, **options)
        return _NORMS[self.job.norm](block, weight, bias, **options)

    def _write(self, y: Array) -> None:
        try:
            with numpy.errstate(over="raise", under="ignore"):
                y = y.astype(self.dtype_out, copy=False)
        except FloatingPointError:
            raise ValueError(f"a result does not fit in {self.dtype_out}; choose a wider --dtype") from None
        self.file.write(numpy.ascontiguousarray(y).data)


def _joined(parameter: Any, leading: int) -> Any:
    """A parameter whose first axes are made one, as those of the data are."""
    return parameter.reshape(-1, *parameter.shape[leading:]) if isinstance(parameter, numpy.ndarray) else parameter


def _part(parameter: Any, where: slice) -> Any:
    return parameter[where] if isinstance(parameter, numpy.ndarray) else parameter


@contextmanager
def _replacing(target: Path, overwrite: bool) -> Iterator[IO[bytes]]:
    """A file beside the target that takes its place once it is whole and on disk; removed on any failure."""
    try:
        target = target.resolve()
    except RuntimeError:  # so does Python before 3.13 call a loop of symbolic links
        raise FileNotFoundError(f"{target} is a loop of symbolic links") from None
    _require_absent(target, overwrite)
    part = target.with_name(f".anynorm-{secrets.token_hex(8)}.part")
    try:
        with open(part, "xb") as file:
            if target.exists():  # nobody may read the new file who may not read the old one
                shutil.copymode(target, part)
            yield file
            file.flush()
            os.fsync(file.fileno())
        _require_absent(target, overwrite)
        os.replace(part, target)
    finally:
        part.unlink(missing_ok=True)


def _require_absent(target: Path, overwrite: bool) -> None:
    if not target.parent.is_dir():
        raise FileNotFoundError(f"{target.parent} is not a directory; make it first")
    if target.is_dir():
        raise IsADirectoryError(f"{target} is a directory; name a file")
    if target.is_symlink() or (target.exists() and not target.is_file()):
        raise FileExistsError(f"{target} is not a regular file, and is left as it is")
    if target.exists() and not overwrite:
        raise FileExistsError(f"{target} exists; pass --force to overwrite it")


def _reserve(file: IO[bytes], nbytes: int) -> None:
    """Have a full disk say so before the work rather than after, where the system can reserve space."""
    if not nbytes or not hasattr(os, "posix_fallocate"):
        return
    try:
        os.posix_fallocate(file.fileno(), file.tell(), nbytes)
    except OSError as error:
        if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL):  # what file systems say that cannot reserve
            raise OSError(error.errno, f"{error.strerror}; the result takes {nbytes} bytes", file.name) from None
