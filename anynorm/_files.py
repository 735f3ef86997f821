"""Normalizes an .npy file into another, block by block, so that memory stays flat whatever the file's size."""

from __future__ import annotations

import math
import os
import secrets
import shutil
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
    try:
        # Not numpy.load, which takes archives and pickles for what they are.
        return numpy.lib.format.open_memmap(path, mode="r")
    except (ValueError, EOFError, TypeError) as error:
        reason = str(error).partition("\n")[0]
        if "magic" in reason:
            reason = "it holds another format"
        raise ValueError(f"{path} is not a readable .npy file: {reason}") from None


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
        for where, block in self._blocks(piece, advancing=0.5 if leading else 1.0):
            self._write(self._norm(block, where, piece, leading, statistics))

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

    def _norm(self, block: Array, where: slice, piece: _Piece, leading: int, statistics: Moments | None) -> Array:
        options: dict[str, Any] = {"axis": piece.axes, "eps": self.job.eps, "moments": statistics}
        if self.job.norm == "scale_norm":
            return scale_norm(block, self.job.weight, **options)
        parameters: list[Any] = [self.job.weight, self.job.bias]
        if leading:
            parameters = [None if p is None else p.reshape(-1, *p.shape[leading:])[where] for p in parameters]
        return _NORMS[self.job.norm](block, *parameters, **options)

    def _write(self, y: Array) -> None:
        try:
            with numpy.errstate(over="raise", under="ignore"):
                y = y.astype(self.dtype_out, copy=False)
        except FloatingPointError:
            raise ValueError(f"a result does not fit in {self.dtype_out}; choose a wider --dtype") from None
        self.file.write(numpy.ascontiguousarray(y).data)


@contextmanager
def _replacing(target: Path, overwrite: bool) -> Iterator[IO[bytes]]:
    """A file beside the target that takes its place once it is whole and on disk; removed on any failure."""
    target = Path(os.path.realpath(target))
    _require_absent(target, overwrite)
    part = target.with_name(f".{target.name}.{secrets.token_hex(4)}.part")
    try:
        with open(part, "xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        _require_absent(target, overwrite)
        if target.exists():
            shutil.copymode(target, part)
        os.replace(part, target)
    finally:
        part.unlink(missing_ok=True)


def _require_absent(target: Path, overwrite: bool) -> None:
    if not target.parent.is_dir():
        raise FileNotFoundError(f"{target.parent} is not a directory; make it first")
    if target.is_dir():
        raise IsADirectoryError(f"{target} is a directory; name a file")
    if target.exists() and not overwrite:
        raise FileExistsError(f"{target} exists; pass --force to overwrite it")


def _reserve(file: IO[bytes], nbytes: int) -> None:
    """Have a full disk say so before the work rather than after, where the system can reserve space."""
    if nbytes and hasattr(os, "posix_fallocate"):
        os.posix_fallocate(file.fileno(), file.tell(), nbytes)
