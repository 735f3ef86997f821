"""Moments by the kernels, and rows normalized with given ones: `anynorm.moments`, and ``moments=``.

What lies between both, merging and step 2 of the definition, is a few numbers a row, and done by NumPy.
"""

from __future__ import annotations

from typing import Any

import numpy

from anynorm._check import Call
from anynorm._definition.merging import step_of_given
from anynorm._definition.norms import Precision
from anynorm._definition.pairs import add_pairs, multiply_pairs, ratio_pair, renormalize, two_sum
from anynorm._kernels import definition
from anynorm._kernels.cpu import scale_of
from anynorm._kernels.cpu.compiler.entries import kernel
from anynorm._kernels.cpu.kernels.task import Task, Variant
from anynorm._kernels.cpu.language.dtypes import FINISHED, REDUCED, RULES
from anynorm._kernels.cpu.launch.layout import Layout, lay_out
from anynorm._kernels.cpu.launch.machine import empty_like
from anynorm._kernels.cpu.launch.tasks import dtype_of, features_of, may_stream, task_of
from anynorm._kernels.cpu.threads.crew import launch
from anynorm._libraries import library_of
from anynorm._moments import Moments, arrays_of, mapped, of_arrays, statistics_of

Array = Any

# Of rows of float64 that the kernel reduces and whose unit is 1; those of other magnitudes have another, which the
# definition knows to choose. Factors beyond are left to it too.
_LEAST_SQUARES, _MOST_SQUARES, _MOST_SHIFT = 2.0**-400, 2.0**360, 2.0**180
_MOST_FACTOR = 2.0**400
_LARGEST = 1.7976931348623157e308


def run_moments(call: Call) -> Moments:
    """Return the moments of the call's array."""
    numbers = numbers_like(call, REDUCED)
    layout = lay_out(call, dtype_of(call.x.dtype).itemsize, None, call.x, numbers=numbers, columns=True)
    _launch("moments", call, layout, *task_of(call, None, None, None, layout, numbers=numbers))
    with numpy.errstate(all="ignore"):
        moments = (_paired_moments if call.precision.digits else _plain_moments)(call, numbers)
    if call.library.name == "numpy":
        return moments
    import torch

    found = mapped(lambda part: torch.from_numpy(numpy.ascontiguousarray(part)), statistics_of(moments))
    return Moments(found, call.library.namespace)


def _plain_moments(call: Call, numbers: Array) -> Moments:
    count = features_of(call)
    shift, sums, squares = (numbers[..., i] for i in range(3))
    if not call.rule.centred:
        return of_arrays(count, [None, None, None, squares.copy(), None, None], numpy)
    between = sums / count
    squares = squares - sums * between
    # A row that is constant has no deviations, and rounding could leave less.
    squares = numpy.where(squares < 0.0, 0.0, squares)
    return of_arrays(count, [*two_sum(shift, between), None, squares, None, None], numpy)


def _paired_moments(call: Call, numbers: Array) -> Moments:
    """Those of float64, in the unit that rows of ordinary magnitude have; the definition forms the others."""
    count = features_of(call)
    shift, sums, squares = numbers[..., 0], (numbers[..., 1], numbers[..., 2]), (numbers[..., 3], numbers[..., 4])
    constant = (squares[0] == 0.0) & (sums[0] == 0.0) & (numpy.abs(shift) > 2.0**-200)
    safe = (squares[0] > _LEAST_SQUARES) & (squares[0] < _MOST_SQUARES) | constant
    safe &= numpy.abs(shift) < _MOST_SHIFT
    sums, squares = renormalize(*sums), renormalize(*squares)
    mean: Any = (None, None)
    if call.rule.centred:
        between = multiply_pairs(sums, ratio_pair(1, count, 53), 53)
        high, low = two_sum(shift, between[0])
        mean = renormalize(high, low + between[1])
        of_shift = multiply_pairs(sums, between, 53)
        squares = add_pairs(squares, (-of_shift[0], -of_shift[1]))
    found = of_arrays(count, [*mean, None, *squares, numpy.ones_like(shift)], numpy)
    if safe.all():
        return found
    others = definition.run_moments(in_numpy(call))
    parts = zip(arrays_of(found), arrays_of(others), strict=True)
    return of_arrays(
        count, [None if a is None else numpy.where(safe, a, 0.0 if b is None else b) for a, b in parts], numpy
    )


def run(call: Call) -> Array:
    """Return y, by the moments that the call gives."""
    with numpy.errstate(all="ignore"):
        numbers, safe = _finished(call)
    if not safe.any():
        return _by_definition(call)
    # Before anything is written, for that may be in place of x.
    others = None if safe.all() else _by_definition(call._replace(out=None))
    y = apply_numbers(call, numbers)
    if y is None:
        return _by_definition(call)
    if others is not None:
        xp = call.library.namespace
        y[...] = xp.where(xp.asarray(safe), y, others)
    if call.out is not None:
        call.library.memory.written(y)
    return y


