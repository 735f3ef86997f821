"""Vectors of numbers: the LLVM instructions that the CPU kernels are compiled to.

Leaving vectorization to the compiler would leave it the order of the sums too. Here each function writes an instruction
or a few on a vector of fixed length. LLVM cuts that to the width of the processor at hand, and the order of the sums,
and so the bits, stay the same on each.

The functions between memory and lanes are in `compiled_memory`. `interpreted` and `interpreted_memory` say in NumPy
what each function does. The kernels get them from `arithmetic` and `memory`.
"""

from __future__ import annotations

import platform
import sys
from typing import Any

from llvmlite import ir

from anynorm._kernels.cpu.language.dtypes import BFLOAT16, FLOAT16, FLOAT32, FLOAT64, Dtype, Lanes
from anynorm._kernels.cpu.language.tracing import (
    DOUBLE,
    FLOAT,
    HALF,
    INT16,
    INT32,
    INT64,
    Value,
    alike,
    as_llvm,
    builder,
    call,
    spread,
)

# Elements of 16 bits lie in memory as integers.
_TYPES = {FLOAT16: INT16, BFLOAT16: INT16, FLOAT32: FLOAT, FLOAT64: DOUBLE}


def type_of(dtype: Dtype) -> ir.Type:
    """The LLVM type of an element."""
    return _TYPES[dtype]


def vector(element: ir.Type, length: int) -> ir.VectorType:
    return ir.VectorType(element, length)


def constant(element: ir.Type, value: Any, length: int) -> ir.Constant:
    return ir.Constant(vector(element, length), [value] * length)


