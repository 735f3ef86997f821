"""Arguments -> one Call; every rule about arguments and every message is here or, of arrays alone, in _arrays.py.

The common case, NumPy arrays normalized over the last axis, costs a few microseconds: a dictionary look-up for the type
and one for the dtype, and comparisons.
"""

from __future__ import annotations

import math
from numbers import Real
from typing import Any, NamedTuple

from anynorm._arrays import check_array, check_blocks, check_same_place
from anynorm._definition.counting import by_row
from anynorm._definition.norms import Precision, Rule
from anynorm._lengths import require_blocks_alike, require_lengths, shapes_agree
from anynorm._libraries import Library, library_of, library_of_blocks
from anynorm._moments import Moments, digits_of, statistics_of, suited
from anynorm._moments_gradient import MomentsGradient, parts_of, require_gradient
from anynorm._numbers import as_index, check_number
from anynorm._overlap import require_memory, require_separate, require_writable
from anynorm._parameters import check_parameter, check_scale, check_shape
from anynorm._totals import check_residual, check_twin, dtype_of_total, precision_of_total
from anynorm._types import Axis
from anynorm._wording import arrays_of_library, describe, module_of, sentence

Array = Any
Out = Any


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
    skip_nan: bool = False  # of `moments` alone: NaN stands for a missing element


class Gradient(NamedTuple):
    """A checked call to be differentiated, and the gradients of some loss with respect to its results."""

    call: Call  # without residual and out, and by the formula of its rule, without roundings
    dy: Array
    dtotal: Array | None  # by x itself, where that is the sum with a residual
    parameters: bool = True  # whether the gradients of weight and bias are wanted


def check(
    rule: Rule,
    x: Array,
    weight: Array | None,
    bias: Array | None,
    axis: Axis,
    eps: float,
    *,
    weight_offset: float = 0.0,
    moments: Moments | None = None,
    residual: Array | None = None,
    out: Out = None,
) -> Call:
    """Check the arguments of a norm; return them as a Call, or raise with a message that says what to do."""
    library = check_array("x", x)
    of_blocks = library if library.block is None else check_blocks(x)
    axes = _check_axes(axis, x, measured=moments is None)
    if not (type(eps) is float and 0.0 <= eps < math.inf):
        eps = check_number("eps", eps, least=0.0)
    if weight is not None:
        if rule.averaged:
            weight = check_parameter("weight", weight, x, library, axes)
        else:
            weight = check_scale(weight, x, library)
    if bias is not None:
        bias = check_parameter("bias", bias, x, library, axes)
    if of_blocks.refuses_to_fill and (rule.centred or bias is not None):
        why = f"{'centring' if rule.centred else 'a bias'} would make every zero of a sparse array nonzero"
        do = "pass x.todense(), or use rms_norm without bias or scale_norm, which keep zeros"
        raise TypeError(sentence("x", f"be dense, for {why}", describe(x), do))
    if not (type(weight_offset) is float and weight_offset == 0.0):
        weight_offset = check_number("weight_offset", weight_offset)
        if weight is None and weight_offset:
            must = "be left out where there is no weight to add it to"
            raise ValueError(sentence("weight_offset", must, str(weight_offset), "pass weight too"))
    precision = library.precision(x)
    if precision.digits == 24:
        _check_range(rule, eps, weight, weight_offset)
    if moments is not None:
        moments = _check_moments(moments, x, library, axes)
    if residual is not None:
        check_residual(residual, x, library)
        precision = precision_of_total(x, residual, library)
    if out is not None:
        out = _check_out(out, x, library, weight, bias, residual)
    return Call(rule, library, precision, x, axes, eps, weight, bias, weight_offset, moments, residual, out)


def check_gradient(call: Call, dy: Array, dtotal: Array | None = None, dtype: Any = None) -> Gradient:
    """Check what a pullback is given: arrays like the result. The call's own must still be there and fit.

    ``dtype`` is that of y where x is a sum, whose dtype is wider.
    """
    arrays = {"x": call.x, "weight": None if isinstance(call.weight, float) else call.weight, "bias": call.bias}
    for name, one in arrays.items():
        if one is not None and call.library.dense is not None:
            require_memory(name, one)
        if one is not None and one is not call.x and call.rule.averaged:
            check_shape(name, one, call.x, call.axes)
    check_twin("dy", dy, call.x, call.library, dtype, "x's" if dtype is None else "y's")
    if dtotal is not None:
        check_twin("dtotal", dtotal, call.x, call.library)
    return Gradient(call._replace(rule=call.rule.formula), dy, dtotal)


def require_dense(x: Array) -> None:
    """Raise TypeError for a sparse array: its derivative by way of given moments is not sparse."""
    if library_of_blocks(x).refuses_to_fill:
        must, do = "be dense where a derivative by way of given moments is wanted", "pass x.todense()"
        raise TypeError(sentence("x", must, describe(x), do))


def check_moments_gradient(call: Call, moments: Moments, gradient: MomentsGradient) -> None:
    """Check what the pullback of moments is given: arrays like the moments, of any real floating dtype."""
    require_gradient(gradient)
    for name, one in zip(("gradient.mean", "gradient.variance"), parts_of(gradient)[:2], strict=True):
        if one is None:
            continue
        check_same_place(name, one, call.x, call.library)
        if not shapes_agree(tuple(one.shape), moments.shape):
            must, do = f"have the shape of the moments, {moments.shape}", "keep the normalized axes with length 1"
            raise ValueError(sentence(name, must, str(tuple(one.shape)), do))


