"""What is to be done to a file, and how it is done to one block of one of its arrays."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy

from anynorm._files.boxes import Box
from anynorm._libraries import REAL_DTYPES
from anynorm._moments import Moments, mapped, statistics_of
from anynorm._norms import layer_norm, rms_norm, scale_norm

Array = Any

_NORMS: dict[str, Callable[..., Array]] = {"layer_norm": layer_norm, "rms_norm": rms_norm, "scale_norm": scale_norm}

_NAME_LENGTH = 500  # of an array or a dtype in messages; that in a file may be of any length


@dataclass(frozen=True)
class Job:
    """What to do to a file."""

    norm: str
    weight: Array | float | None
    bias: Array | None
    axis: tuple[int, ...]
    eps: float
    dtype: str | None = None  # of the result; None: the file's own
    names: tuple[str, ...] = ()  # of the arrays to normalize; none: the only one there is
    fails_on_nan: bool = False
    moments: Moments | None = None  # given statistics, of NumPy arrays, to apply in place of the data's own
    columns: tuple[str, ...] = ()  # of a .parquet file: patterns of columns of numbers, which make up rows together


@dataclass(frozen=True)
class ArrayJob:
    """A job made to fit one array, its axes in the order in which they lie in the file."""

    job: Job
    name: str  # of the array, for messages
    shape: tuple[int, ...]
    axes: tuple[int, ...]  # the normalized ones, ascending
    dtype: Any
    dtype_out: Any
    weight: Array | float | None
    bias: Array | None
    moments: Moments | None  # given ones
    reversed: bool  # whether the order of axes in the file is that of the array turned round

    def normalize(self, box: Box, x: Array, moments: Moments | None = None) -> Array:
        """The result for one block, which is written over where it can be."""
        x = self.widened(x)
        if self.moments is not None:
            moments = self._moments_of(box)
        out = x if x.flags.writeable else None
        options: dict[str, Any] = {"axis": self.axes, "eps": self.job.eps, "moments": moments, "out": out}
        if self.axes == (x.ndim - 1,):
            options["axis"] = -1  # which has a fast path
        weight = self._part(self.weight, box)
        if self.job.norm == "scale_norm":
            y = scale_norm(x, weight, **options)
        else:
            y = _NORMS[self.job.norm](x, weight, self._part(self.bias, box), **options)
        return narrowed(y, self.dtype_out)

    def widened(self, x: Array) -> Array:
        """A block in the dtype to compute in: a result wider than the data has its own, so that it is rounded once."""
        return x.astype(_wide(self.dtype, self.dtype_out), copy=False)

    def _part(self, parameter: Any, box: Box) -> Any:
        """What of a parameter goes with a box, which may cut the normalized axes."""
        return parameter[tuple(box[axis] for axis in self.axes)] if isinstance(parameter, numpy.ndarray) else parameter

    def _moments_of(self, box: Box) -> Moments | None:
        """What of the given moments goes with a box."""
        given, free = self.moments, [axis for axis in range(len(self.shape)) if axis not in self.axes]
        if given is None or all(box[axis] == slice(0, self.shape[axis]) for axis in free):
            return given
        part = tuple(box[axis] if axis in free else slice(None) for axis in range(len(self.shape)))
        return _each_array(given, lambda one: one[part])


def fit(job: Job, name: str, shape: tuple[int, ...], dtype: Any, dtype_out: Any, in_reverse: bool = False) -> ArrayJob:
    """Check a job against an array; TypeError or ValueError, in words of the command line, where they do not fit.

    ``in_reverse``: the array lies in Fortran order, which is that of its transpose in C order.
    """
    name = name[:_NAME_LENGTH]
    require_float(name, dtype)
    _require_not_too_many_axes(name, shape)
    axes = _axes_in(job, name, shape)
    _require_parameters(job, name, tuple(shape[axis] for axis in axes))
    weight, bias, moments = job.weight, job.bias, _moments_for(job, name, shape, axes, _wide(dtype, dtype_out))
    if in_reverse:
        shape, axes = shape[::-1], tuple(sorted(len(shape) - 1 - axis for axis in axes))
        weight, bias = (one.T if isinstance(one, numpy.ndarray) else one for one in (weight, bias))
        moments = None if moments is None else _each_array(moments, lambda one: one.T)
    return ArrayJob(
        job, name, shape, axes, numpy.dtype(dtype), numpy.dtype(dtype_out), weight, bias, moments, in_reverse
    )


def require_float(name: str, dtype: Any) -> None:
    """Raise TypeError for what is not a real floating dtype."""
    if getattr(dtype, "name", None) not in REAL_DTYPES:
        raise TypeError(
            f"{name} holds {str(dtype)[:_NAME_LENGTH]}; normalize takes {', '.join(REAL_DTYPES)}: convert it first"
        )


def _require_not_too_many_axes(name: str, shape: tuple[int, ...]) -> None:
    try:
        numpy.empty((0,) * len(shape))
    except ValueError:
        raise ValueError(f"{name} has {len(shape)} axes, more than arrays of NumPy may have") from None


def _axes_in(job: Job, name: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The normalized axes, ascending and none negative."""
    if not shape:
        raise ValueError(f"{name} holds a single number, which has no axis to normalize over")
    for one in job.axis:
        if not -len(shape) <= one < len(shape):
            raise ValueError(
                f"--axis {one} does not fit {name} of shape {shape}: it must be {-len(shape)} to {len(shape) - 1}"
            )
    axes = tuple(sorted({one % len(shape) for one in job.axis}))
    if len(axes) != len(job.axis):
        raise ValueError(f"--axis {','.join(map(str, job.axis))} names an axis of {name} twice")
    return axes


