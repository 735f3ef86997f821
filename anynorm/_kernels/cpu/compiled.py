"""Vectors of LANES numbers: the instructions that the CPU kernels are compiled to.

Numba has no vector type, and leaving vectorization to the compiler would leave it the order of the sums too. Here each
function is an LLVM instruction or a few on a vector of fixed length. LLVM cuts that to the width of the processor at
hand, and the order of the sums, and so the bits, stay the same on each.

The functions between memory and lanes are in `compiled_memory`. `interpreted` says in NumPy what each function does,
and `lanes` is where the kernels get them from.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic, lower_builtin, models, register_model, type_callable

from anynorm._kernels.cpu.tags import LANES

HALF, FLOAT, DOUBLE = ir.HalfType(), ir.FloatType(), ir.DoubleType()
INT16, INT32 = ir.IntType(16), ir.IntType(32)
IN_MEMORY = {types.uint16: HALF, types.int16: INT16, types.float32: FLOAT, types.float64: DOUBLE}


class LanesType(types.Type):
    """LANES numbers of one floating dtype."""

    def __init__(self, element: types.Float) -> None:
        super().__init__(name=f"Lanes({element})")
        self.element = element


LANES_TYPES = {element: LanesType(element) for element in (types.float32, types.float64)}


@register_model(LanesType)
class _LanesModel(models.PrimitiveModel):
    def __init__(self, manager: Any, lanes: LanesType) -> None:
        super().__init__(manager, lanes, vector(IN_MEMORY[lanes.element]))


def vector(element: ir.Type, length: int = LANES) -> ir.VectorType:
    return ir.VectorType(element, length)


def constant(element: ir.Type, value: Any) -> ir.Constant:
    return ir.Constant(vector(element), [value] * LANES)


def spread(builder: Any, value: Any) -> Any:
    undefined = ir.Constant(vector(value.type), ir.Undefined)
    first = builder.insert_element(undefined, value, INT32(0))
    return builder.shuffle_vector(first, undefined, ir.Constant(vector(INT32), [0] * LANES))


def call(builder: Any, name: str, result: ir.Type, *arguments: Any) -> Any:
    """Call an LLVM intrinsic whose name ends in the type of its vectors."""
    kind = ir.FunctionType(result, [argument.type for argument in arguments])
    return builder.call(cgutils.get_or_insert_function(builder.module, kind, name), arguments)


def suffix_of(element: ir.Type) -> str:
    return f"v{LANES}{ {FLOAT: 'f32', DOUBLE: 'f64', INT16: 'i16'}[element] }"


def widened(builder: Any, raw: Any, tag: types.Type, element: ir.Type) -> Any:
    """Elements as they lie in memory in another dtype; exact in a wider one."""
    if tag == types.uint16:
        raw = builder.fpext(builder.bitcast(raw, vector(HALF)), vector(FLOAT))
    elif tag == types.int16:  # bfloat16 is the upper half of a float32
        bits = builder.shl(builder.zext(raw, vector(INT32)), constant(INT32, 16))
        raw = builder.bitcast(bits, vector(FLOAT))
    if raw.type.element == element:
        return raw
    return (builder.fpext if element == DOUBLE else builder.fptrunc)(raw, vector(element))


@intrinsic
def splat(context, value, wide):
    """A number in all lanes."""

    def generate(_, builder, signature, arguments):
        element = IN_MEMORY[wide]
        value = arguments[0] if element == DOUBLE else builder.fptrunc(arguments[0], element)
        return spread(builder, value)

    return LANES_TYPES[wide](types.float64, wide), generate


@intrinsic
def total(context, lanes):
    """The sum of all lanes as float64: halves are added until one number is left."""

    def generate(_, builder, signature, arguments):
        value, length = arguments[0], LANES
        while length > 1:
            length //= 2
            undefined = ir.Constant(value.type, ir.Undefined)
            halves = (ir.Constant(vector(INT32, length), list(range(start, start + length))) for start in (0, length))
            value = builder.fadd(*(builder.shuffle_vector(value, undefined, half) for half in halves))
        number = builder.extract_element(value, INT32(0))
        return number if number.type == DOUBLE else builder.fpext(number, DOUBLE)

    return types.float64(lanes), generate


@intrinsic
def total_pair(context, high, low):
    """The sum of all lanes of a pair, high + low, as a pair; in halves, with what each addition rounds off."""

    def generate(compiler, builder, signature, arguments):
        (high, low), length = arguments, LANES
        while length > 1:
            length //= 2
            undefined = ir.Constant(high.type, ir.Undefined)
            halves = [ir.Constant(vector(INT32, length), list(range(at, at + length))) for at in (0, length)]
            a, b = (builder.shuffle_vector(high, undefined, half) for half in halves)
            low = builder.fadd(*(builder.shuffle_vector(low, undefined, half) for half in halves))
            high = builder.fadd(a, b)
            b_seen = builder.fsub(high, a)
            error = builder.fadd(builder.fsub(a, builder.fsub(high, b_seen)), builder.fsub(b, b_seen))
            low = builder.fadd(low, error)
        numbers = [builder.extract_element(part, INT32(0)) for part in (high, low)]
        return compiler.make_tuple(builder, signature.return_type, numbers)

    return types.UniTuple(types.float64, 2)(high, low), generate


@intrinsic
def as_lanes(context, lanes, wide):
    """The same numbers in another dtype."""

    def generate(_, builder, signature, arguments):
        return widened(builder, arguments[0], lanes.element, IN_MEMORY[wide])

    return LANES_TYPES[wide](lanes, wide), generate


@intrinsic
def fma(context, a, b, c):
    """``a * b + c`` of lanes or of float64, rounded once."""

    def generate(_, builder, signature, arguments):
        kind = arguments[0].type
        suffix = suffix_of(kind.element) if isinstance(kind, ir.VectorType) else "f64"
        return call(builder, f"llvm.fma.{suffix}", kind, *arguments)

    return a(a, a, a), generate


@intrinsic
def root(context, a):
    """The square root of lanes or of a float64, rounded once."""

    def generate(_, builder, signature, arguments):
        kind = arguments[0].type
        suffix = suffix_of(kind.element) if isinstance(kind, ir.VectorType) else "f64"
        return call(builder, f"llvm.sqrt.{suffix}", kind, *arguments)

    return a(a), generate


@intrinsic
def alike(context, value, like):
    """A float64 as it is, or in all lanes, whichever ``like`` is."""

    def generate(_, builder, signature, arguments):
        return arguments[0] if like == types.float64 else spread(builder, arguments[0])

    return like(types.float64, like), generate


@intrinsic
def magnitude(context, a):
    """The absolute value."""

    def generate(_, builder, signature, arguments):
        kind = vector(IN_MEMORY[a.element])
        return call(builder, f"llvm.fabs.{suffix_of(kind.element)}", kind, *arguments)

    return a(a), generate


@intrinsic
def where_less(context, a, b, then, otherwise):
    """``then`` in lanes in which a < b, else ``otherwise``; NaN is less than nothing."""

    def generate(_, builder, signature, arguments):
        less = builder.fcmp_ordered("<", *arguments[:2])
        return builder.select(less, *arguments[2:])

    return then(a, a, then, then), generate


@intrinsic
def weighted(context, value, factor, weight, bias):
    """``value * factor * weight + bias``, in the order in which nothing leaves the range of the wide dtype.

    In float64 value * factor first: both come from narrower data, so neither product can. In float32 factor * weight
    first: both are known to be near 1, as a subnormal value need not be.
    """

    def generate(_, builder, signature, arguments):
        kind = vector(IN_MEMORY[value.element])
        first = (arguments[0], arguments[2]) if value.element == types.float64 else (arguments[2], arguments[0])
        product = builder.fmul(first[0], arguments[1])
        return call(builder, f"llvm.fma.{suffix_of(kind.element)}", kind, product, first[1], arguments[3])

    return value(value, value, value, value), generate


def _operation(operation: Callable[..., Any], instruction: str) -> None:
    """Let an operator of Python's act on lanes; as an instruction, for a function would have to be compiled."""

    @type_callable(operation)
    def type_of_lanes(context):
        return lambda a, b: a if isinstance(a, LanesType) and a == b else None

    @lower_builtin(operation, LanesType, LanesType)
    def lowered(context, builder, signature, arguments):
        return getattr(builder, instruction)(*arguments)


for _operator, _instruction in (
    (operator.add, "fadd"),
    (operator.sub, "fsub"),
    (operator.mul, "fmul"),
    (operator.truediv, "fdiv"),
):
    _operation(_operator, _instruction)
