"""The program of the fast path: Python's arguments -> one task -> a kernel, without a step of the interpreter.

It looks at arrays and compares what it sees with what a kernel needs. Whatever is out of the ordinary is left to the
slow path, and so are all messages. Like a kernel it is traced and compiled.
"""

from __future__ import annotations

import ctypes
from typing import Any

from anynorm._kernels.cpu.fast_path.arguments import (
    ARRAYS,
    MOST_VIEWS,
    Frame,
    Look,
    Rows,
    are_apart,
    are_written_apart,
    integer_of,
    number_of,
    place_of_rule,
    require_alone,
    require_like_x,
    see_parameter,
    see_result,
    see_weight,
)
from anynorm._kernels.cpu.fast_path.kept import OF_KNOWN, READ, Known
from anynorm._kernels.cpu.fast_path.own_rows import MOST_GROUPS
from anynorm._kernels.cpu.fast_path.record import BEGIN, place_of
from anynorm._kernels.cpu.fast_path.views import Fields
from anynorm._kernels.cpu.kernels.group_task import GroupTask
from anynorm._kernels.cpu.kernels.task import Task, needs_float64
from anynorm._kernels.cpu.language.arithmetic import is_false, where
from anynorm._kernels.cpu.language.calls import call, static_word, way_out, word
from anynorm._kernels.cpu.language.dtypes import FLOAT64, SCALE
from anynorm._kernels.cpu.language.flow import cases, cell, loop, when
from anynorm._kernels.cpu.language.memory import buffer, store_integer, store_real
from anynorm._kernels.cpu.launch.layout import are_short


def fast_path(look: Look, make: str, itself: Any, arguments: Any, count: Any) -> Any:
    """A builtin function of Python: `_normalize`, or with OF_KNOWN arguments `_run_known`.

    Called with BEGIN arguments it is given the record.
    """
    place_of_record, result = static_word("record"), cell(0)
    for begins in cases(count == BEGIN):
        if begins:
            store_integer(place_of_record, arguments)
            continue
        frame = Frame(Fields(word(place_of_record, 64)), look, make)
        with way_out() as frame.require:
            for is_known in cases(count == OF_KNOWN):
                (_run_known if is_known else _normalize)(frame, arguments)
        frame.release()
        result[...] = frame.result
    return result


def _given(arguments: Any, count: int) -> list[Any]:
    return [word(arguments + 8 * i, 64) for i in range(count)]


def _normalize(frame: Frame, arguments: Any) -> None:
    """A norm by rule, x, residual, y, total, weight, bias, eps, weight_offset, plan, numbers.

    The last two are addresses, or 0. It returns y, or (y, total); None where it has written nothing; the row that a
    kernel stopped at, of a y that was given.
    """
    rule, x, residual, y, total, weight, bias, eps, offset, plan, numbers = _given(arguments, 11)
    record, views, require = frame.record, frame.views, frame.require
    of_rule, has_residual = place_of_rule(frame, rule), residual != record.none
    norm, eps, offset = record.at("norms", of_rule), number_of(frame, eps), number_of(frame, offset)
    require(eps >= 0.0)

    rows, size = _see_x(frame, x, plan)
    scale = see_weight(frame, weight, norm == SCALE, offset, rows)
    see_parameter(frame, "bias", bias, rows)
    kernel, float64_kernel = _kernels(frame, rows, of_rule, has_residual, offset)
    count = size // rows.features
    # Without a plan the kernel is that for rows one after the other.
    short = are_short(rows.features, count, views["x"].itemsize)
    require((kernel != 0) & is_false(short & (rows.plan == 0)))

    y, result_of_sum = see_result(frame, "y", x, y, rows), cell(0)
    for _ in when(has_residual):
        frame.see("residual", residual)
        require_like_x(frame, "residual")
        rows.require_strides(frame, "residual")
        result_of_sum[...] = see_result(frame, "total", x, total, rows)
    require(are_apart(views))

    units, numbers = where(rows.plan == 0, count, rows.units), integer_of(frame, numbers)
    # Rows by given numbers are all held.
    float64_kernel = where(numbers == 0, float64_kernel, 0)
    task = _task(frame, rows, count, norm == SCALE, eps, scale, offset, numbers, float64_kernel)
    reached = _run(record, kernel, task, 0, units, size)
    for is_complete in cases(reached == units):
        if is_complete:
            frame.answer(_results(record, y, result_of_sum))
            continue
        # In place the rows before this one are lost, so that the slow path must go on from here.
        require((reached > 0) & (frame.made["y"] == 0))
        frame.answer(call(record.PyLong_FromLongLong, reached))


