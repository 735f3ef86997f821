"""What the kernels for groups of rows are handed, of which each has a weight and a bias of its own."""

from __future__ import annotations

import ctypes

_WORD = ctypes.c_int64

# The fields of a Task that hold an address of each group, in the order of the table.
OF_GROUP = ("x", "residual", "y", "total", "weight", "bias", "dweight", "dbias")


class GroupTask(ctypes.Structure):
    """Addresses and numbers, each of 8 bytes."""

    _fields_ = (
        ("kernel", _WORD),  # the one that a group is for
        ("task", _WORD),  # of the first group
        ("first", _WORD),  # what the kernel is told of where to begin, and where to end
        ("last", _WORD),
        ("axes", _WORD),  # along which groups lie
        ("table", _WORD),  # the lengths of these axes, and for each of OF_GROUP their strides in bytes
        ("reached", _WORD),  # how far each group has come, of the norm
        ("groups", _WORD),
        ("shares", _WORD),  # of all groups, each with scratch of its own: of the derivative
        ("work", _WORD),
        ("work_nbytes", _WORD),
        ("rows", _WORD),  # of all groups
    )
