"""What programs that are no kernels need besides: calls of functions, steps that no thread can come between, a way out.

Pointers and numbers of 32 bits are passed as int64, which is how 64-bit machines pass them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from llvmlite import ir

from anynorm._kernels.cpu.language.tracing import DOUBLE, INT64, Value, as_llvm, builder

Require = Callable[[Any], None]

_ORDER, _ALIGNED = "seq_cst", 8


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


def address_of(function: ir.Function) -> Any:
    """Where a function of this module lies."""
    return Value(builder().ptrtoint(function, INT64))


def static_word(name: str) -> Any:
    """The address of an int64 that lasts as long as the program."""
    variable = ir.GlobalVariable(builder().module, INT64, name)
    variable.initializer, variable.linkage = INT64(0), "internal"
    return Value(builder().ptrtoint(variable, INT64))


def _int64_at(address: Any) -> Any:
    return builder().inttoptr(as_llvm(address), INT64.as_pointer())


def load_atomic(address: Any) -> Any:
    """An int64 that other threads write."""
    return Value(builder().load_atomic(_int64_at(address), _ORDER, _ALIGNED))


def store_atomic(address: Any, value: Any) -> None:
    """Store an int64 that other threads read; they then see all that was stored before."""
    builder().store_atomic(as_llvm(value, INT64), _int64_at(address), _ORDER, _ALIGNED)


def add_atomic(address: Any, amount: int) -> Any:
    """Add to an int64; return what it was."""
    return Value(builder().atomic_rmw("add", _int64_at(address), INT64(amount), _ORDER))


def exchange_atomic(address: Any, expected: Any, value: Any) -> Any:
    """Store an int64 in place of an expected one; return whether that was there."""
    write = builder()
    found = write.cmpxchg(_int64_at(address), as_llvm(expected, INT64), as_llvm(value, INT64), _ORDER, _ORDER)
    return Value(write.extract_value(found, 1))


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
