"""How many processors this process may keep busy: by its affinity, and by what its control groups grant.

A container is given a share of the processors' time (`docker --cpus=2`, a limit of Kubernetes), and sees all of them.
Who uses more than the share is stopped until the next period begins.
"""

from __future__ import annotations

import math
import os
from functools import cache


def processors() -> float:
    """As many processors as this process may keep busy; a fraction where its control groups grant one."""
    seen = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(seen, granted())


@cache
def granted(root: str = "") -> float:
    """As many processors as the control groups of this process grant, each of them at most; infinite without a limit.

    They are read once: what a process is granted seldom changes, and a child after a fork is in the same groups.
    """
    # A container may see only the part of the tree below its own group, under a path that begins above that. What is
    # not found by the whole path is its root then, which is looked at as well.
    least = math.inf
    for controllers, path in _groups(f"{root}/proc/self/cgroup"):
        names = path.strip("/").split("/")
        for depth in range(len(names) + 1):
            inner = "/".join(names[:depth])
            if not controllers:  # version 2: one tree
                least = min(least, _quotient(f"{root}/sys/fs/cgroup/{inner}/cpu.max"))
            elif "cpu" in controllers.split(","):  # version 1: a tree for each controller
                group = f"{root}/sys/fs/cgroup/cpu/{inner}"
                least = min(least, _quotient(f"{group}/cpu.cfs_quota_us", f"{group}/cpu.cfs_period_us"))
    return least


def _groups(file: str) -> list[tuple[str, str]]:
    """The controllers and the path of each control group of this process."""
    lines = [line.split(":", 2) for line in _read(file).splitlines()]
    return [(fields[1], fields[2]) for fields in lines if len(fields) == 3]


def _quotient(*files: str) -> float:
    """The time granted in a period by the length of that, from one file or two; infinite where there is no limit."""
    words = " ".join(map(_read, files)).split()
    if len(words) != 2 or not all(word.isdecimal() for word in words):  # "max", or -1
        return math.inf
    quota, period = map(float, words)
    return quota / period if quota and period else math.inf


def _read(file: str) -> str:
    try:
        with open(file, encoding="ascii", errors="replace") as opened:
            return opened.read()
    except (OSError, ValueError):  # there is none; a path that no file can have
        return ""
