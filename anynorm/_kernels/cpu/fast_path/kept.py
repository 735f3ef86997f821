"""What calls leave for others like them: one table, in which they are looked up by all that they have but for numbers.

The first call has been checked and planned, and its kernel is compiled.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from operator import attrgetter, methodcaller
from typing import TYPE_CHECKING, Any, NamedTuple

from anynorm._kernels.cpu.kernels.task import Task

if TYPE_CHECKING:
    from anynorm._kernels.cpu.kernels.group_task import GroupTask

Array = Any

MOST_KEPT = 1000
_WORD = ctypes.c_int64

# The arrays of a known task: those that are read, and those that are written.
READ, WRITTEN = ("x", "residual", "weight", "bias"), ("y", "total", "dweight", "dbias")
# Arguments of a call whose task is known: its address, those of scratch and of a Task, eps, scale, and the arrays.
OF_KNOWN = 5 + len(READ + WRITTEN)
# The strides of an array, as quickly as its library tells them.
STRIDES: dict[str, Callable[[Array], Any]] = {
    "numpy": attrgetter("strides"),
    "torch": methodcaller("stride"),
}


class Library(NamedTuple):
    """What the fast path calls for the arrays of a library."""

    name: str
    program: Callable[..., Any]
    empty_like: Callable[[Array], Array]


Key = tuple[Any, ...]  # the first is the name of a kind of calls

table: dict[Key, Any] = {}


def keep(key: Key, kept: Any) -> None:
    """Keep something for a kind of calls; where there is no more room all is dropped, so calls hold what they go by."""
    if len(table) >= MOST_KEPT:
        table.clear()
    table[key] = kept


def kind_of(strides: Callable[[Array], Any], one: Any) -> Any:
    """All of an array but for its numbers; of a number that it is one."""
    return one if one is None else float if type(one) is float else (one.shape, strides(one), one.dtype)


class Kept(NamedTuple):
    """A structure that the program reads, its address, and what it has addresses of itself."""

    structure: ctypes.Structure
    address: int
    keepalive: Any


class Known(ctypes.Structure):
    """A task that is known but for the addresses of arrays, eps, scale and scratch."""

    _fields_ = (
        ("kernel", _WORD),
        ("first", _WORD),
        ("last", _WORD),  # row, group or portion
        ("size", _WORD),  # elements of x
        ("task", _WORD),  # the address of one, which each call copies
        ("groups", _WORD),  # of a GroupTask likewise, for groups of rows, of which ``task`` is that of the first; or 0
        ("places", _WORD * len(READ + WRITTEN)),  # where in the task the addresses of arrays go
    )


def known(
    kernel: int, first: int, last: int, size: int, task: Task, groups: GroupTask | None, keepalive: Any, **places: str
) -> Kept:
    """What the program is to know of a task; ``places`` are the fields of arrays that go elsewhere than by name."""
    task = Task.from_buffer_copy(task)
    # Nor is there a kernel for what float32 cannot hold, which would read parameters that were made for that call.
    for name in (*READ, *WRITTEN, "numbers", "wide_weight", "wide_bias", "float64_kernel", "work"):
        setattr(task, name, 0)
    of_groups = 0
    if groups is not None:
        groups = type(groups).from_buffer_copy(groups)
        of_groups = ctypes.addressof(groups)
    found = Known(kernel, first, last, size, ctypes.addressof(task), of_groups)
    found.places[:] = [getattr(Task, places.get(name, name)).offset for name in READ + WRITTEN]
    return Kept(found, ctypes.addressof(found), (task, groups, keepalive))
