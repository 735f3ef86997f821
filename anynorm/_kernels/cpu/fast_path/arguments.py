"""How the program of the fast path sees what it is called with, and requires that it fits."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from anynorm._kernels.cpu.fast_path.views import Fields, View, is_of
from anynorm._kernels.cpu.language.arithmetic import magnitude
from anynorm._kernels.cpu.language.calls import Require, call, call_for_real
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


def see_parameter(record: Fields, look: Look, view: View, parameter: Any, features: Any, require: Require) -> None:
    """One number for each feature, or None."""
    for _ in when(parameter != record.none):
        look(record, view, parameter, require)
        require(view.ndim == 1)
        require(view.length(0) == features)


def see_weight(
    record: Fields,
    look: Look,
    views: dict[str, View],
    weight: Any,
    is_scale: Any,
    offset: Any,
    features: Any,
    require: Require,
) -> Any:
    """A weight, or a scale, which is returned: None, a float, or an array without axes."""
    view, scale = views["weight"], cell(1.0)
    require((offset == 0.0) | (weight != record.none))
    for has_scale in cases(is_scale & (weight != record.none)):
        if not has_scale:
            see_parameter(record, look, view, weight, features, require)
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
    return found


def require_alike(a: View, b: View, require: Require) -> None:
    """Require one dtype and one shape."""
    require((a.code == b.code) & (a.ndim == b.ndim))
    are_alike = cell(True)
    for i in loop(0, a.ndim, 1):
        are_alike[...] = are_alike & (a.length(i) == b.length(i))
    require(are_alike)


def are_apart(views: dict[str, View], nbytes: Any, weights: Any, features: Any) -> Any:
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


def answer(record: Fields, result: Any, value: Any) -> None:
    """Return this, in place of None."""
    call(record.Py_DecRef, result)
    result[...] = value
