"""Between memory and lanes: the instructions of the CPU kernels that are given an address.

What lies in memory is told by a ``tag`` and what it becomes in lanes by ``wide``: numbers of which only the type
counts.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from anynorm._kernels.cpu.compiled import (
    DOUBLE,
    FLOAT,
    HALF,
    IN_MEMORY,
    INT16,
    INT32,
    LANES_TYPES,
    call,
    constant,
    spread,
    suffix_of,
    vector,
    widened,
)
from anynorm._kernels.cpu.tags import CACHE_LINE_NBYTES, LANES


def _narrowed(builder: Any, value: Any, tag: types.Type) -> Any:
    """Lanes rounded to elements as they lie in memory."""
    # float64 reaches 16 bits by way of float32, for want of an instruction; that adds 2**-13 of a unit to the error.
    if tag != types.float64 and value.type.element == DOUBLE:
        value = builder.fptrunc(value, vector(FLOAT))
    if tag == types.uint16:
        return builder.bitcast(builder.fptrunc(value, vector(HALF)), vector(INT16))
    if tag != types.int16:
        return value
    # To nearest even in integers: the instruction for it takes subnormal numbers for zeros.
    bits = builder.bitcast(value, vector(INT32))
    odd = builder.and_(builder.lshr(bits, constant(INT32, 16)), constant(INT32, 1))
    rounded = builder.add(builder.add(bits, odd), constant(INT32, 0x7FFF))
    is_nan = builder.fcmp_unordered("uno", value, value)
    rounded = builder.select(is_nan, constant(INT32, 0x7FC00000), rounded)
    return builder.trunc(builder.lshr(rounded, constant(INT32, 16)), vector(INT16))


def _raw_type(tag: types.Type) -> ir.Type:
    return INT16 if tag == types.uint16 else IN_MEMORY[tag]


def _pointer(builder: Any, address: Any, tag: types.Type) -> Any:
    return builder.inttoptr(address, vector(_raw_type(tag)).as_pointer())


def _loaded(builder: Any, address: Any, tag: types.Type, mask: Any = None) -> Any:
    """Elements as they lie in memory; 0 where masked out. No alignment is taken for granted."""
    element, pointer = _raw_type(tag), _pointer(builder, address, tag)
    if mask is None:
        return builder.load(pointer, align=1)
    name = f"llvm.masked.load.{suffix_of(element)}.p0"
    return call(builder, name, vector(element), pointer, INT32(1), mask, constant(element, 0))


def _first(builder: Any, count: Any) -> Any:
    """The mask of the first ``count`` lanes."""
    numbers = ir.Constant(vector(INT32), list(range(LANES)))
    return builder.icmp_signed("<", numbers, spread(builder, builder.trunc(count, INT32)))


def _added(builder: Any, a: Any, b: Any, tag: types.Type) -> Any:
    """The sum of elements as their own dtype rounds it; float32 holds that of 16-bit floats closely enough."""
    element = DOUBLE if tag == types.float64 else FLOAT
    total = builder.fadd(widened(builder, a, tag, element), widened(builder, b, tag, element))
    return _narrowed(builder, total, tag)


def _elements(builder: Any, addresses: Any, other: types.Type, tag: types.Type, read: Callable[[Any], Any]) -> Any:
    """What lies at an address, or the rounded sum of that and what lies at another one."""
    if other is types.none:
        return read(addresses[0])
    return _added(builder, read(addresses[0]), read(addresses[1]), tag)


@intrinsic
def load(context, address, other, tag, wide, count, fill):
    """LANES elements from an address; given another address, the sums of both, rounded to their dtype.

    Given a count, only so many elements, and ``fill`` for the rest, whose memory is not touched.
    """

    def generate(_, builder, signature, arguments):
        mask = None if count is types.none else _first(builder, arguments[4])
        raw = _elements(builder, arguments, other, tag, lambda address: _loaded(builder, address, tag, mask))
        value = widened(builder, raw, tag, IN_MEMORY[wide])
        if mask is None:
            return value
        fill = builder.fptrunc(arguments[5], FLOAT) if wide == types.float32 else arguments[5]
        return builder.select(mask, value, spread(builder, fill))

    return LANES_TYPES[wide](address, other, tag, wide, count, types.float64), generate


@intrinsic
def store(context, address, tag, value, count):
    """Round lanes into elements at an address; given a count, only so many, and other memory is not touched."""

    def generate(target, builder, signature, arguments):
        raw, pointer = _narrowed(builder, arguments[2], tag), _pointer(builder, arguments[0], tag)
        if count is types.none:
            builder.store(raw, pointer, align=1)
        else:
            name = f"llvm.masked.store.{suffix_of(_raw_type(tag))}.p0"
            call(builder, name, ir.VoidType(), raw, pointer, INT32(1), _first(builder, arguments[3]))
        return target.get_dummy_value()

    return types.void(types.int64, tag, value, count), generate


@intrinsic
def stream(context, address, tag, value):
    """`store` past the caches; the address must be a multiple of a cache line."""

    def generate(target, builder, signature, arguments):
        raw, pointer = _narrowed(builder, arguments[2], tag), _pointer(builder, arguments[0], tag)
        if tag == types.uint16:
            # LLVM would make one instruction of the rounding and the store, and there is none that does both and
            # streams. The lowest bit of the address is 0, which LLVM does not know.
            zero = builder.trunc(builder.and_(arguments[0], ir.IntType(64)(1)), INT16)
            raw = builder.or_(raw, spread(builder, zero))
        instruction = builder.store(raw, pointer, align=CACHE_LINE_NBYTES)
        instruction.set_metadata("nontemporal", builder.module.add_metadata([INT32(1)]))
        return target.get_dummy_value()

    return types.void(types.int64, tag, value), generate


@intrinsic
def prefetch(context, address):
    """Have a cache line brought near; any address will do."""

    def generate(target, builder, signature, arguments):
        pointer = builder.inttoptr(arguments[0], ir.IntType(8).as_pointer())
        call(builder, "llvm.prefetch.p0", ir.VoidType(), pointer, INT32(0), INT32(3), INT32(1))
        return target.get_dummy_value()

    return types.void(types.int64), generate


# Nothing else may pass streaming stores: who waits for the result must find all of it.
@intrinsic
def fence(context):
    """Make streamed stores seen before whatever is stored next."""

    def generate(target, builder, signature, arguments):
        builder.fence("seq_cst")
        return target.get_dummy_value()

    return types.void(), generate


@intrinsic(prefer_literal=True)
def buffer(context, nbytes):
    """The address of so many bytes on the stack, a number known when compiling, on a cache line of their own."""
    length = nbytes.literal_value

    def generate(_, builder, signature, arguments):
        with builder.goto_entry_block():
            memory = builder.alloca(ir.ArrayType(ir.IntType(8), length))
            memory.align = CACHE_LINE_NBYTES
        return builder.ptrtoint(memory, ir.IntType(64))

    return types.int64(nbytes), generate


@intrinsic
def peek(context, address, other, tag):
    """One element from an address, or the rounded sum of two, as float64."""

    def read(builder, address):
        pointer = builder.inttoptr(address, _raw_type(tag).as_pointer())
        return spread(builder, builder.load(pointer, align=1))

    def generate(_, builder, signature, arguments):
        raw = _elements(builder, arguments, other, tag, lambda address: read(builder, address))
        return builder.extract_element(widened(builder, raw, tag, DOUBLE), INT32(0))

    return types.float64(address, other, tag), generate


@intrinsic
def integer(context, address):
    """An int64 from an address."""
    kind = ir.IntType(64)
    return types.int64(types.int64), lambda _, builder, signature, arguments: builder.load(
        builder.inttoptr(arguments[0], kind.as_pointer())
    )


@intrinsic
def poke(context, address, tag, value):
    """Round a float64 into one element."""

    def generate(compiler, builder, signature, arguments):
        raw = builder.extract_element(_narrowed(builder, spread(builder, arguments[2]), tag), INT32(0))
        builder.store(raw, builder.inttoptr(arguments[0], raw.type.as_pointer()), align=1)
        return compiler.get_dummy_value()

    return types.void(types.int64, tag, types.float64), generate


@intrinsic
def further(context, address, nbytes):
    """An address so many bytes on; None where there is none."""
    if address is types.none:
        return types.none(address, types.int64), lambda target, *_: target.get_dummy_value()
    return types.int64(address, types.int64), lambda _, builder, signature, arguments: builder.add(*arguments)


@intrinsic
def instead(context, address, replacement):
    """Another address for this one; None where there is none."""
    if address is types.none:
        return types.none(address, types.int64), lambda target, *_: target.get_dummy_value()
    return types.int64(address, types.int64), lambda _, builder, signature, arguments: arguments[1]


@intrinsic
def size_of(context, tag):
    """The number of bytes of an element."""
    return types.int64(tag), lambda *_: ir.IntType(64)(tag.bitwidth // 8)


@intrinsic
def copy(context, target, source, tag):
    """Copy one element from address to address."""

    def generate(compiler, builder, signature, arguments):
        to, of = (builder.inttoptr(argument, _raw_type(tag).as_pointer()) for argument in arguments[:2])
        builder.store(builder.load(of, align=1), to, align=1)
        return compiler.get_dummy_value()

    return types.void(types.int64, types.int64, tag), generate
