"""What the program of the fast path needs beyond the language of the kernels: calls of functions, and a way out.

Pointers and numbers of 32 bits are passed as int64, which is how 64-bit machines pass them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from llvmlite import ir

from anynorm._kernels.cpu.fast_path.record import Record
from anynorm._kernels.cpu.language.tracing import DOUBLE, INT64, Value, as_llvm, builder

Require = Callable[[Any], None]


class Fields:
    """The record, whose fields are read as attributes."""

    def __init__(self, address: Any) -> None:
        self.address = address

    def __getattr__(self, name: str) -> Any:
        return word(self.address + getattr(Record, name).offset, 64)


def word(address: Any, bits: int) -> Any:
    """An integer of so many bits from memory."""
    write, kind = builder(), ir.IntType(bits)
    found = write.load(write.inttoptr(as_llvm(address), kind.as_pointer()), align=1)
    return Value(found if bits == 64 else write.zext(found, INT64))


def call(function: Any, *arguments: Any, result: ir.Type = INT64) -> Any:
    """Call what lies at an address, with int64 arguments."""
    kind = ir.FunctionType(result, [INT64] * len(arguments))
    pointer = builder().inttoptr(as_llvm(function), kind.as_pointer())
    return Value(builder().call(pointer, [as_llvm(argument, INT64) for argument in arguments]))


def call_for_real(function: Any, *arguments: Any) -> Any:
    """The same of a function that returns a float64."""
    return call(function, *arguments, result=DOUBLE)


def fails(function: Any, *arguments: Any) -> Any:
    """Call what returns an int, which is 0 where all is well."""
    return (call(function, *arguments) & 0xFFFFFFFF) != 0


@contextmanager
def way_out() -> Iterator[Require]:
    """``with way_out() as require``: the block is left where something that is required does not hold."""
    end = builder().append_basic_block("end")

    def require(condition: Any) -> None:
        write = builder()
        holds = write.append_basic_block("holds")
        write.cbranch(as_llvm(condition), holds, end)
        write.position_at_end(holds)

    yield require
    builder().branch(end)
    builder().position_at_end(end)


def static_word(name: str) -> Any:
    """The address of an int64 that lasts as long as the program."""
    variable = ir.GlobalVariable(builder().module, INT64, name)
    variable.initializer, variable.linkage = INT64(0), "internal"
    return Value(builder().ptrtoint(variable, INT64))
