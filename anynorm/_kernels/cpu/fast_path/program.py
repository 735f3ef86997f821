"""The program of the fast path: Python's arguments -> one task -> a kernel, without a step of the interpreter.

It looks at x, a residual, y, their total, weight and bias, and compares what it sees with what a kernel needs. Whatever
is out of the ordinary is left to the slow path, and so are all messages. Like a kernel it is traced and compiled.
"""

from __future__ import annotations

import ctypes
from typing import Any

from anynorm._kernels.cpu.fast_path.arguments import (
    ARRAYS,
    Look,
    Rows,
    answer,
    are_apart,
    are_beside_inputs,
    number_of,
    place_of_rule,
    require_alike,
    require_alone,
    see_parameter,
    see_result,
    see_weight,
)
from anynorm._kernels.cpu.fast_path.own_rows import MOST_GROUPS, Known
from anynorm._kernels.cpu.fast_path.record import BEGIN, OF_ROWS, place_of
from anynorm._kernels.cpu.fast_path.views import VIEW_NBYTES, Fields, View
from anynorm._kernels.cpu.kernels.group_task import GroupTask
from anynorm._kernels.cpu.kernels.task import Task, needs_float64
from anynorm._kernels.cpu.language.arithmetic import is_false, where
from anynorm._kernels.cpu.language.calls import Require, call, static_word, way_out, word
from anynorm._kernels.cpu.language.dtypes import FLOAT64, SCALE
from anynorm._kernels.cpu.language.flow import cases, cell, loop, when
from anynorm._kernels.cpu.language.memory import buffer, store_integer, store_real
from anynorm._kernels.cpu.launch.layout import are_short


def normalize(look: Look, make: str, itself: Any, arguments: Any, count: Any) -> Any:
    """A builtin function of Python: rule, x, residual, y, total, weight, bias, eps, weight_offset, plan, numbers.

    The last two are addresses, or 0. It returns y, or (y, total); None where it has written nothing; the row that a
    kernel stopped at, of a y that was given. Called with BEGIN arguments it is given the record, and with OF_ROWS those
    of `_run_known`.
    """
    place_of_record, result = static_word("record"), cell(0)
    for begins in cases(count == BEGIN):
        if begins:
            store_integer(place_of_record, arguments)
            continue
        record = Fields(word(place_of_record, 64))
        memory = buffer(len(ARRAYS) * VIEW_NBYTES)
        views = {name: View(memory + i * VIEW_NBYTES) for i, name in enumerate(ARRAYS)}
        made = {name: cell(0) for name in ("y", "total")}
        with way_out() as require:
            call(record.Py_IncRef, record.none)
            result[...] = record.none
            for is_known in cases(count == OF_ROWS):
                run = _run_known if is_known else _normalize
                run(record, look, make, arguments, views, made, result, require)
        for view in views.values():
            view.release(record)
        for one in made.values():
            for _ in when(one != 0):
                call(record.Py_DecRef, one)
    return result


