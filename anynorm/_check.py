"""Arguments -> one Call; every rule about arguments and every message is here.

The common case, NumPy arrays normalized over the last axis, costs a few microseconds: a dictionary look-up for the type
and one for the dtype, and comparisons.
"""

from __future__ import annotations

import math
import operator
from numbers import Real
from typing import Any, NamedTuple

from anynorm._definition import Precision, Rule
from anynorm._libraries import REAL_DTYPES, Library, dtype_name, library_of, library_of_blocks
from anynorm._moments import Moments, known, shapes_agree
from anynorm._overlap import require_memory, require_separate, require_writable

Array = Any
Out = Any

_accepted: dict[tuple[type, Any], Library] = {}


class Call(NamedTuple):
    """One checked call: everything a kernel has to know."""

    rule: Rule
    library: Library
    precision: Precision
    x: Array
    axes: tuple[int, ...]  # the normalized ones, ascending, none negative
    eps: float
    weight: Array | float | None  # a number for scale_norm alone
    bias: Array | None
    weight_offset: float
    moments: Moments | None
    residual: Array | None
    out: tuple[Array, ...] | None  # (y,), or (y, total) where there is a residual


class Gradient(NamedTuple):
    """A checked call to be differentiated, and the gradients of some loss by what it has returned."""

    call: Call  # without residual and out
    dy: Array
    dtotal: Array | None  # by x itself, where that is the sum with a residual
    parameters: bool = True  # whether the gradients by weight and bias are wanted


def check(
    rule: Rule,
    x: Array,
    weight: Array | None,
    bias: Array | None,
    axis: int | tuple[int, ...],
    eps: float,
    *,
    weight_offset: float = 0.0,
    moments: Moments | None = None,
    residual: Array | None = None,
    out: Out = None,
) -> Call:
    """Check the arguments of a norm; return them as a Call, or raise with a message that says what to do."""
    library = _check_array("x", x)
    held = library if library.block is None else _check_blocks(x)
    axes = _check_axes(axis, x)
    if not (type(eps) is float and 0.0 <= eps < math.inf):
        eps = check_number("eps", eps, least=0.0)
    if weight is not None:
        if rule.averaged:
            weight = _check_parameter("weight", weight, x, library, axes)
        else:
            weight = _check_scale(weight, x, library)
    if bias is not None:
        bias = _check_parameter("bias", bias, x, library, axes)
    if held.refuses_to_fill and (rule.centred or bias is not None):
        raise TypeError(
            f"{'centring' if rule.centred else 'a bias'} would make every zero of a sparse array nonzero; "
            "pass x.todense(), or use rms_norm without bias or scale_norm, which keep zeros"
        )
    if weight_offset != 0.0:
        weight_offset = check_number("weight_offset", weight_offset)
        if weight is None:
            raise ValueError("weight_offset is added to weight; pass weight too, or leave weight_offset out")
    if moments is not None:
        _check_moments(moments, x, library, axes)
    if residual is not None:
        _check_twin("residual", residual, x, library)
    if out is not None:
        out = _check_out(out, x, library, weight, bias, residual, moments)
    return Call(rule, library, library.precision(x), x, axes, eps, weight, bias, weight_offset, moments, residual, out)


def check_gradient(call: Call, dy: Array, dtotal: Array | None = None) -> Gradient:
    """Check what a pullback is given: arrays like the result of the call, whose own are to be there still."""
    held = {"x": call.x, "weight": None if isinstance(call.weight, float) else call.weight, "bias": call.bias}
    for name, one in held.items():
        if one is not None and call.library.dense is not None:
            require_memory(name, one)
    _check_twin("dy", dy, call.x, call.library)
    if dtotal is not None:
        _check_twin("dtotal", dtotal, call.x, call.library)
    return Gradient(call, dy, dtotal)


def _check_array(argument: str, value: Array) -> Library:
    """Library and dtype."""
    library = _accepted.get((type(value), getattr(value, "dtype", None)))
    if library is None:
        library = _check_new_kind(argument, value)
    if library.dense is not None:
        _check_dense(argument, value, library)
    return library


