"""Between Python and a kernel: what the objects that it is called with hold, and the lock of the interpreter.

The kernels know addresses alone. Here is what comes before: `again` is written with it.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import config, types
from numba.core import cgutils
from numba.extending import NativeValue, intrinsic, models, register_model, unbox

from anynorm._kernels.cpu.launch import memory

_ADDRESS = ir.IntType(64)
_BYTES = ir.IntType(8).as_pointer()


class _Held(types.Type):  # type: ignore[misc]  # Numba has no types
    """Any Python object, which the caller holds."""

    def __init__(self) -> None:
        super().__init__(name="Held")


HELD = _Held()


@register_model(_Held)
class _HeldModel(models.PrimitiveModel):  # type: ignore[misc]
    def __init__(self, manager: Any, held: Any) -> None:
        super().__init__(manager, held, _ADDRESS)


@unbox(_Held)
def _unbox_held(held: Any, value: Any, c: Any) -> Any:
    return NativeValue(c.builder.ptrtoint(value, _ADDRESS))


@intrinsic
def _place_of(context, held):
    """The address of an object itself."""
    return types.int64(held), lambda _, builder, signature, arguments: arguments[0]


@intrinsic
def _integer_of(context, held):
    """The value of a Python int; the lock must be held."""

    def generate(target, builder, signature, arguments):
        value = builder.inttoptr(arguments[0], _BYTES)
        return target.get_python_api(builder).long_as_longlong(value)

    return types.int64(held), generate


@intrinsic
def _misfits(context, array, dtype, flags, ndim, shape):
    """0 where a NumPy array is of a dtype and a shape and has all flags."""

    def generate(_, builder, signature, arguments):
        array, dtype, flags, ndim, shape = arguments

        def field(place, kind=_ADDRESS):
            return builder.load(builder.inttoptr(builder.add(array, _ADDRESS(place)), kind.as_pointer()))

        lacking = builder.and_(builder.not_(field(memory.FLAGS)), flags)
        other_ndim = builder.xor(builder.and_(field(memory.NDIM), _ADDRESS(memory.INT)), ndim)
        # Nothing is compared where it might not be there.
        is_same_ndim = builder.icmp_unsigned("==", other_ndim, _ADDRESS(0))
        nbytes = builder.select(is_same_ndim, builder.mul(ndim, _ADDRESS(8)), _ADDRESS(0))
        pointers = [builder.inttoptr(place, _BYTES) for place in (field(memory.SHAPE), shape)]
        kind = ir.FunctionType(ir.IntType(32), [_BYTES, _BYTES, _ADDRESS])
        compare = cgutils.get_or_insert_function(builder.module, kind, "memcmp")
        found = builder.zext(builder.call(compare, [*pointers, nbytes]), _ADDRESS)
        for more in (builder.xor(field(memory.DTYPE), dtype), lacking, other_ndim):
            found = builder.or_(found, more)
        return found

    return types.int64(array, types.int64, types.int64, types.int64, types.int64), generate


@intrinsic
def _is_apart(context, a, a_nbytes, b, b_nbytes):
    """Whether two pieces of memory share nothing."""

    def generate(_, builder, signature, arguments):
        a, a_nbytes, b, b_nbytes = arguments
        before = builder.icmp_unsigned("<=", builder.add(a, a_nbytes), b)
        behind = builder.icmp_unsigned("<=", builder.add(b, b_nbytes), a)
        return builder.or_(before, behind)

    return types.boolean(types.int64, types.int64, types.int64, types.int64), generate


@intrinsic
def _unlock(context):
    """Let other threads of Python run; return what `lock` needs."""

    def generate(target, builder, signature, arguments):
        return builder.ptrtoint(target.get_python_api(builder).save_thread(), _ADDRESS)

    return types.int64(), generate


@intrinsic
def _lock(context, state):
    """Wait for the lock of the interpreter."""

    def generate(target, builder, signature, arguments):
        api = target.get_python_api(builder)
        api.restore_thread(builder.inttoptr(arguments[0], api.voidptr))
        return target.get_dummy_value()

    return types.void(state), generate


@intrinsic
def _jump(context, address, tag, wide, arguments):
    """Call a kernel by its address."""

    def generate(target, builder, signature, values):
        kinds = (tag, wide, *arguments.types)
        given = [*values[1:3], *(builder.extract_value(values[3], i) for i in range(len(arguments.types)))]
        given = [target.get_value_as_argument(builder, *pair) for pair in zip(kinds, given, strict=True)]
        function = ir.FunctionType(_ADDRESS, [value.type for value in given])
        return builder.call(builder.inttoptr(values[0], function.as_pointer()), given)

    return types.int64(address, tag, wide, arguments), generate


def _interpreted_jump(address: int, tag: Any, wide: Any, arguments: tuple[Any, ...]) -> int:
    kernel: Callable[..., int] = ctypes.cast(address, ctypes.py_object).value
    return kernel(tag, wide, *arguments)


def _interpreted_misfits(array: int, dtype: int, flags: int, ndim: int, shape: int) -> int:
    own, own_dtype, own_flags, own_shape = (
        ctypes.c_int64.from_address(array + place).value
        for place in (memory.NDIM, memory.DTYPE, memory.FLAGS, memory.SHAPE)
    )
    if own & memory.INT != ndim or own_dtype != dtype or ~own_flags & flags:
        return 1
    return int(ctypes.string_at(own_shape, 8 * ndim) != ctypes.string_at(shape, 8 * ndim))


def _interpreted_is_apart(a: int, a_nbytes: int, b: int, b_nbytes: int) -> bool:
    return a + a_nbytes <= b or b + b_nbytes <= a


def _nothing(*_: Any) -> int:
    return 1


_words: tuple[Any, ...]
if config.DISABLE_JIT:
    _words = (id, int, _interpreted_misfits, _interpreted_is_apart, _nothing, _nothing, _interpreted_jump)
else:
    _words = (_place_of, _integer_of, _misfits, _is_apart, _unlock, _lock, _jump)
place_of, integer_of, misfits, is_apart, unlock, lock, jump = _words
