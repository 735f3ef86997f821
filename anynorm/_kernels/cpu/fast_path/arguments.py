"""How the program of the fast path sees what it is called with, and requires that it fits."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from anynorm._kernels.cpu.fast_path.kept import READ, WRITTEN
from anynorm._kernels.cpu.fast_path.plans import MOST_AXES, Plan
from anynorm._kernels.cpu.fast_path.record import MOST_RULES
from anynorm._kernels.cpu.fast_path.views import VIEW_NBYTES, Fields, View, is_of
from anynorm._kernels.cpu.language.arithmetic import magnitude, smaller
from anynorm._kernels.cpu.language.calls import Require, call, call_for_real, word
from anynorm._kernels.cpu.language.dtypes import BY_CODE
from anynorm._kernels.cpu.language.flow import cases, cell, loop, when
from anynorm._kernels.cpu.language.memory import buffer, peek

ARRAYS = ("x", "residual", "y", "total", "weight", "bias")
MOST_VIEWS = len(READ + WRITTEN)
Look = Callable[..., None]  # of `views`


class Frame:
    """What one call of the program has in memory: the record, what was seen of arrays, and what is to be returned."""

    require: Require  # of the way out, which leads to `release`

    def __init__(self, record: Fields, look: Look, make: str) -> None:
        self.record, self.look, self.make = record, look, make
        self.place = buffer(MOST_VIEWS * VIEW_NBYTES)
        for i in loop(0, MOST_VIEWS, 1):
            self.view(i).clear()
        self.views = {name: self.view(i) for i, name in enumerate(ARRAYS)}
        self.made = {name: cell(0) for name in ("y", "total")}
        self.result = cell(record.none)
        call(record.Py_IncRef, record.none)

    def view(self, place: Any) -> View:
        """What was seen of an array, by its place among all."""
        return View(self.place + place * VIEW_NBYTES)

    def see(self, name: str, array: Any, writable: bool = False) -> None:
        """Look at an array."""
        self.look(self.record, self.views[name], array, self.require, writable)

    def answer(self, value: Any) -> None:
        """Return this, in place of None."""
        call(self.record.Py_DecRef, self.result)
        self.result[...] = value

    def release(self) -> None:
        """Give back all that was lent, and let go of what was made."""
        for i in loop(0, MOST_VIEWS, 1):
            self.view(i).release(self.record)
        for one in self.made.values():
            for _ in when(one != 0):
                call(self.record.Py_DecRef, one)


def number_of(frame: Frame, thing: Any) -> Any:
    """A finite float of Python's."""
    frame.require(is_of(frame.record, thing, frame.record.float))
    number = call_for_real(frame.record.PyFloat_AsDouble, thing)
    frame.require(magnitude(number) < math.inf)
    return number


def integer_of(frame: Frame, thing: Any) -> Any:
    """An int that the fast path has made."""
    return call(frame.record.PyLong_AsLongLong, thing)


def place_of_rule(frame: Frame, rule: Any) -> Any:
    """Where in the record a rule lies."""
    place, is_known = cell(0), cell(False)
    for i in loop(0, MOST_RULES, 1, is_known):
        place[...], is_known[...] = i, frame.record.at("rules", i) == rule
    frame.require(is_known)
    return place


def require_alone(frame: Frame) -> None:
    """Require that a call uses no thread but its own."""
    record = frame.record
    is_alone = call(record.PyObject_CallOneArg, record.is_alone, record.none)
    for is_known in cases(is_alone != 0):
        call(record.Py_DecRef if is_known else record.PyErr_Clear, *((is_alone,) if is_known else ()))
    frame.require(is_alone == record.true)


class Rows:
    """What makes up a row, and how rows lie: without a plan one after the other, along the last axis."""

    def __init__(self, frame: Frame, plan: Any) -> None:
        x, require = frame.views["x"], frame.require
        self.plan, last = plan, x.shape + 8 * (x.ndim - 1)
        self.features, self.axes, self.lengths = cell(word(last, 64)), cell(1), cell(last)  # lengths of a parameter
        self.units, self.layout, self.block, self.head, self.packed = (cell(0) for _ in range(5))
        for has_plan in cases(plan != 0):
            if not has_plan:
                require(x.in_order)
                continue
            require((x.code == self.told("code")) & (x.ndim == self.told("ndim")))
            are_alike = cell(True)
            for i in loop(0, x.ndim, 1):
                are_alike[...] = are_alike & (x.length(i) == word(plan + Plan.lengths.offset + 8 * i, 64))
            require(are_alike)
            for name in ("features", "axes", "units", "layout", "block", "head", "packed"):
                getattr(self, name)[...] = self.told(name)
            self.lengths[...] = plan + Plan.normalized.offset

    def told(self, name: str) -> Any:
        """A field of the plan."""
        return word(self.plan + getattr(Plan, name).offset, 64)

    def require_strides(self, frame: Frame, name: str) -> None:
        """Require that an array lies as the plan says; without one, in C order."""
        view, require = frame.views[name], frame.require
        at = self.plan + Plan.strides.offset + 8 * MOST_AXES * ARRAYS.index(name)
        for has_plan in cases(self.plan != 0):
            if not has_plan:
                require(view.in_order)
                continue
            are_alike = cell(True)
            for i in loop(0, view.ndim, 1):
                are_alike[...] = are_alike & ((view.length(i) == 1) | (view.stride(i) == word(at + 8 * i, 64)))
            require(are_alike)