def widened(raw: Any, dtype: Dtype, element: ir.Type, by_parity: bool = False) -> Any:
    """Elements as they lie in memory in another dtype; exact in a wider one."""
    write, length = builder(), raw.type.count
    if dtype is FLOAT16:
        raw = write.fpext(write.bitcast(raw, vector(HALF, length)), vector(FLOAT, length))
    elif dtype is BFLOAT16:  # bfloat16 is the upper half of a float32
        if by_parity:
            both = write.bitcast(raw, vector(INT32, length // 2))
            upper = write.and_(both, constant(INT32, -1 << 16, length // 2))
            lower = write.shl(both, constant(INT32, 16, length // 2))
            parts = (lower, upper) if sys.byteorder == "little" else (upper, lower)
            bits = write.shuffle_vector(*parts, ir.Constant(vector(INT32, length), list(range(length))))
        else:
            bits = write.shl(write.zext(raw, vector(INT32, length)), constant(INT32, 16, length))
        raw = write.bitcast(bits, vector(FLOAT, length))
    if raw.type.element == element:
        return raw
    return (write.fpext if element == DOUBLE else write.fptrunc)(raw, vector(element, length))


def narrowed(value: Any, dtype: Dtype) -> Any:
    """Lanes rounded to elements as they lie in memory."""
    write, length = builder(), value.type.count
    if dtype is BFLOAT16:
        return _to_bfloat16(_in_float32(value))
    if dtype is FLOAT16:
        return write.bitcast(write.fptrunc(_in_float32(value), vector(HALF, length)), vector(INT16, length))
    return _in_float32(value) if dtype is FLOAT32 else value


def _in_float32(value: Any) -> Any:
    """By way of this float64 reaches 16 bits, for want of an instruction; that adds 2**-13 of a unit to the error."""
    is_wide = value.type.element == DOUBLE
    return builder().fptrunc(value, vector(FLOAT, value.type.count)) if is_wide else value


def _to_bfloat16(value: Any) -> Any:
    """Float32 rounded to nearest even: the upper half of each number, or the next one if the lower half is beyond 1/2.

    In integers, as the instruction for it takes subnormal numbers for zeros; and in those of 16 bits, of which a
    register holds twice as many as of float32. NaN, quiet as it comes of arithmetic, is always the same one: its sign
    depends on the instructions that it came through.
    """
    write, length = builder(), value.type.count
    halves = write.bitcast(value, vector(INT16, 2 * length))
    first = 0 if sys.byteorder == "little" else 1
    lower, upper = (
        write.shuffle_vector(halves, halves, ir.Constant(vector(INT32, length), list(range(one, 2 * length, 2))))
        for one in (first, 1 - first)
    )
    one, middle, largest, nan = (_in_register(INT16, bits, length) for bits in (1, 0x8000, 0x7FFF, 0x7FC0))
    # The middle counts as beyond 1/2 where the upper half is odd.
    below = write.or_(lower, write.and_(upper, one))
    is_beyond = write.icmp_unsigned(">", below, middle)
    is_nan = write.icmp_unsigned(">=", write.and_(upper, largest), nan)
    return write.select(is_nan, nan, write.select(is_beyond, write.add(upper, one), upper))


def _in_register(element: ir.IntType, bits: int, length: int) -> Any:
    """A constant that LLVM takes for a value, which it keeps in a register: it would load it anew in each turn.

    layer_norm and rms_norm of bfloat16 take 0.96 of the time this way (EPYC 9005). Elsewhere constants are made in
    registers anyway, and not every target of LLVM 20 has the intrinsic.
    """
    whole = constant(element, bits, length)
    floats = element.width * length // 32
    if floats == 0 or platform.machine().lower() not in ("x86_64", "amd64"):
        return whole
    kind = vector(FLOAT, floats)
    kept = call(f"llvm.arithmetic.fence.v{floats}f32", kind, builder().bitcast(whole, kind))
    return builder().bitcast(kept, whole.type)


def rounded(value: Value, dtype: Dtype, to_even: bool = True) -> Value:
    """Lanes, or a float64, as a dtype rounds them, in their own.

    Not to even, the middle between two numbers of bfloat16 goes to the larger one, and no NaN may have all bits set.
    """
    if not isinstance(value.type, ir.VectorType):
        return rounded(Value(spread(value.llvm, 1)), dtype)[0]
    write, length, element = builder(), value.type.count, value.type.element
    if dtype is not BFLOAT16:
        return Value(widened(narrowed(value.llvm, dtype), dtype, element))
    narrow = _in_float32(value.llvm)
    bits, half = write.bitcast(narrow, vector(INT32, length)), _in_register(INT32, 0x8000, length)
    if to_even:
        odd = write.and_(bits, _in_register(INT32, 1 << 16, length))
        is_even = write.icmp_unsigned("==", odd, constant(INT32, 0, length))
        half = write.select(is_even, _in_register(INT32, 0x7FFF, length), half)
    moved = write.add(bits, half)
    if to_even:
        moved = write.select(write.fcmp_unordered("uno", narrow, narrow), bits, moved)
    upper = write.and_(moved, _in_register(INT32, -1 << 16, length))
    return Value(widened(write.bitcast(upper, vector(FLOAT, length)), FLOAT32, element))


def splat(value: Any, compute_dtype: Dtype, lanes: int) -> Lanes:
    """A number in all lanes."""
    element, number = type_of(compute_dtype), as_llvm(value, DOUBLE)
    return Value(spread(number if element == DOUBLE else builder().fptrunc(number, element), lanes))


def as_lanes(lanes: Lanes, compute_dtype: Dtype) -> Lanes:
    """The same numbers in another dtype."""
    element, kind = type_of(compute_dtype), lanes.llvm.type
    if kind.element == element:
        return lanes
    change = builder().fpext if element == DOUBLE else builder().fptrunc
    return Value(change(lanes.llvm, vector(element, kind.count)))


def in_order(lanes: Lanes, dtype: Dtype) -> Lanes:
    """Lanes of elements of a dtype that were loaded by parity, as they lie in memory."""
    if dtype is not BFLOAT16:
        return lanes
    half = len(lanes) // 2
    places = ir.Constant(vector(INT32, 2 * half), [i // 2 + i % 2 * half for i in range(2 * half)])
    return Value(builder().shuffle_vector(lanes.llvm, ir.Constant(lanes.type, ir.Undefined), places))


def split(value: Value) -> tuple[Value, Value]:
    """What float32 holds of float64 when it is cut off, and the rest, with the same sign; of lanes or of numbers.

    The signs being the same, a pair times 0.0 or -0.0 has the sign of the product.
    """
    high = with_bits(value, ~((1 << 29) - 1))
    return high, _called("copysign", builder().fsub(value.llvm, high.llvm), value.llvm)


def with_bits(value: Value, kept: int) -> Value:
    """Float64 with some of its bits, the others being 0; of lanes or of numbers."""
    write, kind = builder(), value.type
    bits = vector(INT64, kind.count) if isinstance(kind, ir.VectorType) else INT64
    return Value(write.bitcast(write.and_(write.bitcast(value.llvm, bits), as_llvm(kept, bits)), kind))


def fma(a: Value, b: Value, c: Value) -> Value:
    """``a * b + c`` of lanes or of float64, rounded once."""
    return _called("fma", *alike(a, b, c))


def root(a: Value) -> Value:
    """The square root of lanes or of a float64, rounded once."""
    return _called("sqrt", a.llvm)


def magnitude(a: Value) -> Value:
    """The absolute value of lanes or of a float64."""
    return _called("fabs", a.llvm)


def _called(name: str, *arguments: Any) -> Value:
    """What an LLVM intrinsic makes of arguments of one type."""
    kind = arguments[0].type
    return Value(call(f"llvm.{name}.{_suffix_of(kind)}", kind, *arguments))


def _suffix_of(kind: ir.Type) -> str:
    """How the name of an LLVM intrinsic ends."""
    names = {FLOAT: "f32", DOUBLE: "f64"}
    return f"v{kind.count}{names[kind.element]}" if isinstance(kind, ir.VectorType) else names[kind]


def where(condition: Any, then: Any, otherwise: Any) -> Value:
    """One of two numbers; lane by lane where the condition is one of lanes. NaN is neither less nor more."""
    chosen, lanes = as_llvm(condition), alike(then, otherwise)
    if isinstance(chosen.type, ir.VectorType):
        lanes = [one if isinstance(one.type, ir.VectorType) else spread(one, chosen.type.count) for one in lanes]
    return Value(builder().select(chosen, *lanes))


def number(a: Any) -> Value:
    """An integer as a float64."""
    return Value(builder().sitofp(as_llvm(a), DOUBLE))


def part(value: Lanes, first: Any, last: Any, rest: Lanes) -> Lanes:
    """Lanes from the first up to the last, and others in place of the rest."""
    write, length = builder(), value.llvm.type.count
    numbers = ir.Constant(vector(INT32, length), list(range(length)))
    inside = []
    for how, bound in ((">=", first), ("<", last)):
        narrow = write.trunc(as_llvm(bound), INT32)
        inside.append(write.icmp_signed(how, numbers, spread(narrow, length)))
    return Value(write.select(write.and_(*inside), value.llvm, rest.llvm))
