"""The program of the fast path: Python's arguments -> one task -> a kernel, without a step of the interpreter.

It looks at x, a residual, y, their total, weight and bias, and compares what it sees with what a kernel needs. Whatever
is out of the ordinary is left to the long way, and so are all messages. Like a kernel it is traced and compiled.
"""

from __future__ import annotations

import ctypes
import math
from collections.abc import Callable
from typing import Any

from anynorm._kernels.cpu.fast_path.record import BEGIN, IN_FLOAT64, KINDS, Record
from anynorm._kernels.cpu.fast_path.views import VIEW_NBYTES, View, is_of
from anynorm._kernels.cpu.fast_path.words import Fields, Require, call, call_for_real, static_word, way_out, word
from anynorm._kernels.cpu.kernels.task import Task
from anynorm._kernels.cpu.language.arithmetic import magnitude, where
from anynorm._kernels.cpu.language.dtypes import BY_CODE, CACHE_LINE_NBYTES, CHUNK, FEW_ROWS, LAYER, RMS, SCALE
from anynorm._kernels.cpu.language.flow import cases, cell, loop, when
from anynorm._kernels.cpu.language.memory import buffer, peek, store_integer, store_real

ARRAYS = ("x", "residual", "y", "total", "weight", "bias")
Look = Callable[..., None]


def normalize(look: Look, make: str, itself: Any, arguments: Any, count: Any) -> Any:
    """A builtin function of Python: rule, x, residual, y, total, weight, bias, eps, weight_offset.

    It returns y, or (y, total); None where it has written nothing; the row that a kernel stopped at, of a y that was
    given. Called with BEGIN arguments it is given the record.
    """
    record, result = static_word("record"), cell(0)
    for begins in cases(count == BEGIN):
        if begins:
            store_integer(record, arguments)
            continue
        known = Fields(word(record, 64))
        rooms = buffer(len(ARRAYS) * VIEW_NBYTES)
        views = {name: View(rooms + i * VIEW_NBYTES) for i, name in enumerate(ARRAYS)}
        made = {name: cell(0) for name in ("y", "total")}
        with way_out() as require:
            _normalize(known, look, make, arguments, views, made, result, require)
        for view in views.values():
            view.release(known)
        for one in made.values():
            for _ in when(one != 0):
                call(known.Py_DecRef, one)
    return result


def _normalize(
    known: Fields,
    look: Look,
    make: str,
    arguments: Any,
    views: dict[str, View],
    made: dict[str, Any],
    result: Any,
    require: Require,
) -> None:
    call(known.Py_IncRef, known.none)
    result[...] = known.none
    rule, x, residual, y, total, weight, bias, *numbers = [word(arguments + 8 * i, 64) for i in range(9)]
    norm = where(rule == known.layer_norm, LAYER, where(rule == known.scale_norm, SCALE, RMS))
    eps, offset = (_number_of(known, one, require) for one in numbers)
    require(eps >= 0.0)

    of_x = views["x"]
    look(known, of_x, x, require)
    require(of_x.ndim != 0)
    features, size = of_x.length(of_x.ndim - 1), cell(1)
    for i in loop(0, of_x.ndim, 1):
        size[...] = size * of_x.length(i)
    nbytes = size * of_x.itemsize
    require((size != 0) & (nbytes <= known.most_nbytes))

    scale = _see_weight(known, look, views, weight, norm == SCALE, offset, features, require)
    _see_parameter(known, look, views["bias"], bias, of_x.code, features, require)
    has_residual = residual != known.none
    kernel = _kernel(known, views, norm, has_residual, offset)
    require(kernel != 0)

    y = _see_result(known, look, make, views, made, "y", x, y, result, require)
    result_of_sum = cell(0)
    for _ in when(has_residual):
        look(known, views["residual"], residual, require)
        _require_alike(views["residual"], of_x, require)
        result_of_sum[...] = _see_result(known, look, make, views, made, "total", x, total, result, require)
    require(_are_apart(views, nbytes, where(norm == SCALE, 1, features), features))

    rows = size // features
    task = _task(views, rows, features, norm == SCALE, eps, scale, offset)
    reached = _run(known, kernel, task, rows, size)
    for is_complete in cases(reached == rows):
        if is_complete:
            _answer(known, result, _results(known, y, result_of_sum))
            continue
        # In place the rows before this one are lost, so that the long way must go on from here.
        require((reached > 0) & (made["y"] == 0))
        _answer(known, result, call(known.PyLong_FromLongLong, reached))


def _answer(known: Fields, result: Any, value: Any) -> None:
    """Return this, in place of None."""
    call(known.Py_DecRef, result)
    result[...] = value


def _number_of(known: Fields, thing: Any, require: Require) -> Any:
    """A finite float of Python's."""
    require(is_of(known, thing, known.float))
    number = call_for_real(known.PyFloat_AsDouble, thing)
    require(magnitude(number) < math.inf)
    return number


def _see_parameter(
    known: Fields, look: Look, view: View, parameter: Any, code: Any, features: Any, require: Require
) -> None:
    """One number for each feature, or None, which is as one of the dtype of that code."""
    for is_given in cases(parameter != known.none):
        if is_given:
            look(known, view, parameter, require)
            require(view.ndim == 1)
            require(view.length(0) == features)
        else:
            view.leave_out(code)