def see_parameter(frame: Frame, name: str, parameter: Any, rows: Rows) -> None:
    """An array of the shape of the normalized axes, or None."""
    view = frame.views[name]
    for _ in when(parameter != frame.record.none):
        frame.see(name, parameter)
        frame.require(view.in_order & (view.ndim == rows.axes))
        are_alike = cell(True)
        for i in loop(0, view.ndim, 1):
            are_alike[...] = are_alike & (view.length(i) == word(rows.lengths + 8 * i, 64))
        frame.require(are_alike)


def see_weight(frame: Frame, weight: Any, is_scale: Any, offset: Any, rows: Rows) -> Any:
    """A weight, or a scale, which is returned: None, a float, or an array without axes."""
    record, view, scale = frame.record, frame.views["weight"], cell(1.0)
    frame.require((offset == 0.0) | (weight != record.none))
    for has_scale in cases(is_scale & (weight != record.none)):
        if not has_scale:
            see_parameter(frame, "weight", weight, rows)
            continue
        for is_number in cases(is_of(record, weight, record.float)):
            if is_number:
                scale[...] = call_for_real(record.PyFloat_AsDouble, weight)
                continue
            frame.see("weight", weight)
            frame.require(view.ndim == 0)
            for number, dtype in enumerate(BY_CODE):
                for _ in when(view.code == number):
                    scale[...] = peek(view.place, dtype)
        frame.require(magnitude(scale) < math.inf)
    return scale


def see_result(frame: Frame, name: str, x: Any, given: Any, rows: Rows) -> Any:
    """The array to write to: a given one, or one that is made and will be let go of if it is not returned."""
    record, found = frame.record, cell(given)
    for _ in when(given == record.none):
        found[...] = call(record.PyObject_CallOneArg, getattr(record, frame.make), x)
        frame.made[name][...] = found
        for _ in when(found == 0):  # it has raised an error, which is to be seen
            frame.answer(0)
        frame.require(found != 0)
    frame.see(name, found, writable=True)
    require_like_x(frame, name)
    rows.require_strides(frame, name)
    return found


def require_like_x(frame: Frame, name: str) -> None:
    """Require x's dtype and its shape."""
    a, b = frame.views[name], frame.views["x"]
    frame.require((a.code == b.code) & (a.ndim == b.ndim))
    are_alike = cell(True)
    for i in loop(0, a.ndim, 1):
        are_alike[...] = are_alike & (a.length(i) == b.length(i))
    frame.require(are_alike)


def are_apart(views: dict[str, View]) -> Any:
    """Whether results share no memory, but that x and the residual may be one of them each."""
    apart: Any = True
    for result, others in (
        ("y", ("x", "residual", "total", "weight", "bias")),
        ("total", ("x", "residual", "weight", "bias")),
    ):
        for other in others:
            a, b = views[result], views[other]
            is_beside = _are_beside(a, b)
            is_in_place = _are_the_same(a, b) if other in ("x", "residual") else False
            apart = (is_beside | is_in_place) & apart
    return apart


def are_written_apart(frame: Frame) -> Any:
    """Whether, of the arrays of a known task, those that are written share no memory with any other."""
    apart = cell(True)
    for i in loop(len(READ), MOST_VIEWS, 1):
        for j in loop(0, i, 1):
            apart[...] = apart & _are_beside(frame.view(i), frame.view(j))
    return apart


def _are_beside(a: View, b: View) -> Any:
    return (a.high <= b.low) | (b.high <= a.low) | (a.place == 0) | (b.place == 0)


def _are_the_same(a: View, b: View) -> Any:
    """Whether arrays of one shape have each element in the same place."""
    same = cell(a.place == b.place)
    for i in loop(0, smaller(a.ndim, b.ndim), 1):
        same[...] = same & ((a.length(i) == 1) | (a.stride(i) == b.stride(i)))
    return same
