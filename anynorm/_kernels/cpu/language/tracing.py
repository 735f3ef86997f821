"""Functions that are run once, while a kernel is compiled, and leave LLVM instructions in their place.

A kernel is plain Python: its arguments are `Value`s, whose operators write instructions, an ``if`` decides while
compiling, `loop` and `cases` are the loop and the branch of the compiled code, and a `cell` is what changes from turn
to turn. Under ANYNORM_INTERPRET=1 the same functions run on NumPy instead.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from llvmlite import ir

DOUBLE, FLOAT, HALF = ir.DoubleType(), ir.FloatType(), ir.HalfType()
INT1, INT8, INT16, INT32, INT64 = (ir.IntType(width) for width in (1, 8, 16, 32, 64))


class _State(threading.local):
    builder: Any = None


_state = _State()


def builder() -> Any:
    """What writes instructions at present."""
    return _state.builder


@contextmanager
def _writing_with(new: Any) -> Iterator[None]:
    before, _state.builder = _state.builder, new
    try:
        yield
    finally:
        _state.builder = before


class Value:
    """An int64, a float64, a truth, or lanes of a floating dtype."""

    def __init__(self, llvm: Any) -> None:
        self._llvm = llvm

    @property
    def llvm(self) -> Any:
        return self._llvm

    @property
    def type(self) -> Any:
        """Its LLVM type."""
        return self._llvm.type

    def _binary(self, other: Any, floats: str, integers: str, swapped: bool = False) -> Value:
        a, b = alike(other, self) if swapped else alike(self, other)
        return Value(getattr(builder(), integers if _is_integer(a.type) else floats)(a, b))

    def _compared(self, how: str, other: Any) -> Value:
        a, b = alike(self, other)
        write = builder()
        return Value((write.icmp_signed if _is_integer(a.type) else write.fcmp_ordered)(how, a, b))

    def __neg__(self) -> Value:
        write = builder()
        return Value((write.neg if _is_integer(self.type) else write.fneg)(self.llvm))

    def __len__(self) -> int:
        return int(self.type.count)

    def __getitem__(self, which: int | slice) -> Value:
        """One lane, or some of them."""
        if isinstance(which, int):
            return Value(builder().extract_element(self.llvm, INT32(which)))
        mask = list(range(*which.indices(len(self))))
        nothing = ir.Constant(self.type, ir.Undefined)
        return Value(builder().shuffle_vector(self.llvm, nothing, ir.Constant(ir.VectorType(INT32, len(mask)), mask)))

    def __bool__(self) -> bool:
        raise TypeError("what a value is, is not known while compiling; branch with cases() or loop()")


def _is_integer(kind: Any) -> bool:
    return isinstance(kind.element if isinstance(kind, ir.VectorType) else kind, ir.IntType)


def _operators(name: str, floats: str, integers: str) -> None:
    setattr(Value, f"__{name}__", lambda self, other: self._binary(other, floats, integers))
    setattr(Value, f"__r{name}__", lambda self, other: self._binary(other, floats, integers, True))


# Integers are lengths and addresses, none of which is negative, so that rounding down is rounding to 0.
for _name, _floats, _integers in (
    ("add", "fadd", "add"), ("sub", "fsub", "sub"), ("mul", "fmul", "mul"), ("truediv", "fdiv", "none"),
    ("floordiv", "none", "sdiv"), ("mod", "none", "srem"), ("and", "none", "and_"), ("or", "none", "or_"),
):  # fmt: skip
    _operators(_name, _floats, _integers)
for _name, _how in (("lt", "<"), ("le", "<="), ("gt", ">"), ("ge", ">="), ("eq", "=="), ("ne", "!=")):
    setattr(Value, f"__{_name}__", lambda self, other, how=_how: self._compared(how, other))


class Cell(Value):
    """A value that changes, set by ``cell[...] = value``."""

    def __init__(self, start: Any) -> None:
        write, value = builder(), as_llvm(start)
        with write.goto_entry_block():
            self._memory = write.alloca(value.type)
        self._type = value.type
        write.store(value, self._memory)

    @property
    def llvm(self) -> Any:
        return builder().load(self._memory)

    @property
    def type(self) -> Any:
        """Its LLVM type."""
        return self._type

    def __setitem__(self, everything: Any, value: Any) -> None:
        builder().store(as_llvm(value, self.type), self._memory)


cell = Cell


def as_llvm(value: Any, like: ir.Type = None) -> Any:
    """The LLVM value of a Value or a Python number; of that type where it is a number, in all lanes if need be."""
    is_vector = isinstance(like, ir.VectorType)
    if isinstance(value, Value):
        found = value.llvm
    elif isinstance(value, bool):
        found = INT1(int(value))
    else:
        element = like.element if is_vector else like or (INT64 if isinstance(value, int) else DOUBLE)
        found = element(value if isinstance(element, ir.IntType) else float(value))
    return spread(found, like.count) if is_vector and not isinstance(found.type, ir.VectorType) else found


def alike(*values: Any) -> list[Any]:
    """The LLVM values of numbers and lanes, which are numbers in all lanes where there are lanes among them."""
    types = [value.type for value in values if isinstance(value, Value)]
    vectors = (kind for kind in types if isinstance(kind, ir.VectorType))
    kind = next(vectors, types[0] if types else None)
    return [as_llvm(value, kind) for value in values]


def loop(start: Any, stop: Any, step: Any, ended: Any = None) -> Iterator[Value]:
    """``for i in loop(start, stop, step)``: a loop when compiled; its body is traced once.

    It ends early when the body has set ``ended``, a cell, to True.
    """
    write = builder()
    first, last, by = (as_llvm(number, INT64) for number in (start, stop, step))
    before = write.block
    head, body, after = (write.append_basic_block(name) for name in ("loop", "body", "after"))
    write.branch(head)
    write.position_at_end(head)
    index = write.phi(INT64)
    index.add_incoming(first, before)
    goes_on = write.icmp_signed("<", index, last)
    if ended is not None:
        goes_on = write.and_(goes_on, write.not_(ended.llvm))
    write.cbranch(goes_on, body, after)
    write.position_at_end(body)
    yield Value(index)
    index.add_incoming(write.add(index, by), write.block)
    write.branch(head)
    write.position_at_end(after)


def cases(condition: Any) -> Iterator[bool]:
    """``for flag in cases(condition)``: a branch when compiled; its body is traced for True and for False."""
    if not isinstance(condition, Value):
        yield bool(condition)
        return
    write = builder()
    then, otherwise, after = (write.append_basic_block(name) for name in ("then", "otherwise", "after"))
    write.cbranch(condition.llvm, then, otherwise)
    for flag, block in ((True, then), (False, otherwise)):
        write.position_at_end(block)
        yield flag
        write.branch(after)
    write.position_at_end(after)


def when(condition: Any) -> Iterator[None]:
    """``for _ in when(condition)``: a branch when compiled; its body is traced once."""
    for flag in cases(condition):
        if flag:
            yield


def trace(name: str, kernel: Callable[..., Any], arguments: int) -> ir.Module:
    """The instructions of a kernel of so many int64 arguments that returns an int64, in a module of their own."""
    module = ir.Module(name)
    define(module, name, kernel, arguments)
    return module


def define(module: ir.Module, name: str, function: Callable[..., Any], arguments: int) -> ir.Function:
    """A function of so many int64 arguments that returns an int64, in a module."""
    defined = ir.Function(module, ir.FunctionType(INT64, [INT64] * arguments), name)
    write = ir.IRBuilder(defined.append_basic_block())
    with _writing_with(write):
        write.ret(as_llvm(function(*map(Value, defined.args)), INT64))
    return defined


def spread(value: Any, length: int) -> Any:
    """An LLVM number in all of a vector."""
    write = builder()
    undefined = ir.Constant(ir.VectorType(value.type, length), ir.Undefined)
    first = write.insert_element(undefined, value, INT32(0))
    return write.shuffle_vector(first, undefined, ir.Constant(ir.VectorType(INT32, length), [0] * length))


def call(name: str, result: ir.Type, *arguments: Any) -> Any:
    """Call an LLVM intrinsic."""
    write = builder()
    module = write.module
    function = module.globals.get(name)
    if function is None:
        function = ir.Function(module, ir.FunctionType(result, [argument.type for argument in arguments]), name)
    return write.call(function, arguments)