def _see_weight(
    known: Fields,
    look: Look,
    views: dict[str, View],
    weight: Any,
    is_scale: Any,
    offset: Any,
    features: Any,
    require: Require,
) -> Any:
    """A weight, or a scale, which is returned: None, a float, or an array without axes."""
    view, code, scale = views["weight"], views["x"].code, cell(1.0)
    require((offset == 0.0) | (weight != known.none))
    for has_scale in cases(is_scale & (weight != known.none)):
        if not has_scale:
            _see_parameter(known, look, view, weight, code, features, require)
            continue
        for is_number in cases(is_of(known, weight, known.float)):
            if is_number:
                view.leave_out(code)
                scale[...] = call_for_real(known.PyFloat_AsDouble, weight)
                continue
            look(known, view, weight, require)
            require(view.ndim == 0)
            for number, dtype in enumerate(BY_CODE):
                for _ in when(view.code == number):
                    scale[...] = peek(view.place, dtype)
        require(magnitude(scale) < math.inf)
    return scale


def _kernel(known: Fields, views: dict[str, View], norm: Any, has_residual: Any, offset: Any) -> Any:
    """The address of the kernel; 0 where it has not been compiled yet."""
    code, is_averaged = views["x"].code, norm != SCALE
    # Pairs of float32 are formed of factors alone: what float32 does not hold of a parameter needs float64.
    is_wide = (views["weight"].code == 3) | (views["bias"].code == 3) | (offset != 0.0)
    kind = where((code == 2) & is_averaged & is_wide, IN_FLOAT64, code)
    return word(known.address + Record.kernels.offset + 8 * ((norm * 2 + where(has_residual, 1, 0)) * KINDS + kind), 64)


def _see_result(
    known: Fields,
    look: Look,
    make: str,
    views: dict[str, View],
    made: dict[str, Any],
    name: str,
    x: Any,
    given: Any,
    result: Any,
    require: Require,
) -> Any:
    """The array to write to: a given one, or one that is made and will be let go of if it is not returned."""
    found = cell(given)
    for _ in when(given == known.none):
        found[...] = call(known.PyObject_CallOneArg, getattr(known, make), x)
        made[name][...] = found
        for _ in when(found == 0):  # it has raised an error, which is to be seen
            _answer(known, result, 0)
        require(found != 0)
    look(known, views[name], found, require, writable=True)
    _require_alike(views[name], views["x"], require)
    return found


def _require_alike(a: View, b: View, require: Require) -> None:
    """Require one dtype and one shape."""
    require((a.code == b.code) & (a.ndim == b.ndim))
    are_alike = cell(True)
    for i in loop(0, a.ndim, 1):
        are_alike[...] = are_alike & (a.length(i) == b.length(i))
    require(are_alike)


def _are_apart(views: dict[str, View], nbytes: Any, weights: Any, features: Any) -> Any:
    """Whether results share no memory, but that x and the residual may be one of them each."""
    nbytes_of = dict.fromkeys(ARRAYS, nbytes)
    for name, count in (("weight", weights), ("bias", features)):
        nbytes_of[name] = views[name].itemsize * count
    apart: Any = True
    for result, others in (
        ("y", ("x", "residual", "total", "weight", "bias")),
        ("total", ("x", "residual", "weight", "bias")),
    ):
        for other in others:
            a, b = views[result].place, views[other].place
            is_beside = (a + nbytes <= b) | (b + nbytes_of[other] <= a) | (a == 0) | (b == 0)
            is_in_place = (a == b) if other in ("x", "residual") else False
            apart = (is_beside | is_in_place) & apart
    return apart


def _task(views: dict[str, View], rows: Any, features: Any, is_scale: Any, eps: Any, scale: Any, offset: Any) -> Any:
    """What the kernel is handed; its address."""
    code, itemsize = views["x"].code, views["x"].itemsize
    weight_code, bias_code = where(is_scale, code, views["weight"].code), views["bias"].code
    # Read where they lie, unless something is to be made of them or lanes would reach behind them.
    are_alike = (weight_code == code) & (bias_code == code) & (offset == 0.0)
    pays = (code == 2) | (features > CHUNK) | (rows < FEW_ROWS)
    is_direct = are_alike & pays & (features * itemsize >= CACHE_LINE_NBYTES)
    filled = {name: views[name].place for name in ARRAYS} | {
        "features": features, "rows": rows, "eps": eps, "scale": scale, "weight_offset": offset,
        "weight": where(is_scale, 0, views["weight"].place), "weight_code": weight_code, "bias_code": bias_code,
        "direct": where(is_direct, 1, 0),
    }  # fmt: skip
    task = buffer(ctypes.sizeof(Task))
    for name, kind in Task._fields_:
        at = task + getattr(Task, name).offset
        if kind is ctypes.c_double:
            store_real(at, filled[name])
        else:
            store_integer(at, filled.get(name, 0))
    return task


def _run(known: Fields, kernel: Any, task: Any, rows: Any, size: Any) -> Any:
    """Run the kernel, without Python's lock if that pays; return how far it has come."""
    state = cell(0)
    for _ in when(size > known.few_elements):
        state[...] = call(known.PyEval_SaveThread)
    reached = call(kernel, task, 0, rows)
    for _ in when(state != 0):
        call(known.PyEval_RestoreThread, state)
    return reached


def _results(known: Fields, y: Any, total: Any) -> Any:
    """A new reference to y, or to a pair; 0 where there is no room for one."""
    result = cell(y)
    call(known.Py_IncRef, y)
    for _ in when(total != 0):
        result[...] = call(known.PyTuple_New, 2)
        for has_room in cases(result != 0):
            if has_room:
                call(known.Py_IncRef, total)
                call(known.PyTuple_SetItem, result, 0, y)
                call(known.PyTuple_SetItem, result, 1, total)
            else:
                call(known.Py_DecRef, y)
    return result
