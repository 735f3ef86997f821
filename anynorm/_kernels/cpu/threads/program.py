"""What the helpers of a crew run, compiled like a kernel, for no Python can wait and wake without the interpreter.

`left` is how many pieces of a task no thread has taken. A thread that takes one off it, in one atomic step, may touch
the task until it counts that piece off `undone`, and at no other time; the caller leaves when `undone` is 0. So a
helper that comes late, or never, finds `left` at 0 and touches nothing but the crew's own memory, and nobody waits for
it. That memory is freed by the last of those that are `present`: the helpers, and the Crew in Python.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import Any

from llvmlite import ir

from anynorm._kernels.cpu.language.arithmetic import is_false
from anynorm._kernels.cpu.language.calls import (
    add_atomic,
    address_of,
    call,
    exchange_atomic,
    fails,
    load_atomic,
    store_atomic,
)
from anynorm._kernels.cpu.language.flow import cases, cell, loop, when
from anynorm._kernels.cpu.language.memory import buffer, integer, store_integer
from anynorm._kernels.cpu.language.tracing import define
from anynorm._kernels.cpu.threads.memory import BUSY_NOW, COMPLETE, PLACES

_ENDLESS = 1 << 62
_NAME = b"anynorm helper\0\0"  # at most 15 characters


class _Crew:
    """The memory of a crew, whose words are read as attributes."""

    def __init__(self, address: Any) -> None:
        self.address = address

    def at(self, name: str) -> Any:
        """Where a word lies."""
        return self.address + PLACES[name]

    def __getattr__(self, name: str) -> Any:
        return integer(self.at(name))


def module() -> ir.Module:
    """The program. Its function `crew` stores where those are that Python calls."""
    found = ir.Module("crew")

    def internal(name: str, function: Callable[..., Any], arguments: int) -> ir.Function:
        made = define(found, name, lambda address, *rest: function(_Crew(address), *rest), arguments)
        made.linkage = "internal"
        return made

    help_crew = internal("help", _help, 1)
    functions = (
        internal("hire", lambda *given: _hire(address_of(help_crew), *given), 3),
        internal("run", _run, 7),
        internal("retire", _retire, 1),
        internal("leave", _leave, 1),
    )

    def tell(places: Any) -> int:
        for i, function in enumerate(functions):
            store_integer(places + 8 * i, address_of(function))
        return 0

    define(found, "crew", tell, 1)
    return found


def _hire(help_crew: Any, crew: _Crew, attributes: Any, helpers: Any) -> Any:
    """Start so many helpers; return how many could be started."""
    thread, name, started, has_failed = buffer(8), buffer(len(_NAME)), cell(0), cell(False)
    for i in range(0, len(_NAME), 8):
        store_integer(name + i, int.from_bytes(_NAME[i : i + 8], sys.byteorder))
    for _ in loop(0, helpers, 1, has_failed):
        add_atomic(crew.at("present"), 1)
        has_failed[...] = fails(crew.pthread_create, thread, attributes, help_crew, crew.address)
        for failed in cases(has_failed):
            if failed:
                _leave(crew)
            else:
                call(crew.pthread_setname_np, integer(thread), name)
                call(crew.pthread_detach, integer(thread))
                started[...] = started + 1
    return started


def _run(crew: _Crew, kernel: Any, task: Any, units: Any, pieces: Any, reached: Any, helpers: Any) -> Any:
    """Run a kernel on all units of a task, in pieces, with so many of the helpers."""
    outcome = cell(BUSY_NOW)
    for _ in when(exchange_atomic(crew.at("busy"), 0, 1)):
        fields = {"kernel": kernel, "task": task, "units": units, "pieces": pieces, "reached": reached}
        for name, value in fields.items():
            store_integer(crew.at(name), value)
        store_atomic(crew.at("asleep"), 0)
        store_atomic(crew.at("undone"), pieces)
        store_atomic(crew.at("left"), pieces)
        _wake(crew, helpers)
        _take_pieces(crew)
        _wait(crew)
        outcome[...] = load_atomic(reached) + COMPLETE
        store_atomic(crew.at("busy"), 0)
    return outcome


def _take_pieces(crew: _Crew) -> None:
    """Take one piece after the other until none is left.

    A piece for which the kernel returns another number than its last unit has stopped early.
    """
    is_over = cell(False)
    for _ in loop(0, _ENDLESS, 1, is_over):
        left = load_atomic(crew.at("left"))
        is_over[...] = left <= 0
        for _ in when(left > 0):
            for _ in when(exchange_atomic(crew.at("left"), left, left - 1)):
                pieces, units = crew.pieces, crew.units
                piece = pieces - left
                first, last = units * piece // pieces, units * (piece + 1) // pieces
                stopped = call(crew.kernel, crew.task, first, last)
                store_integer(crew.reached + 8 * (piece + 1), stopped)
                for _ in when(stopped != last):
                    store_atomic(crew.reached, 1)
                for _ in when(add_atomic(crew.at("undone"), -1) == 1):
                    # Either the caller, about to sleep, sees that all is done, or it is seen here to sleep. By now it
                    # may be in its next task, and is woken for nothing, which it is prepared for.
                    for _ in when(load_atomic(crew.at("asleep")) != 0):
                        call(crew.sem_post, crew.at("done"))


def _wait(crew: _Crew) -> None:
    """Wait until no piece is undone: awake for a while, then asleep."""
    start, is_complete, is_tired = _now(crew), cell(False), cell(False)
    for _ in loop(0, _ENDLESS, 1, is_tired):
        is_complete[...] = load_atomic(crew.at("undone")) == 0
        for complete in cases(is_complete):
            is_tired[...] = True if complete else _now(crew) - start >= crew.spin
            for _ in when(is_false(is_tired)):
                call(crew.sched_yield)
    for _ in when(is_false(is_complete)):
        store_atomic(crew.at("asleep"), 1)
    for _ in loop(0, _ENDLESS, 1, is_complete):
        is_complete[...] = load_atomic(crew.at("undone")) == 0
        for _ in when(is_false(is_complete)):
            call(crew.sem_wait, crew.at("done"))


def _help(crew: _Crew) -> int:
    """What a helper does from its beginning to its end."""
    is_over = cell(False)
    for _ in loop(0, _ENDLESS, 1, is_over):
        _take_pieces(crew)
        is_over[...] = load_atomic(crew.at("retired")) != 0
        for _ in when(is_false(is_over)):
            _rest(crew)
    _leave(crew)
    return 0


def _rest(crew: _Crew) -> None:
    """Return when the helper is called: it looks for a while, and then sleeps."""
    is_called, start, ends = cell(False), _now(crew), cell(crew.spin == 0)
    for _ in loop(0, _ENDLESS, 1, ends):
        for missed in cases(fails(crew.sem_trywait, crew.at("wake"))):
            if missed:
                call(crew.sched_yield)
                ends[...] = _now(crew) - start >= crew.spin
            else:
                is_called[...], ends[...] = True, True
    for _ in when(is_false(is_called)):
        call(crew.sem_wait, crew.at("wake"))


def _retire(crew: _Crew) -> int:
    """Let each helper end when it has nothing to do."""
    store_atomic(crew.at("retired"), 1)
    _wake(crew, load_atomic(crew.at("present")))
    return 0


def _leave(crew: _Crew) -> int:
    """Leave the memory of the crew, which the last one frees."""
    for _ in when(add_atomic(crew.at("present"), -1) == 1):
        call(crew.free, crew.address)
    return 0


def _wake(crew: _Crew, helpers: Any) -> None:
    """Wake so many helpers, or have them look once more before they sleep."""
    for _ in loop(0, helpers, 1):
        call(crew.sem_post, crew.at("wake"))


def _now(crew: _Crew) -> Any:
    """A time in nanoseconds."""
    found = buffer(16)
    call(crew.clock_gettime, time.CLOCK_MONOTONIC, found)
    return integer(found) * 1_000_000_000 + integer(found + 8)