def apply_numbers(call: Call, numbers: Array) -> Array | None:
    """Apply numbers to each row, as the kernel does; None where the weights are such that it cannot."""
    y = empty_like(call.library.memory, call.x) if call.out is None else call.out[0]
    streaming = may_stream(call, y, None)
    itemsize = dtype_of(call.x.dtype).itemsize
    layout = lay_out(call, itemsize, None, y, numbers=numbers, streaming=streaming, columns=True)
    task, keepalive = task_of(call, None, y, None, layout, numbers=numbers, streaming=streaming)
    return y if _launch("given", call, layout, task, keepalive) else None


def _by_definition(call: Call) -> Array:
    """Through the definition, of NumPy arrays: tensors then have the same bits."""
    arrays = [one for one in (call.x, call.weight, call.bias) if one is not None and not isinstance(one, float)]
    if call.library.name == "numpy" or any("bfloat16" in str(one.dtype) for one in arrays):
        return definition.run(call)
    parameters: tuple[Any, ...] = (call.weight, call.bias)
    weight, bias = (one.detach().numpy() if hasattr(one, "detach") else one for one in parameters)
    call_in_numpy = in_numpy(call)._replace(weight=weight, bias=bias, moments=moments_in_numpy(call.moments), out=None)
    y = call.library.namespace.asarray(definition.run(call_in_numpy))
    if call.out is None:
        return y
    call.out[0][...] = y
    return call.out[0]


def _finished(call: Call) -> tuple[Array, Array]:
    """What the kernel applies to each row, and to which rows it may."""
    numbers, digits, rule = numbers_like(call, FINISHED), call.precision.digits, call.rule
    given = statistics_of(moments_in_numpy(call.moments))
    step = step_of_given(numpy, given, rule, call.eps, Precision(numpy.float64, digits))
    scale = 1.0 if rule.averaged else scale_of(call)
    # Infinity times a zero of the row would be NaN.
    factor = numpy.clip(step.factor * scale, -_LARGEST, _LARGEST)
    shift, low = (0.0 if one is None else one for one in (step.shift, step.shift_low))
    if not digits:
        # An eps beyond any row has a unit of its own, in which the kernel does not compute.
        numbers[..., 0], numbers[..., 1], numbers[..., 2] = shift, factor, -low * factor
        return numbers, numpy.asarray(step.unit is None)
    own: Any = step.unit
    for place, one in enumerate((shift / own, low / own, factor * own, 0.0)):
        numbers[..., place] = one
    size = numpy.abs(factor * own)
    # Of 0 or NaN only where the row or the scale is: a product may also have left the range.
    nothing = (size == 0.0) & ((step.factor == 0.0) | (scale == 0.0)) | numpy.isnan(step.factor)
    ordinary = (size < _MOST_FACTOR) & (size > 1.0 / _MOST_FACTOR) | nothing
    return numbers, ordinary & ~(numpy.abs(shift / own) > _MOST_SHIFT)


def numbers_like(call: Call, count: int) -> Array:
    """Memory for so many numbers a row, in the shape of moments with one axis more."""
    return numpy.empty((*(1 if axis in call.axes else n for axis, n in enumerate(call.x.shape)), count))


def in_numpy(call: Call) -> Call:
    """The call for the definition, of a NumPy array."""
    x = host(call.x)
    return call._replace(x=x, library=library_of(x), precision=library_of(x).precision(x))


def moments_in_numpy(moments: Any) -> Moments:
    """The same of moments."""
    return Moments(mapped(host, statistics_of(moments)), numpy)


def host(array: Any) -> Any:
    """A NumPy array of the memory of another one, of which autograd may want a gradient."""
    return numpy.asarray(array.detach().resolve_neg() if hasattr(array, "detach") else array)


def _launch(name: str, call: Call, layout: Layout | None, task: Task, keepalive: Any) -> bool:
    """Run a kernel on all rows, in several threads where that pays; whether it took them."""
    variant = Variant(RULES[call.rule.name], dtype_of(call.x.dtype).code, in_float64=True, has_layout=task.layout != 0)
    of_rows = kernel(name, variant)
    # Whether weights are safe is seen before the first row.
    if of_rows.run(task, 0, 0) < 0:
        return False
    if layout is None or not layout.in_columns:
        launch(of_rows, task, task.rows, call.x.nbytes, keepalive)
        return True
    of_columns, rows_of = kernel(f"{name}_columns", variant), layout.rows_of

    def resume(first: int, last: int) -> None:
        while first < last:
            first = of_columns.run(task, first, last)
            if first < last:  # it stopped at a block of which it cannot hold all rows
                rows = rows_of(first, first + 1)
                of_rows.run(task, rows.start, rows.stop)
                first += 1

    launch(of_columns, task, layout.units, call.x.nbytes, keepalive, resume)
    return True