def _check_dense(argument: str, tensor: Array, library: Library) -> None:
    """Of a torch tensor, that it holds its numbers one by one in memory of its own."""
    if tensor.is_nested:
        raise TypeError(
            f"{argument} must be a dense tensor, got a nested one; pass the tensors of {argument}.unbind() one by one, "
            "or use the modules of anynorm.torch"
        )
    if tensor.layout != library.dense:
        raise TypeError(f"{argument} must be a dense tensor, got layout {tensor.layout}; pass {argument}.to_dense()")
    require_memory(argument, tensor)


def _check_new_kind(argument: str, value: Array) -> Library:
    """The same for a type and dtype that were not met before."""
    try:
        library = library_of(value)
    except TypeError as error:
        raise TypeError(f"{argument} {error}") from None
    if dtype_name(value.dtype) not in REAL_DTYPES:
        raise TypeError(
            f"{argument} must have a real floating dtype ({', '.join(REAL_DTYPES)}), got {value.dtype}; "
            f"convert it first, say to float32"
        )
    _accepted[type(value), value.dtype] = library
    return library


def _check_blocks(x: Array) -> Library:
    """The library of the arrays that a lazy one is made of."""
    try:
        return library_of_blocks(x)
    except TypeError as error:
        raise TypeError(f"the blocks of x {error}") from None


def _check_axes(axis: int | tuple[int, ...], x: Array) -> tuple[int, ...]:
    """The normalized axes, ascending and none negative; their lengths must be known."""
    ndim = len(x.shape)
    if type(axis) is int and ndim and -ndim <= axis < ndim:
        axes: tuple[int, ...] = (axis % ndim,)
    else:
        axes = _check_odd_axes(axis, x)
    for one in axes:
        if not known(x.shape[one]):
            raise ValueError(
                f"the length of the normalized axis {one} must be known, got shape {tuple(x.shape)}; "
                "for Dask call x.compute_chunk_sizes() first, for ndonnx declare the length"
            )
    return axes


def _check_odd_axes(axis: Any, x: Array) -> tuple[int, ...]:
    shape = tuple(x.shape)
    if not shape:
        raise ValueError("x must have at least one axis to normalize over, got shape (); pass x.reshape(1)")
    try:
        given = tuple(map(_index, axis)) if isinstance(axis, (tuple, list)) else (_index(axis),)
    except TypeError:
        raise TypeError(f"axis must be an int or a tuple of ints, got {axis!r}") from None
    if not given:
        raise ValueError("axis must name at least one axis, got an empty tuple")
    for one in given:
        if not -len(shape) <= one < len(shape):
            raise ValueError(
                f"axis {one} does not fit x of shape {shape}: it must lie in [{-len(shape)}, {len(shape)})"
            )
    axes = tuple(sorted({one % len(shape) for one in given}))
    if len(axes) != len(given):
        raise ValueError(f"axis must name each axis once, got {axis} for x of shape {shape}")
    return axes


def _index(axis: Any) -> int:
    if isinstance(axis, bool):  # True is 1 to Python, and never meant as that axis
        raise TypeError
    return operator.index(axis)


def check_number(argument: str, value: Any, least: float = -math.inf) -> float:
    if not isinstance(value, Real) or isinstance(value, bool):
        raise TypeError(f"{argument} must be a number, got {type(value).__name__}")
    try:
        number = float(value)
    except OverflowError:  # an int or a fraction past the largest float
        number = math.inf
    if not (math.isfinite(number) and number >= least):
        must = "finite" if least == -math.inf else "finite and not negative"
        raise ValueError(f"{argument} must be {must}, got {number}")
    return number


def _check_parameter(argument: str, value: Array, x: Array, library: Library, axes: tuple[int, ...]) -> Array:
    """A weight or bias: library, device, and the shape of the normalized axes in the array's own order."""
    value = _made_lazy(argument, value, x, library)
    _check_same_place(argument, value, x, library)
    shape = x.shape
    expected = (shape[axes[0]],) if len(axes) == 1 else tuple([shape[axis] for axis in axes])
    if tuple(value.shape) != expected:
        raise ValueError(
            f"{argument} must have the shape of the normalized axes, {expected} "
            f"(x has shape {tuple(x.shape)}, axis {axes if len(axes) > 1 else axes[0]}), got {tuple(value.shape)}"
        )
    return value


