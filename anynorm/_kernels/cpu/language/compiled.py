"""Vectors of numbers: the LLVM instructions that the CPU kernels are compiled to.

Leaving vectorization to the compiler would leave it the order of the sums too. Here each function writes an instruction
or a few on a vector of fixed length. LLVM cuts that to the width of the processor at hand, and the order of the sums,
and so the bits, stay the same on each.

The functions between memory and lanes are in `compiled_memory`. `interpreted` and `interpreted_memory` say in NumPy
what each function does, and `lanes` is where the kernels get them from.
"""

from __future__ import annotations

from typing import Any

import numpy
from llvmlite import ir

from anynorm._kernels.cpu.language.dtypes import Dtype, Lanes
from anynorm._kernels.cpu.language.tracing import (
    DOUBLE,
    FLOAT,
    HALF,
    INT16,
    INT32,
    INT64,
    Value,
    as_llvm,
    builder,
    call,
    spread,
)

IN_MEMORY = {numpy.uint16: HALF, numpy.int16: INT16, numpy.float32: FLOAT, numpy.float64: DOUBLE}


def in_memory(dtype: Dtype) -> ir.Type:
    """The LLVM type of an element."""
    return IN_MEMORY[type(dtype)]


def vector(element: ir.Type, length: int) -> ir.VectorType:
    return ir.VectorType(element, length)


def constant(element: ir.Type, value: Any, length: int) -> ir.Constant:
    return ir.Constant(vector(element, length), [value] * length)


def suffix_of(kind: ir.Type) -> str:
    """How the name of an LLVM intrinsic ends."""
    names = {FLOAT: "f32", DOUBLE: "f64", INT16: "i16"}
    return f"v{kind.count}{names[kind.element]}" if isinstance(kind, ir.VectorType) else names[kind]


def widened(raw: Any, dtype: Dtype, element: ir.Type) -> Any:
    """Elements as they lie in memory in another dtype; exact in a wider one."""
    write, length = builder(), raw.type.count
    if type(dtype) is numpy.uint16:
        raw = write.fpext(write.bitcast(raw, vector(HALF, length)), vector(FLOAT, length))
    elif type(dtype) is numpy.int16:  # bfloat16 is the upper half of a float32
        bits = write.shl(write.zext(raw, vector(INT32, length)), constant(INT32, 16, length))
        raw = write.bitcast(bits, vector(FLOAT, length))
    if raw.type.element == element:
        return raw
    return (write.fpext if element == DOUBLE else write.fptrunc)(raw, vector(element, length))


def _unary(name: str, a: Value) -> Value:
    return Value(call(f"llvm.{name}.{suffix_of(a.llvm.type)}", a.llvm.type, a.llvm))


def splat(value: Any, compute_dtype: Dtype, lanes: int) -> Lanes:
    """A number in all lanes."""
    element, number = in_memory(compute_dtype), as_llvm(value, DOUBLE)
    return Value(spread(number if element == DOUBLE else builder().fptrunc(number, element), lanes))


def sum_lanes(lanes: Lanes) -> Value:
    """The sum of all lanes as float64: halves are added until one number is left."""
    write, value = builder(), lanes.llvm
    while value.type.count > 1:
        value = write.fadd(*_halves(value))
    number = write.extract_element(value, INT32(0))
    return Value(number if number.type == DOUBLE else write.fpext(number, DOUBLE))


def _halves(value: Any) -> list[Any]:
    length = value.type.count // 2
    undefined = ir.Constant(value.type, ir.Undefined)
    masks = (ir.Constant(vector(INT32, length), list(range(at, at + length))) for at in (0, length))
    return [builder().shuffle_vector(value, undefined, mask) for mask in masks]


def sum_lane_pairs(high: Lanes, low: Lanes) -> tuple[Value, Value]:
    """The sum of all lanes of a pair, high + low, as a pair; in halves, with what each addition rounds off."""
    write, sums, errors = builder(), high.llvm, low.llvm
    while sums.type.count > 1:
        a, b = _halves(sums)
        errors = write.fadd(*_halves(errors))
        sums = write.fadd(a, b)
        b_seen = write.fsub(sums, a)
        error = write.fadd(write.fsub(a, write.fsub(sums, b_seen)), write.fsub(b, b_seen))
        errors = write.fadd(errors, error)
    return Value(write.extract_element(sums, INT32(0))), Value(write.extract_element(errors, INT32(0)))