def _normalize(
    record: Fields,
    look: Look,
    make: str,
    arguments: Any,
    views: dict[str, View],
    made: dict[str, Any],
    result: Any,
    require: Require,
) -> None:
    rule, x, residual, y, total, weight, bias, eps, offset, plan, numbers = [
        word(arguments + 8 * i, 64) for i in range(11)
    ]
    of_rule = place_of_rule(record, rule, require)
    norm = record.at("norms", of_rule)
    eps, offset = (number_of(record, one, require) for one in (eps, offset))
    require(eps >= 0.0)

    of_x = views["x"]
    look(record, of_x, x, require)
    require(of_x.ndim != 0)
    size, rows = cell(1), Rows(of_x, call(record.PyLong_AsLongLong, plan), require)
    rows.require_strides(views, "x", require)
    for i in loop(0, of_x.ndim, 1):
        size[...] = size * of_x.length(i)
    nbytes = size * of_x.itemsize
    require((size != 0) & (nbytes <= record.most_nbytes))
    for _ in when(nbytes >= record.least_shared_nbytes):
        require_alone(record, require)

    scale = see_weight(record, look, views, weight, norm == SCALE, offset, rows, require)
    see_parameter(record, look, views["bias"], bias, rows, require)
    has_residual = residual != record.none
    kernel, float64_kernel = _kernels(record, views, rows, of_rule, has_residual, offset)
    require(kernel != 0)
    # Without a plan the kernel is that for rows one after the other.
    short = are_short(rows.features, size // rows.features, of_x.itemsize)
    require(is_false(short & (rows.plan == 0)))

    y = see_result(record, look, make, views, made, "y", x, y, rows, result, require)
    result_of_sum = cell(0)
    for _ in when(has_residual):
        look(record, views["residual"], residual, require)
        require_alike(views["residual"], of_x, require)
        rows.require_strides(views, "residual", require)
        result_of_sum[...] = see_result(record, look, make, views, made, "total", x, total, rows, result, require)
    require(are_apart(views))

    units = where(rows.plan == 0, size // rows.features, rows.units)
    numbers = call(record.PyLong_AsLongLong, numbers)
    # Rows by given numbers are all held.
    float64_kernel = where(numbers == 0, float64_kernel, 0)
    count = size // rows.features
    task = _task(views, rows, count, norm == SCALE, eps, scale, offset, numbers, float64_kernel)
    reached = _run(record, kernel, task, units, size)
    for is_complete in cases(reached == units):
        if is_complete:
            answer(record, result, _results(record, y, result_of_sum))
            continue
        # In place the rows before this one are lost, so that the slow path must go on from here.
        require((reached > 0) & (made["y"] == 0))
        answer(record, result, call(record.PyLong_FromLongLong, reached))


def _run_known(
    record: Fields,
    look: Look,
    make: str,
    arguments: Any,
    views: dict[str, View],
    made: dict[str, Any],
    result: Any,
    require: Require,
) -> None:
    """The call of a task that is known but for addresses and eps: x, residual, y, total, weight, bias, eps, Known.

    That the arrays lie as they must was seen to.
    """
    x, residual, y, total, weight, bias, eps, known = [word(arguments + 8 * i, 64) for i in range(OF_ROWS)]
    known, eps, size = call(record.PyLong_AsLongLong, known), number_of(record, eps, require), cell(1)
    require(eps >= 0.0)
    for name, one in (("x", x), ("residual", residual), ("weight", weight), ("bias", bias)):
        for _ in when(one != record.none):
            look(record, views[name], one, require)
    for i in loop(0, views["x"].ndim, 1):
        size[...] = size * views["x"].length(i)
    y, result_of_sum = see_result(record, look, make, views, made, "y", x, y, None, result, require), cell(0)
    for _ in when(residual != record.none):
        result_of_sum[...] = see_result(record, look, make, views, made, "total", x, total, None, result, require)
    require(are_beside_inputs(views))  # so that the slow path may begin anew

    kernel, units, first, of_groups, *places = [
        word(known + getattr(Known, name).offset, 64) for name, _ in Known._fields_
    ]
    task = _copy(first, Task)
    for name in ("x", "residual", "y", "total"):
        store_integer(task + getattr(Task, name).offset, views[name].place)
    for name, place in zip(("weight", "bias"), places, strict=True):
        store_integer(task + place, views[name].place)
    store_real(task + Task.eps.offset, eps)
    told = cell(task)
    for _ in when(of_groups != 0):
        reached, groups = buffer(8 * MOST_GROUPS), _copy(of_groups, GroupTask)
        for i in loop(0, units, 1):
            store_integer(reached + 8 * i, 0)
        store_integer(groups + GroupTask.task.offset, task)
        store_integer(groups + GroupTask.reached.offset, reached)
        told[...] = groups
    require(_run(record, kernel, told, units, size) == units)
    answer(record, result, _results(record, y, result_of_sum))


def _copy(source: Any, kind: Any) -> Any:
    """The address of a copy of a structure."""
    copy = buffer(ctypes.sizeof(kind))
    for i in loop(0, ctypes.sizeof(kind), 8):
        store_integer(copy + i, word(source + i, 64))
    return copy


def _kernels(
    record: Fields, views: dict[str, View], rows: Rows, rule: Any, has_residual: Any, offset: Any
) -> tuple[Any, Any]:
    """The address of the kernel, and of the same in float64; 0 where it has not been compiled yet."""
    code, offset = views["x"].code, where(record.at("rounds_weight", rule) != 0, 0.0, offset)
    place = place_of(rule, where(has_residual, 1, 0), code, 0)
    found, wide = (cell(record.at("kernels", place + i)) for i in range(2))
    for _ in when(rows.plan != 0):
        found[...], wide[...] = rows.told("kernel"), rows.told("kernel_in_float64")
    in_float64 = needs_float64(record.at("norms", rule), code, views["weight"].code, views["bias"].code, offset)
    return where(in_float64 | (code == FLOAT64.code), wide, found), wide


def _task(
    views: dict[str, View],
    rows: Rows,
    count: Any,
    is_scale: Any,
    eps: Any,
    scale: Any,
    offset: Any,
    numbers: Any,
    float64_kernel: Any,
) -> Any:
    """What the kernel is handed; its address."""
    filled = {name: views[name].place for name in ARRAYS} | {
        "features": rows.features, "rows": count, "eps": eps, "scale": scale, "weight_offset": offset,
        "weight": where(is_scale, 0, views["weight"].place), "weight_code": where(is_scale, 0, views["weight"].code),
        "bias_code": views["bias"].code, "layout": rows.layout, "block": rows.block, "head": rows.head,
        "packed": rows.packed, "numbers": numbers, "float64_kernel": float64_kernel,
    }  # fmt: skip
    task = buffer(ctypes.sizeof(Task))
    for name, kind in Task._fields_:
        at = task + getattr(Task, name).offset
        if kind is ctypes.c_double:
            store_real(at, filled[name])
        else:
            store_integer(at, filled.get(name, 0))
    return task


def _run(record: Fields, kernel: Any, task: Any, units: Any, size: Any) -> Any:
    """Run the kernel, without Python's lock if that pays; return how far it has come."""
    state = cell(0)
    for _ in when(size > record.few_elements):
        state[...] = call(record.PyEval_SaveThread)
    reached = call(kernel, task, 0, units)
    for _ in when(state != 0):
        call(record.PyEval_RestoreThread, state)
    return reached


def _results(record: Fields, y: Any, total: Any) -> Any:
    """A new reference to y, or to a pair; 0 where there is no room for one."""
    result = cell(y)
    call(record.Py_IncRef, y)
    for _ in when(total != 0):
        result[...] = call(record.PyTuple_New, 2)
        for has_room in cases(result != 0):
            if has_room:
                call(record.Py_IncRef, total)
                call(record.PyTuple_SetItem, result, 0, y)
                call(record.PyTuple_SetItem, result, 1, total)
            else:
                call(record.Py_DecRef, y)
    return result
