"""A checked call -> a fused kernel on the CPU, for NumPy arrays and torch tensors alike.

Kernels are handed addresses, so both libraries run the same machine code and get the same bits.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

from anynorm._check import Call
from anynorm._kernels.cpu import scale_of
from anynorm._kernels.cpu.compiler import entries
from anynorm._kernels.cpu.fast_path.arrays import MOST_NBYTES, remember
from anynorm._kernels.cpu.fast_path.recipe import Recipe, RecipeNumbers, write
from anynorm._kernels.cpu.language.dtypes import CACHE_LINE_NBYTES, CHUNK, CODES, RULES
from anynorm._kernels.cpu.launch import extreme as rescue
from anynorm._kernels.cpu.launch.layout import Layout, plan
from anynorm._kernels.cpu.launch.machine import empty_like, last_cache_nbytes
from anynorm._kernels.cpu.threads.crew import share
from anynorm._libraries import dtype_name
from anynorm._libraries.numpy_arrays import NumPy
from anynorm._threads import get_threads

Array = Any

# To wake a thread that sleeps takes the caller 3 microseconds, all of the sharing 7, and the thread some 10 to come.
# layer_norm on two cores of an EPYC 7003, time of one thread by that of two, for rows of 64, 768 and 8192 numbers:
# float32 256 KB 0.8, 1.3, 1.0; 512 KB 1.5, 1.2, 1.04; 1 MB 1.2, 1.3, 1.1;
# float16 256 KB 1.4, 1.0, 0.9; 512 KB 1.3, 1.2, 1.1; 1 MB 1.8, 1.3, 1.4.
LEAST_SHARED_NBYTES = MOST_NBYTES
# To fetch what will be read next gains where it comes from afar, and elsewhere takes room in the first cache: rms_norm
# of float32 without and with it, ns an element, 2 MB 0.29 and 0.34, 8 MB 0.58 and 0.49, 12 MB 0.81, 0.56 (EPYC 7003).
LEAST_FETCHED_NBYTES = 4 << 20
_RESIDUAL = 5  # among the arguments of a kernel
_FEW_ROWS = 4  # for which it does not pay to widen the parameters beforehand


class _Kind(NamedTuple):
    """How a kernel is told of a dtype."""

    code: int
    in_float64: bool  # or in float32
    itemsize: int


_kinds: dict[Any, _Kind] = {}


def kind_of(dtype: Any) -> _Kind:
    """What a kernel is told of a dtype."""
    kind = _kinds.get(dtype)
    if kind is None:
        name = dtype_name(dtype)
        itemsize = {"float32": 4, "float64": 8}.get(name, 2)
        kind = _kinds[dtype] = _Kind(CODES[name], itemsize > 4, itemsize)
    return kind


def _kind_of_call(call: Call) -> _Kind:
    kind = kind_of(call.x.dtype)
    if kind.itemsize == 4 and call.rule.averaged:
        # Pairs of float32 are formed of factors alone: what float32 does not hold of a parameter needs float64.
        parameters: tuple[Any, ...] = (call.weight, call.bias)
        wider = [one for one in parameters if one is not None and kind_of(one.dtype).itemsize > 4]
        if wider or call.weight_offset:
            return kind._replace(in_float64=True)
    return kind


def run(call: Call) -> Any:
    """Return y, or (y, total) where the call has a residual."""
    access, x, residual = call.library.memory, call.x, call.residual
    shape, kind = x.shape, _kind_of_call(call)
    features = shape[call.axes[0]] if len(call.axes) == 1 else math.prod([shape[axis] for axis in call.axes])
    size = math.prod(shape)
    nbytes = size * kind.itemsize
    if call.out is None:
        y = empty_like(access, x, nbytes)
        added = None if residual is None else empty_like(access, x, nbytes)
    else:
        y, added = call.out if len(call.out) == 2 else (call.out[0], None)
    # Past the caches where x and y fill half of the last one together: streaming saves reading what is overwritten.
    # ns an element of rms_norm and then of a sum over y, float32 rows of 1024, stored and streamed, for a last cache of
    # 32 MB: 4 MB 0.54 and 0.69, 8 MB 0.82 and 0.71, 12 MB 1.15 and 0.84, 16 MB 1.14 and 0.92 (EPYC 7003, one core).
    streaming = 4 * nbytes >= last_cache_nbytes()
    # What is streamed fills cache lines, which elements that are not aligned never do.
    streaming = streaming and access.address(y) % kind.itemsize == 0
    # The beginning of a row is read once more after it was written, so nothing may be in place.
    streaming = streaming and not _shares_address(access, (y, added), (x, residual))
    layout = lay_out(call, access, (residual, y, added), kind.itemsize, access.address(y), streaming)
    streaming = streaming if layout is None else layout.streaming
    rows = size // features
    held, arguments = _arguments(call, access, kind, features, rows, y, added, layout, streaming)
    name = "paired" if kind.itemsize == 8 else "columns" if layout is not None and layout.in_columns else "rows"
    units = rows if layout is None else layout.units
    threads = get_threads() if nbytes >= LEAST_SHARED_NBYTES and units > 1 else 1
    if threads == 1:
        normalize(call, name, kind, layout, arguments, 0, units)
    else:

        def work(first: int, last: int, held: Any = held) -> None:
            # Holds the memory too: a call may be interrupted, and leave, while other threads are still at work.
            normalize(call, name, kind, layout, arguments, first, last)

        job = entries.job(name, kind.code, kind.in_float64, residual is not None, layout is not None)
        share(job, arguments, work, units, rows, nbytes, threads)
    if layout is None and residual is None and nbytes < MOST_NBYTES and not streaming and _is_repeatable(call, kind):
        remember(call, lambda: _recipe(call, kind, arguments))
    del held  # until here, what the addresses are of
    if call.out is not None:
        for one in call.out:
            access.written(one)
    return y if residual is None else (y, added)


def _shares_address(access: Any, outs: tuple[Array | None, ...], inputs: tuple[Array | None, ...]) -> bool:
    """Whether some out begins where an input does; the checks have seen to it that they are the same memory then."""
    read = [access.address(one) for one in inputs if one is not None]
    return any(one is not None and access.address(one) in read for one in outs)


def _is_repeatable(call: Call, kind: _Kind) -> bool:
    """Whether calls like this one may take the short way (repeat.py)."""
    alike = call.weight is None or call.rule.averaged or type(call.weight) is float
    return len(call.axes) == 1 and alike and not kind.in_float64


def _recipe(call: Call, kind: _Kind, arguments: tuple[Any, ...]) -> Recipe:
    """What calls like this one need for the short way."""
    # No array is to live on because of this.
    kept, access = call._replace(x=None, weight=None, bias=None, out=None), call.library.memory

    def resume(x: Array, y: Array, weight: Any, bias: Array | None, first: int) -> None:
        again = kept._replace(x=x, weight=weight, bias=bias)
        rows = math.prod(x.shape[:-1])
        held, arguments = _arguments(again, access, kind, x.shape[-1], rows, y, None, None, False)
        normalize(again, "rows", kind, None, arguments, max(first, 0), rows)
        del held

    rule, eps, scale, features = arguments[:4]
    weight_code, _, bias_code, weight_offset, direct = arguments[10:15]
    # Beyond, arrays are shared among threads, or results stored past the caches.
    most_elements = (min(MOST_NBYTES, last_cache_nbytes() // 4) - 1) // kind.itemsize
    is_numpy = call.library.name == "numpy"
    dtypes = [getattr(array, "dtype", None) if is_numpy else None for array in (call.x, call.weight, call.bias)]
    numbers = write(
        RecipeNumbers(
            entries.address("rows", kind.code, kind.in_float64, False, False), kind.code, rule, eps, scale, features,
            weight_code, bias_code, weight_offset, direct,
        ),
        dtypes,
    )  # fmt: skip
    return Recipe(entries.again(), NumPy.address(numbers), most_elements, resume, kept, (numbers, dtypes))


def normalize(
    call: Call, name: str, kind: _Kind, layout: Layout | None, arguments: tuple[Any, ...], first: int, last: int
) -> None:
    """Run a kernel on rows, or blocks of columns, first to last."""
    variant = arguments[_RESIDUAL] is not None, layout is not None
    while first < last:
        done = entries.entry(name, kind.code, kind.in_float64, *variant)(first, last, *arguments)
        if done == last:
            return
        # A row, or a block of them, is out of the range of the kernel; or, with such weights, all are.
        end = done + 1 if done >= 0 else last
        done = max(done, first)
        if name == "paired":
            for row in range(done, end):
                rescue.normalize_row(call, layout, arguments[3], arguments[4:8], row)
        elif name == "columns" and layout is not None and end == done + 1:
            rows = layout.rows_of(done)
            normalize(call, "rows", kind, layout, arguments, rows.start, rows.stop)
        else:
            entries.entry(name, kind.code, True, *variant)(done, end, *arguments)
        first = end


def _arguments(
    call: Call,
    access: Any,
    kind: _Kind,
    features: int,
    rows: int,
    y: Array,
    added: Array,
    layout: Layout | None,
    streaming: bool,
) -> tuple[Any, tuple[Any, ...]]:
    """What a kernel is called with, behind the range; and what must live as long as that."""
    weight: Any = call.weight
    bias, scale = call.bias, 1.0
    if not call.rule.averaged:
        weight, scale = None, scale_of(call)
    weight_code = bias_code = kind.code
    if weight is not None:
        weight_code = kind_of(weight.dtype).code
        weight = weight if access.is_contiguous(weight) else access.contiguous(weight)
    if bias is not None:
        bias_code = kind_of(bias.dtype).code
        bias = bias if access.is_contiguous(bias) else access.contiguous(bias)
    alike = weight_code == bias_code == kind.code and not call.weight_offset
    # Read where they lie, unless something is to be made of them or lanes would reach behind them.
    direct = (
        alike
        and kind.itemsize * features >= CACHE_LINE_NBYTES
        and (kind.itemsize == 4 or features > CHUNK or rows < _FEW_ROWS)
    )
    arguments = (
        RULES[call.rule.name], call.eps, scale, features,
        access.address(call.x), None if call.residual is None else access.address(call.residual),
        access.address(y), None if added is None else access.address(added),
        None if layout is None else NumPy.address(layout.numbers),
        0 if weight is None else access.address(weight), weight_code,
        0 if bias is None else access.address(bias), bias_code, call.weight_offset,
        direct, streaming, _block(layout, rows * features * kind.itemsize), 0 if layout is None else layout.head,
    )  # fmt: skip
    return (call, weight, bias, y, added, layout), arguments


def _block(layout: Layout | None, nbytes: int) -> int:
    """How many columns are taken at a time, or whether rows are fetched ahead."""
    return layout.block if layout is not None and layout.in_columns else int(nbytes >= LEAST_FETCHED_NBYTES)


def lay_out(
    call: Call,
    access: Any,
    others: tuple[Array | None, Array, Array | None],
    itemsize: int,
    y_address: int,
    streaming: bool,
    columns: bool = True,
) -> Layout | None:
    """How x and the arrays that go with it become rows; None where it is one after the other in each of them."""
    x = call.x
    given = (x, *(array for array in others if array is not None))
    if call.axes[0] == len(x.shape) - len(call.axes) and all(map(access.is_contiguous, given)):
        return None
    of_x = access.strides(x)
    strides = [of_x if array is None else access.strides(array) for array in others]
    return plan(x.shape, list(zip(of_x, *strides, strict=True)), call.axes, itemsize, y_address, streaming, columns)