def as_lanes(lanes: Lanes, compute_dtype: Dtype) -> Lanes:
    """The same numbers in another dtype."""
    element, kind = in_memory(compute_dtype), lanes.llvm.type
    if kind.element == element:
        return lanes
    change = builder().fpext if element == DOUBLE else builder().fptrunc
    return Value(change(lanes.llvm, vector(element, kind.count)))


def split(value: Value) -> tuple[Value, Value]:
    """What float32 holds of float64 when it is cut off, and the rest, with the same sign; of lanes or of numbers.

    The signs being the same, a pair times 0.0 or -0.0 has the sign of the product.
    """
    write, kind = builder(), value.llvm.type
    bits = ir.VectorType(INT64, kind.count) if isinstance(kind, ir.VectorType) else INT64
    kept = ~((1 << 29) - 1)
    mask = constant(INT64, kept, kind.count) if isinstance(kind, ir.VectorType) else INT64(kept)
    high = write.bitcast(write.and_(write.bitcast(value.llvm, bits), mask), kind)
    low = write.fsub(value.llvm, high)
    return Value(high), Value(call(f"llvm.copysign.{suffix_of(kind)}", kind, low, value.llvm))


def fma(a: Value, b: Value, c: Value) -> Value:
    """``a * b + c`` of lanes or of float64, rounded once."""
    kind = a.llvm.type
    return Value(call(f"llvm.fma.{suffix_of(kind)}", kind, a.llvm, b.llvm, c.llvm))


def root(a: Value) -> Value:
    """The square root of lanes or of a float64, rounded once."""
    return _unary("sqrt", a)


def magnitude(a: Value) -> Value:
    """The absolute value."""
    return _unary("fabs", a)


def alike(value: Any, like: Value) -> Value:
    """A float64 as it is, or in all lanes, whichever ``like`` is."""
    number, kind = as_llvm(value, DOUBLE), like.llvm.type
    return Value(spread(number, kind.count) if isinstance(kind, ir.VectorType) else number)


def where_less(a: Value, b: Value, then: Any, otherwise: Any) -> Value:
    """``then`` where a < b, else ``otherwise``, lane by lane; NaN is not less than anything."""
    kind = then.llvm.type if isinstance(then, Value) else None
    less = builder().fcmp_ordered("<", a.llvm, as_llvm(b, a.llvm.type))
    return Value(builder().select(less, as_llvm(then, kind), as_llvm(otherwise, kind)))


def where(condition: Value, then: Value, otherwise: Value) -> Value:
    """One of two numbers."""
    kind = next((one.llvm.type for one in (then, otherwise) if isinstance(one, Value)), None)
    return Value(builder().select(as_llvm(condition), as_llvm(then, kind), as_llvm(otherwise, kind)))


def number(a: Any) -> Value:
    """An integer as a float64."""
    return Value(builder().sitofp(as_llvm(a), DOUBLE))


def smaller(a: Any, b: Any) -> Value:
    """The smaller one of two integers."""
    a, b = Value(as_llvm(a)), Value(as_llvm(b))
    return where(a < b, a, b)


def larger(a: Any, b: Any) -> Value:
    """The larger one of two integers."""
    a, b = Value(as_llvm(a)), Value(as_llvm(b))
    return where(a < b, b, a)


def part(value: Lanes, first: Any, last: Any, rest: Lanes) -> Lanes:
    """Lanes from the first up to the last, and others in place of the rest."""
    write, length = builder(), value.llvm.type.count
    numbers = ir.Constant(vector(INT32, length), list(range(length)))
    inside = []
    for how, bound in ((">=", first), ("<", last)):
        narrow = write.trunc(as_llvm(bound), INT32)
        inside.append(write.icmp_signed(how, numbers, spread(narrow, length)))
    return Value(write.select(write.and_(*inside), value.llvm, rest.llvm))


def weighted(value: Lanes, factor: Lanes, weight: Lanes, bias: Lanes | None) -> Lanes:
    """``value * factor * weight + bias``, in the order in which nothing leaves the range of the wide dtype.

    In float64 value * factor first: both come from narrower data, so neither product can. In float32 factor * weight
    first: both are known to be near 1, as a subnormal value need not be.
    """
    first, second = (value, weight) if value.llvm.type.element == DOUBLE else (weight, value)
    product = first * factor
    return product * second if bias is None else fma(product, second, bias)
