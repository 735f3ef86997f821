"""Between memory and lanes: the instructions of the CPU kernels that are given an address."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

from llvmlite import ir

from anynorm._kernels.cpu.language.compiled import narrowed, type_of, vector, widened
from anynorm._kernels.cpu.language.dtypes import CACHE_LINE_NBYTES, FLOAT16, FLOAT64, Address, Dtype, Lanes
from anynorm._kernels.cpu.language.tracing import (
    DOUBLE,
    FLOAT,
    INT8,
    INT16,
    INT32,
    INT64,
    Value,
    as_llvm,
    builder,
    call,
    spread,
)


def _pointer(address: Any, kind: ir.Type) -> Any:
    return builder().inttoptr(as_llvm(address), kind.as_pointer())


def _added(a: Any, b: Any, dtype: Dtype) -> Any:
    """The sum of elements as their own dtype rounds it; float32 holds that of 16-bit floats closely enough."""
    element = DOUBLE if dtype is FLOAT64 else FLOAT
    return narrowed(builder().fadd(widened(a, dtype, element), widened(b, dtype, element)), dtype)


def _elements(address: Any, residual: Any, dtype: Dtype, read: Callable[[Any], Any]) -> Any:
    """What lies at an address, or the rounded sum of that and what lies at another one."""
    return read(address) if residual is None else _added(read(address), read(residual), dtype)


def load(
    address: Any, dtype: Dtype, compute_dtype: Dtype = FLOAT64, lanes: int | None = None, residual: Address = None,
    by_parity: bool = False,
) -> Lanes:  # fmt: skip
    """Elements from an address in lanes of another dtype; a cache line of them unless told.

    By parity those of bfloat16 come in another order, first the even ones, in half the instructions.
    """
    kind = vector(type_of(dtype), lanes or dtype.lanes)
    # No alignment is taken for granted.
    raw = _elements(address, residual, dtype, lambda at: builder().load(_pointer(at, kind), align=1))
    return Value(widened(raw, dtype, type_of(compute_dtype), by_parity))


def store(address: Any, dtype: Dtype, value: Any) -> None:
    """Round lanes, or a float64, into elements at an address."""
    number = as_llvm(value, DOUBLE)
    is_vector = isinstance(number.type, ir.VectorType)
    raw = narrowed(number if is_vector else spread(number, 1), dtype)
    raw = raw if is_vector else builder().extract_element(raw, INT32(0))
    builder().store(raw, _pointer(address, raw.type), align=1)


def stream(address: Any, dtype: Dtype, value: Lanes) -> None:
    """`store` past the caches; the address must be a multiple of a cache line."""
    write, raw = builder(), narrowed(value.llvm, dtype)
    if dtype is FLOAT16:
        # LLVM would make one instruction of the rounding and the store, and there is none that does both and
        # streams. The lowest bit of the address is 0, which LLVM does not know.
        zero = write.trunc(write.and_(as_llvm(address), INT64(1)), INT16)
        raw = write.or_(raw, spread(zero, raw.type.count))
    _stream(address, raw)


def _stream(address: Any, raw: Any) -> None:
    instruction = builder().store(raw, _pointer(address, raw.type), align=CACHE_LINE_NBYTES)
    instruction.set_metadata("nontemporal", builder().module.add_metadata([INT32(1)]))


def stream_line(target: Any, source: Any) -> None:
    """Copy a cache line past the caches."""
    kind = vector(INT32, CACHE_LINE_NBYTES // 4)
    _stream(target, builder().load(_pointer(source, kind), align=1))


def prefetch(address: Any) -> None:
    """Have a cache line brought near; any address will do."""
    pointer = _pointer(address, INT8)
    call("llvm.prefetch.p0", ir.VoidType(), pointer, INT32(0), INT32(3), INT32(1))


# Nothing else may pass streaming stores: a thread that waits for the result must find all of it.
def fence() -> None:
    """Make streamed stores seen before whatever is stored next."""
    builder().fence("seq_cst")


def buffer(nbytes: Any) -> int:
    """The address of so many bytes on the stack, on a cache line of their own; not to be asked for in a loop."""
    write, length = builder(), as_llvm(nbytes)
    with write.goto_entry_block() if isinstance(nbytes, int) else nullcontext():  # where it is known how many
        memory = write.alloca(INT8, length)
        memory.align = CACHE_LINE_NBYTES
    return Value(write.ptrtoint(memory, INT64))  # type: ignore[return-value]


def peek(address: Any, dtype: Dtype, residual: Address = None) -> Value:
    """One element from an address, as float64."""

    def read(at: Any) -> Any:
        return spread(builder().load(_pointer(at, type_of(dtype)), align=1), 1)

    raw = widened(_elements(address, residual, dtype, read), dtype, DOUBLE)
    return Value(builder().extract_element(raw, INT32(0)))


def integer(address: Any) -> int:
    """An int64 from an address."""
    return Value(builder().load(_pointer(address, INT64)))  # type: ignore[return-value]


def store_integer(address: Any, value: Any) -> None:
    """An int64 to an address."""
    builder().store(as_llvm(value, INT64), _pointer(address, INT64))


def call_kernel(kernel: Any, task: Any, first: Any, last: Any) -> int:
    """Run another kernel, whose machine code lies at an address."""
    arguments = [as_llvm(one, INT64) for one in (task, first, last)]
    kind = ir.FunctionType(INT64, [INT64] * len(arguments))
    return Value(builder().call(_pointer(kernel, kind), arguments))  # type: ignore[return-value]


def copy(target: Any, source: Any, dtype: Dtype) -> None:
    """Copy one element from address to address."""
    kind = type_of(dtype)
    builder().store(builder().load(_pointer(source, kind), align=1), _pointer(target, kind), align=1)