def _see_x(frame: Frame, x: Any, plan: Any) -> tuple[Rows, Any]:
    """How its rows lie, and how many elements it has: not none, and no more than this path is for."""
    of_x, record, size = frame.views["x"], frame.record, cell(1)
    frame.see("x", x)
    frame.require(of_x.ndim != 0)
    rows = Rows(frame, integer_of(frame, plan))
    rows.require_strides(frame, "x")
    for i in loop(0, of_x.ndim, 1):
        size[...] = size * of_x.length(i)
    nbytes = size * of_x.itemsize
    frame.require((size != 0) & (nbytes <= record.most_nbytes))
    for _ in when(nbytes >= record.least_shared_nbytes):
        require_alone(frame)
    return rows, size


def _run_known(frame: Frame, arguments: Any) -> None:
    """A task that is known but for a few numbers and addresses: of Known, of scratch, of a Task, eps, scale, arrays.

    An address may be 0. Where there is a Task, that is filled in, and nothing runs. It returns True; None where nothing
    has run, or not to the end. That the arrays lie as they must was seen to.
    """
    known, work, filled, eps, scale = _given(arguments, OF_KNOWN - MOST_VIEWS)
    record, known = frame.record, Fields(integer_of(frame, known), Known)
    task, eps, scale = cell(integer_of(frame, filled)), number_of(frame, eps), number_of(frame, scale)
    is_to_run, copy = task == 0, buffer(ctypes.sizeof(Task))
    for _ in when(is_to_run):
        task[...] = copy
    _copy(known.task, task, Task)
    frame.require(eps >= 0.0)
    for i in loop(0, MOST_VIEWS, 1):
        one = word(arguments + 8 * (i + OF_KNOWN - MOST_VIEWS), 64)
        for _ in when(one != record.none):
            frame.look(record, frame.view(i), one, frame.require, writable=i >= len(READ))
            store_integer(task + known.at("places", i), frame.view(i).place)
    frame.require(are_written_apart(frame))  # so that the slow path may begin anew
    store_real(task + Task.eps.offset, eps)
    store_real(task + Task.scale.offset, scale)
    store_integer(task + Task.work.offset, integer_of(frame, work))

    told, last = cell(task), known.last
    for _ in when(known.groups != 0):
        reached, groups = buffer(8 * MOST_GROUPS), buffer(ctypes.sizeof(GroupTask))
        _copy(known.groups, groups, GroupTask)
        for i in loop(0, last, 1):
            store_integer(reached + 8 * i, 0)
        store_integer(groups + GroupTask.task.offset, task)
        store_integer(groups + GroupTask.reached.offset, reached)
        told[...] = groups
    for _ in when(is_to_run):
        frame.require(_run(record, known.kernel, told, known.first, last, known.size) == last)
    call(record.Py_IncRef, record.true)
    frame.answer(record.true)


def _copy(source: Any, target: Any, kind: Any) -> None:
    """Copy a structure."""
    for i in loop(0, ctypes.sizeof(kind), 8):
        store_integer(target + i, word(source + i, 64))


def _kernels(frame: Frame, rows: Rows, rule: Any, has_residual: Any, offset: Any) -> tuple[Any, Any]:
    """The address of the kernel, and of the same in float64; 0 where it has not been compiled yet."""
    record, views = frame.record, frame.views
    offset = where(record.at("rounds_weight", rule) != 0, 0.0, offset)
    code = views["x"].code
    place = place_of(rule, where(has_residual, 1, 0), code, 0)
    found, wide = (cell(record.at("kernels", place + i)) for i in range(2))
    for _ in when(rows.plan != 0):
        found[...], wide[...] = rows.told("kernel"), rows.told("kernel_in_float64")
    in_float64 = needs_float64(record.at("norms", rule), code, views["weight"].code, views["bias"].code, offset)
    return where(in_float64 | (code == FLOAT64.code), wide, found), wide


def _task(
    frame: Frame, rows: Rows, count: Any, is_scale: Any, eps: Any, scale: Any, offset: Any, numbers: Any,
    float64_kernel: Any,
) -> Any:  # fmt: skip
    """What the kernel is handed; its address."""
    views = frame.views
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


def _run(record: Fields, kernel: Any, task: Any, first: Any, last: Any, size: Any) -> Any:
    """Run the kernel, without Python's lock if that pays; return how far it has come."""
    state = cell(0)
    for _ in when(size > record.few_elements):
        state[...] = call(record.PyEval_SaveThread)
    reached = call(kernel, task, first, last)
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
