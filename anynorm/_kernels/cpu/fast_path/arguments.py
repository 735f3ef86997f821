"""How the program of the fast path sees what it is called with, and requires that it fits."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from anynorm._kernels.cpu.fast_path.plans import MOST_AXES, Plan
from anynorm._kernels.cpu.fast_path.record import MOST_RULES
from anynorm._kernels.cpu.fast_path.views import Fields, View, is_of
from anynorm._kernels.cpu.language.arithmetic import magnitude, smaller
from anynorm._kernels.cpu.language.calls import Require, call, call_for_real, word
from anynorm._kernels.cpu.language.dtypes import BY_CODE
from anynorm._kernels.cpu.language.flow import cases, cell, loop, when
from anynorm._kernels.cpu.language.memory import peek

ARRAYS = ("x", "residual", "y", "total", "weight", "bias")
Look = Callable[..., None]  # of `views`


def number_of(record: Fields, thing: Any, require: Require) -> Any:
    """A finite float of Python's."""
    require(is_of(record, thing, record.float))
    number = call_for_real(record.PyFloat_AsDouble, thing)
    require(magnitude(number) < math.inf)
    return number


def place_of_rule(record: Fields, rule: Any, require: Require) -> Any:
    """Where in the record a rule lies."""
    place, is_known = cell(0), cell(False)
    for i in loop(0, MOST_RULES, 1, is_known):
        place[...], is_known[...] = i, record.at("rules", i) == rule
    require(is_known)
    return place


def require_alone(record: Fields, require: Require) -> None:
    """Require that a call uses no thread but its own."""
    is_alone = call(record.PyObject_CallOneArg, record.is_alone, record.none)
    for is_known in cases(is_alone != 0):
        call(record.Py_DecRef if is_known else record.PyErr_Clear, *((is_alone,) if is_known else ()))
    require(is_alone == record.true)


class Rows:
    """What makes up a row, and how rows lie: without a plan one after the other, along the last axis."""

    def __init__(self, x: View, plan: Any, require: Require) -> None:
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

    def require_strides(self, views: dict[str, View], name: str, require: Require) -> None:
        """Require that an array lies as the plan says; without one, in C order."""
        view, at = views[name], self.plan + Plan.strides.offset + 8 * MOST_AXES * ARRAYS.index(name)
        for has_plan in cases(self.plan != 0):
            if not has_plan:
                require(view.in_order)
                continue
            are_alike = cell(True)
            for i in loop(0, view.ndim, 1):
                are_alike[...] = are_alike & ((view.length(i) == 1) | (view.stride(i) == word(at + 8 * i, 64)))
            require(are_alike)


def see_parameter(record: Fields, look: Look, view: View, parameter: Any, rows: Rows, require: Require) -> None:
    """An array of the shape of the normalized axes, or None."""
    for _ in when(parameter != record.none):
        look(record, view, parameter, require)
        require(view.in_order & (view.ndim == rows.axes))
        are_alike = cell(True)
        for i in loop(0, view.ndim, 1):
            are_alike[...] = are_alike & (view.length(i) == word(rows.lengths + 8 * i, 64))
        require(are_alike)


def see_weight(
    record: Fields,
    look: Look,
    views: dict[str, View],
    weight: Any,
    is_scale: Any,
    offset: Any,
    rows: Rows,
    require: Require,
) -> Any:
    """A weight, or a scale, which is returned: None, a float, or an array without axes."""
    view, scale = views["weight"], cell(1.0)
    require((offset == 0.0) | (weight != record.none))
    for has_scale in cases(is_scale & (weight != record.none)):
        if not has_scale:
            see_parameter(record, look, view, weight, rows, require)
            continue
        for is_number in cases(is_of(record, weight, record.float)):
            if is_number:
                scale[...] = call_for_real(record.PyFloat_AsDouble, weight)
                continue
            look(record, view, weight, require)
            require(view.ndim == 0)
            for number, dtype in enumerate(BY_CODE):
                for _ in when(view.code == number):
                    scale[...] = peek(view.place, dtype)
        require(magnitude(scale) < math.inf)
    return scale


def see_result(
    record: Fields,
    look: Look,
    make: str,
    views: dict[str, View],
    made: dict[str, Any],
    name: str,
    x: Any,
    given: Any,
    rows: Rows | None,
    result: Any,
    require: Require,
) -> Any:
    """The array to write to: a given one, or one that is made and will be let go of if it is not returned."""
    found = cell(given)
    for _ in when(given == record.none):
        found[...] = call(record.PyObject_CallOneArg, getattr(record, make), x)
        made[name][...] = found
        for _ in when(found == 0):  # it has raised an error, which is to be seen
            answer(record, result, 0)
        require(found != 0)
    look(record, views[name], found, require, writable=True)
    require_alike(views[name], views["x"], require)
    if rows is not None:
        rows.require_strides(views, name, require)
    return found


def require_alike(a: View, b: View, require: Require) -> None:
    """Require one dtype and one shape."""
    require((a.code == b.code) & (a.ndim == b.ndim))
    are_alike = cell(True)
    for i in loop(0, a.ndim, 1):
        are_alike[...] = are_alike & (a.length(i) == b.length(i))
    require(are_alike)


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


def are_beside_inputs(views: dict[str, View]) -> Any:
    """Whether results share no memory with any other array, nor are in place."""
    apart: Any = _are_beside(views["y"], views["total"])
    for result in ("y", "total"):
        for other in ("x", "residual", "weight", "bias"):
            apart = _are_beside(views[result], views[other]) & apart
    return apart


def _are_beside(a: View, b: View) -> Any:
    return (a.high <= b.low) | (b.high <= a.low) | (a.place == 0) | (b.place == 0)


def _are_the_same(a: View, b: View) -> Any:
    """Whether arrays of one shape have each element in the same place."""
    same = cell(a.place == b.place)
    for i in loop(0, smaller(a.ndim, b.ndim), 1):
        same[...] = same & ((a.length(i) == 1) | (a.stride(i) == b.stride(i)))
    return same


def answer(record: Fields, result: Any, value: Any) -> None:
    """Return this, in place of None."""
    call(record.Py_DecRef, result)
    result[...] = value