def _check_axes(axis: Axis, x: Array, measured: bool) -> tuple[int, ...]:
    """The normalized axes, ascending and none negative; where moments are to be formed, of known lengths."""
    ndim = len(x.shape)
    if type(axis) is int and ndim and -ndim <= axis < ndim:
        axes: tuple[int, ...] = (axis % ndim,)
    else:
        axes = _check_odd_axes(axis, x)
    if measured:
        require_lengths(x, axes)
    return axes


def _check_odd_axes(axis: Any, x: Array) -> tuple[int, ...]:
    shape = tuple(x.shape)
    if not shape:
        raise ValueError(sentence("x", "have at least one axis to normalize over", "shape ()", "pass x.reshape(1)"))
    several = isinstance(axis, (tuple, list))
    given = tuple([as_index("axis", one, "an int or a tuple of ints") for one in (axis if several else (axis,))])
    axes = tuple(sorted({one % len(shape) for one in given}))
    if not all(-len(shape) <= one < len(shape) for one in given):
        must = f"lie in [{-len(shape)}, {len(shape)}) for x of shape {shape}"
    elif not given:
        must = "name at least one axis"
    elif len(axes) != len(given):
        must = f"name each axis once, for x of shape {shape}"
    else:
        return axes
    raise ValueError(sentence("axis", must, describe(axis), "pass an axis that x has, -1 for the last one"))


def _check_range(rule: Rule, eps: float, weight: Array | float | None, weight_offset: float) -> None:
    """Check that numbers fit into float32, where arrays are computed in float32."""
    limits = {
        "eps": (eps, "1e76" if rule.eps_place == "inside" else "3.4e38"),
        "weight_offset": (weight_offset, "3.4e38"),
    }
    if isinstance(weight, float):
        limits["scale"] = weight, "3.4e38"
    for name, (value, largest) in limits.items():
        if not abs(value) <= float(largest):
            must = f"be at most {largest} where arrays are computed in float32"
            raise ValueError(sentence(name, must, str(value), "pass a smaller one"))


def _check_moments(moments: Moments, x: Array, library: Library, axes: tuple[int, ...]) -> Moments:
    """Moments for arrays such as x: NumPy's are taken over, those of float64 data narrowed."""
    if not isinstance(moments, Moments):
        must, do = "be what anynorm.moments returned", "pass anynorm.moments(...), or anynorm.Moments.from_dict(...)"
        raise TypeError(sentence("moments", must, describe(moments), do))
    if not by_row(moments.count) and not moments.count:
        raise ValueError(
            sentence("moments", "be of one element or more", "a count of 0", "merge some with a count above 0")
        )
    digits = (library.precision(x) if library.block is None else check_blocks(x).precision(x._meta)).digits
    moments = suited(moments, library, x, digits)
    squares = statistics_of(moments).squares
    if moments.namespace is not library.namespace or library_of(squares) is not library:
        must = f"come from arrays of x's library, {library.name}"
        do = f"call moments.to({module_of(library.name)}) first"
        do = do if library.is_listed and not library.refuses_to_fill else "take them from such an array"
        raise TypeError(sentence("moments", must, f"those of {library_of(squares).name}", do))
    expected = tuple(1 if axis in axes else length for axis, length in enumerate(x.shape))
    if not shapes_agree(moments.shape, expected):
        must = f"have shape {expected}, that of x, {tuple(x.shape)}, with the normalized axes of length 1"
        lacking = len(expected) - len(moments.shape)
        do = "name the axes that they lack, as from_mean_variance(..., axis=0) does" if lacking > 0 else ""
        do = "keep each axis of x, as x[3:4] does for one row" if lacking < 0 else do
        raise ValueError(sentence("moments", must, str(moments.shape), do or "take them along the same axis"))
    if library.block is not None:
        free = {axis: axis for axis in range(x.ndim) if axis not in axes}
        require_blocks_alike("moments", squares, x, free)
    if library.devices and squares.device != x.device:
        must, got = f"be on x's device, {x.device}", f"those on {squares.device}"
        raise ValueError(sentence("moments", must, got, "call moments.to(device=x.device) first"))
    if digits_of(moments.namespace, statistics_of(moments)) != digits:
        must, got = f"come from data as wide as x, of {x.dtype}", "those of narrower floats"
        do = "convert x, or call moments.to(dtype=x.dtype) if their digits are enough"
        raise ValueError(sentence("moments", must, got, do))
    return moments


def _check_out(
    out: Out,
    x: Array,
    library: Library,
    weight: Array | float | None,
    bias: Array | None,
    residual: Array | None,
) -> tuple[Array, ...]:
    """Each out like x, writable, and overlapping nothing except x (or residual) exactly."""
    outs: tuple[Array, ...]
    names: tuple[str, ...]
    if residual is None:
        outs, names = (out,), ("out",)
    elif isinstance(out, tuple) and len(out) == 2:
        outs, names = out, ("out[0]", "out[1]")
    else:
        raise TypeError(sentence("out", "be a pair of arrays (y, total)", describe(out), "pass a tuple of two"))
    if not library.writable:
        must = f"be None, for {arrays_of_library(library.name)}s cannot be written in place"
        if not library.is_known_by_type:
            must = f"be None, for it cannot be told which memory {arrays_of_library(library.name)}s share"
        raise TypeError(sentence("out", must, describe(out), "call it without out= and use the result"))
    inputs = {"x": x, "residual": residual}
    parameters = {"weight": None if isinstance(weight, Real) else weight, "bias": bias}
    check_twin(names[0], outs[0], x, library)
    if residual is not None:
        check_twin(names[-1], outs[-1], x, library, dtype_of_total(x, residual, library), "the sum's")
    for index, (name, one) in enumerate(zip(names, outs, strict=True)):
        require_writable(name, one, library.memory)
        others = dict(zip(names[index + 1 :], outs[index + 1 :], strict=True))
        require_separate(name, one, inputs, parameters | others, library.memory)
    return outs
