"""Groups of rows, each with a weight and a bias of its own: another kernel, called for one group after the other."""

from __future__ import annotations

import ctypes

from anynorm._kernels.cpu.kernels.group_task import OF_GROUP, GroupTask
from anynorm._kernels.cpu.kernels.task import Task, Variant
from anynorm._kernels.cpu.language.arithmetic import is_false, larger, where
from anynorm._kernels.cpu.language.flow import cell, loop, when
from anynorm._kernels.cpu.language.memory import buffer, call_kernel, integer, store_integer


def _told(address: int, name: str) -> int:
    """A field of the GroupTask at an address."""
    return integer(address + getattr(GroupTask, name).offset)


def _copy_of_task(address: int) -> int:
    """The address of a task like that of the first group."""
    task, source = buffer(ctypes.sizeof(Task)), _told(address, "task")
    for i in loop(0, ctypes.sizeof(Task), 8):
        store_integer(task + i, integer(source + i))
    return task


def _point_to(address: int, task: int, group: int) -> None:
    """Put the addresses of a group into a task."""
    first, axes, table = _told(address, "task"), _told(address, "axes"), _told(address, "table")
    offsets, left = [cell(0) for _ in OF_GROUP], cell(group)
    for i in loop(0, axes, 1):
        axis = 8 * (axes - 1 - i)
        length = integer(table + axis)
        index = left % length
        left[...] = left // length
        for place, offset in enumerate(offsets):
            offset[...] = offset + index * integer(table + 8 * axes * (1 + place) + axis)
    for name, offset in zip(OF_GROUP, offsets, strict=True):
        field = getattr(Task, name).offset
        base = integer(first + field)
        store_integer(task + field, where(base == 0, 0, base + offset))


def normalize_groups(variant: Variant, address: int, first: int, last: int) -> int:
    """Normalize groups first to last, or up to one that the kernel leaves before its end; return which is the next.

    Each group begins where it has come to. One whose weights the kernel cannot hold does not begin.
    """
    task, following, ended = _copy_of_task(address), cell(last), cell(False)
    kernel, end, places = (_told(address, name) for name in ("kernel", "last", "reached"))
    for group in loop(first, last, 1, ended):
        _point_to(address, task, group)
        begin = integer(places + 8 * group)
        done = call_kernel(kernel, task, begin, end)
        for _ in when(is_false(done == end)):
            store_integer(places + 8 * group, larger(done, begin))
            following[...] = group
            ended[...] = True
    return following


def differentiate_groups(variant: Variant, address: int, first: int, last: int) -> int:
    """Find the derivative at shares of all groups, first to last; return the last."""
    task, work = _copy_of_task(address), _told(address, "work")
    kernel, begin, end = (_told(address, name) for name in ("kernel", "first", "last"))
    groups, shares = _told(address, "groups"), _told(address, "shares")
    for share in loop(first, last, 1):
        store_integer(task + Task.work.offset, work + share * _told(address, "work_nbytes"))
        for group in loop(groups * share // shares, groups * (share + 1) // shares, 1):
            _point_to(address, task, group)
            call_kernel(kernel, task, begin, end)
    return last