def _check_scale(scale: Any, x: Array, library: Library) -> Array | float:
    if isinstance(scale, Real) and not isinstance(scale, bool):
        return check_number("scale", scale)
    if not hasattr(scale, "shape"):
        raise TypeError(f"scale must be a number or a 0-d array, got {type(scale).__name__}")
    scale = _made_lazy("scale", scale, x, library)
    _check_same_place("scale", scale, x, library)
    if tuple(scale.shape) != ():
        raise ValueError(
            f"scale must be a number or a 0-d array, got shape {tuple(scale.shape)}; pass scale.reshape(())"
        )
    return scale


def _made_lazy(argument: str, value: Array, x: Array, library: Library) -> Array:
    """A parameter of the library that x's blocks are of as one of x's own."""
    if library.block is None or _check_array(argument, value) is not library_of_blocks(x):
        return value
    return library.namespace.asarray(value)


def _check_same_place(argument: str, value: Array, x: Array, library: Library) -> None:
    """Same library and same device as x."""
    if _check_array(argument, value) is not library:
        raise TypeError(
            f"x and {argument} must come from one library, got {type(x).__module__}.{type(x).__qualname__} "
            f"and {type(value).__module__}.{type(value).__qualname__}; convert {argument}"
        )
    if library.devices and value.device != x.device:
        raise ValueError(f"x and {argument} must be on one device, got {x.device} and {value.device}; move {argument}")


def _check_twin(argument: str, value: Array, x: Array, library: Library) -> None:
    """An array like x: library, device, dtype and shape."""
    _check_same_place(argument, value, x, library)
    if value.dtype != x.dtype or not shapes_agree(tuple(value.shape), tuple(x.shape)):
        raise ValueError(
            f"{argument} must have x's shape and dtype, {tuple(x.shape)} of {x.dtype}, "
            f"got {tuple(value.shape)} of {value.dtype}"
        )


def _check_moments(moments: Moments, x: Array, library: Library, axes: tuple[int, ...]) -> None:
    if not isinstance(moments, Moments):
        raise TypeError(f"moments must be what anynorm.moments returned, got {type(moments).__name__}")
    expected = tuple(1 if axis in axes else length for axis, length in enumerate(x.shape))
    if not shapes_agree(moments.shape, expected):
        raise ValueError(
            f"moments must have shape {expected}, that of x, {tuple(x.shape)}, with the normalized axes of length 1; "
            f"got {moments.shape}"
        )
    if not moments.count:
        raise ValueError("moments of no elements cannot normalize anything; merge some with a count above 0")
    if moments.namespace is not library.namespace:
        raise TypeError(f"moments must come from arrays of x's library, {library.name}; take them of such an array")
    if moments.paired != bool(library.precision(x).digits):
        raise ValueError(
            f"moments must come from data as wide as x, of {x.dtype}: those of float64 and of narrower floats "
            "do not mix; convert x, or take the moments of data of x's dtype"
        )


def _check_out(
    out: Out,
    x: Array,
    library: Library,
    weight: Array | float | None,
    bias: Array | None,
    residual: Array | None,
    moments: Moments | None,
) -> tuple[Array, ...]:
    """Each out like x, writable, and overlapping nothing except x (or residual) exactly."""
    outs: tuple[Array, ...]
    names: tuple[str, ...]
    if residual is None:
        outs, names = (out,), ("out",)
    elif isinstance(out, tuple) and len(out) == 2:
        outs, names = out, ("out[0]", "out[1]")
    else:
        raise TypeError(f"out must be a pair of arrays (y, total), got {type(out).__name__}")
    if not library.writable:
        raise TypeError(f"arrays of {library.name} cannot be written in place; leave out= away and use the result")
    inputs = {"x": x, "residual": residual}
    parameters = {"weight": None if isinstance(weight, Real) else weight, "bias": bias}
    for index, (name, one) in enumerate(zip(names, outs, strict=True)):
        _check_twin(name, one, x, library)
        require_writable(name, one, library.name)
        others = dict(zip(names[index + 1 :], outs[index + 1 :], strict=True))
        require_separate(name, one, inputs, parameters | others, library.name)
    return outs