def _require_parameters(job: Job, name: str, lengths: tuple[int, ...]) -> None:
    for option, value in (("--weight", job.weight), ("--bias", job.bias)):
        if isinstance(value, numpy.ndarray):
            require_float(f"the file of {option}", value.dtype)
            if value.shape != lengths:
                raise ValueError(
                    f"the file of {option} must have the shape of the normalized axes of {name}, {lengths}; "
                    f"it has {value.shape}"
                )
    if job.eps < 0 or not math.isfinite(job.eps):
        raise ValueError(f"--eps must be finite and not negative, not {job.eps}")
    if isinstance(job.weight, float) and not math.isfinite(job.weight):
        raise ValueError(f"--scale must be finite, not {job.weight}")


def _moments_for(job: Job, name: str, shape: tuple[int, ...], axes: tuple[int, ...], wide: Any) -> Moments | None:
    """The given moments, where there are some, as wide as what is computed."""
    given = job.moments
    if given is None:
        return None
    expected = tuple(1 if axis in axes else length for axis, length in enumerate(shape))
    if given.shape != expected:
        raise ValueError(
            f"the statistics of --moments must have shape {expected}, that of {name}, {shape}, with the normalized "
            f"axes of length 1; they have {given.shape}: take them along the same --axis"
        )
    if not numpy.any(given.count):
        raise ValueError("the statistics of --moments are those of no elements; take them of some")
    return given.astype(wide)


def _each_array(moments: Moments, function: Callable[[Array], Array]) -> Moments:
    """Moments whose arrays are what a function makes of these."""
    return Moments(mapped(function, statistics_of(moments)), moments.namespace)


def _wide(dtype: Any, dtype_out: Any) -> Any:
    """The dtype to compute in."""
    try:
        return numpy.promote_types(dtype, dtype_out)
    except TypeError:  # float16 and bfloat16 have none in common
        return numpy.dtype(numpy.float32)


def narrowed(y: Array, dtype: Any) -> Array:
    """A result in a dtype that may be narrower; ValueError where that has no room for it."""
    if y.dtype == dtype:
        return y
    with numpy.errstate(over="ignore", under="ignore"):
        narrow = y.astype(dtype)
    if numpy.isinf(narrow).any() and (numpy.isinf(narrow) & numpy.isfinite(y)).any():
        raise ValueError(f"a result does not fit in {dtype}; choose a wider --dtype")
    return narrow


def dtype_named(name: str) -> Any:
    """The dtype of a name; ValueError where it takes a package that is not there."""
    if name != "bfloat16":
        return numpy.dtype(name)
    try:
        import ml_dtypes
    except ImportError:
        raise ValueError("bfloat16 needs a package that is not installed: pip install ml_dtypes") from None
    return numpy.dtype(ml_dtypes.bfloat16)
