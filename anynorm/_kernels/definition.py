"""Runs the definition on an array of any library; takes every call."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy

from anynorm._check import Call, Gradient
from anynorm._definition import merging
from anynorm._definition.counting import dtype_of_counts
from anynorm._definition.missing import reduce_present
from anynorm._definition.norms import Precision, Rule, Statistics, Step, apply, apply_rounded, as_it_is, finish, reduce
from anynorm._definition.pairs import two_sum
from anynorm._definition.rounding import rounded
from anynorm._definition.sums import count_along
from anynorm._kernels import sparse
from anynorm._libraries import dtype_name
from anynorm._moments import Moments, mapped, of_arrays, quietly, statistics_of

Array = Any
Steps = Callable[[Call, Array, Moments | None, Any, Any, Precision], Array]

# NumPy arrays are worked through in blocks of about this many elements, whose float64 temporaries stay in cache; memory
# beyond the result then stays flat too. `python -m benchmarks.definition` measures it.
_BLOCK_ELEMENTS = 1 << 16


def refuses(call: Call | Gradient) -> str | None:
    """Nothing is refused."""
    return None


def run(call: Call) -> Any:
    """Return y, or (y, total) where the call has a residual."""
    with quietly(call.library.namespace, call.x):
        if call.library.refuses_to_fill:
            return sparse.run(call, run_whole)
        return _run_blocks(call) if call.library.name == "numpy" else run_whole(call)


def run_whole(call: Call, by: Steps | None = None) -> Any:
    """Compute on the whole array, so that a tracer sees one graph; ``by`` takes the place of `steps`."""
    y, total = _normalize(call, call.x, call.residual, call.moments, steps if by is None else by)
    if call.out is not None:
        for target, value in zip(call.out, (y, total), strict=False):
            target[...] = value
        y, total = call.out if total is not None else (call.out[0], None)
    return y if total is None else (y, total)


def run_moments(call: Call) -> Moments:
    """Return the moments of the call's array."""
    xp = call.library.namespace
    with quietly(xp, call.x):
        if 0 in call.x.shape:
            return _no_moments(call)
        if call.library.name != "numpy":
            return _moments_of_whole(call)
        blocks = list(blocks_of_rows(call.x.shape, call.axes))
        found = [_reduce(call, call.x[block]) for block in blocks]
        if len(blocks) == 1:
            return Moments(found[0], xp)
        cut = next(axis for axis, at in enumerate(blocks[1]) if at != slice(None))
        return Moments.concat([Moments(one, xp) for one in found], axis=cut)


def _moments_of_whole(call: Call) -> Moments:
    xp, found = call.library.namespace, _reduce(call, call.x)
    rows = tuple(1 if axis in call.axes else length for axis, length in enumerate(call.x.shape))
    return Moments(mapped(lambda one: with_lengths(xp, one, rows), found), xp)


def _reduce(call: Call, x: Array) -> Statistics:
    xp = call.library.namespace
    x = xp.astype(x, call.precision.dtype, copy=False)
    if call.skip_nan:
        return reduce_present(xp, x, call.axes, call.precision)
    return reduce(xp, x, call.axes, call.rule, call.precision)


@functools.cache
def _keep_freed_memory() -> None:
    """Have glibc keep the memory of freed temporaries.

    It returns blocks of 128 KB and more to the kernel at once, so that each temporary costs new page faults, until a
    larger block has been freed: then it keeps all that are smaller (mallopt(3), M_MMAP_THRESHOLD). The array here is
    that block. It is never touched, and so takes no memory.
    """
    numpy.empty(8 * _BLOCK_ELEMENTS)


def _run_blocks(call: Call) -> Any:
    """A NumPy array, a block of rows at a time."""
    _keep_freed_memory()
    x, residual = call.x, call.residual
    if x.size <= _BLOCK_ELEMENTS and call.out is None:
        y, total = _normalize(call, x, residual, call.moments, steps)
        return y if residual is None else (y, total)
    outs = call.out or tuple(numpy.empty_like(x, subok=False) for _ in range(1 if residual is None else 2))
    for block in blocks_of_rows(x.shape, call.axes):
        moments = None if call.moments is None else part_of_moments(call.moments, block)
        results = _normalize(call, x[block], None if residual is None else residual[block], moments, steps)
        for target, result in zip(outs, results, strict=False):
            target[block] = result
    return outs[0] if residual is None else outs


def blocks_of_rows(
    shape: tuple[int, ...], axes: tuple[int, ...], elements: int = _BLOCK_ELEMENTS
) -> Iterator[tuple[slice, ...]]:
    """Cut an array into blocks of whole rows, along the longest axis that is not normalized."""
    free = [axis for axis in range(len(shape)) if axis not in axes]
    if not free or 0 in shape:
        yield (slice(None),) * len(shape)
        return
    cut = max(free, key=shape.__getitem__)
    step = max(1, elements * shape[cut] // math.prod(shape))
    before = (slice(None),) * cut
    for start in range(0, shape[cut], step):
        yield (*before, slice(start, start + step))


def part_of_moments(moments: Moments, block: tuple[slice, ...]) -> Moments:
    """The moments of a block of rows; no block is cut along a normalized axis."""
    return Moments(mapped(lambda one: one[block], statistics_of(moments)), moments.namespace)


def _normalize(
    call: Call, x: Array, residual: Array | None, moments: Moments | None, by: Steps
) -> tuple[Array, Array | None]:
    """Widen, normalize by the steps, narrow."""
    xp, precision, dtype, total = call.library.namespace, precision_of(call), x.dtype, None
    if residual is not None:
        x = total = xp.astype(x + residual, dtype, copy=False)  # for NumPy's sum has the native byte order
    wide = xp.astype(x, precision.dtype, copy=False)
    y = by(call, wide, None if 0 in x.shape else moments, *parameters_of(call, precision, wide), precision)
    return with_lengths(xp, xp.astype(y, dtype, copy=False), tuple(x.shape)), total


def steps(
    call: Call,
    x: Array,
    moments: Moments | None,
    weight: Array | float | None,
    bias: Array | None,
    precision: Precision,
) -> Array:
    """Reduce, finish, apply."""

    def step_by(rule: Rule, precision: Precision) -> Step:
        xp, eps = call.library.namespace, call.eps
        if moments is not None:
            return step_of_given(call._replace(rule=rule), moments, precision)
        return finish(xp, reduce(xp, x, call.axes, rule, precision, eps), rule, eps, precision)

    def by_formula() -> Array:
        return apply(call.library.namespace, x, step_by(call.rule.formula, precision), weight, bias, precision)

    return with_roundings(call, by_formula, step_by, x, weight, bias, precision)


def with_roundings(
    call: Call,
    by_formula: Callable[[], Array],
    step_by: Callable[[Rule, Precision], Step],
    x: Array,
    weight: Array | float | None,
    bias: Array | None,
    precision: Precision,
) -> Array:
    """Step 3 with the roundings on the way that the call's rule has; their derivative is that of the formula."""
    rule, xp = call.rule, call.library.namespace
    if rule == rule.formula:
        return by_formula()
    given: Any = call.weight
    factor = weight
    if rule.offset == "weight" and call.weight_offset:
        factor = rounded(xp, weight, dtype_name(given.dtype), precision)
    found = apply_rounded(xp, x, step_by(rule, precision._replace(stated=False)), factor, bias, rule, precision)
    constant = call.library.constant()
    if constant is as_it_is:
        return found
    found, y = constant(found), by_formula()
    # Found, to the last bit, for the difference is 0; and where it is NaN instead, y is no number either.
    difference = constant(y) - y
    return found - xp.where(difference == 0.0, difference, 0.0)


def step_of_given(call: Call, moments: Moments, precision: Precision) -> Step:
    """Step 2 of given moments."""
    return merging.step_of_given(call.library.namespace, statistics_of(moments), call.rule, call.eps, precision)


def with_lengths(xp: Any, array: Array, shape: tuple[Any, ...]) -> Array:
    """Give a result the lengths of x that ndonnx has lost on the way; one of them may be unknown."""
    if None not in tuple(array.shape) or sum(length is None for length in shape) > 1:
        return array
    return xp.reshape(array, tuple(-1 if length is None else length for length in shape))


def precision_of(call: Call) -> Precision:
    """The call's precision; without units where there are no elements, of which there is no largest."""
    return Precision(call.precision.dtype) if 0 in call.x.shape else call.precision


def parameters_of(call: Call, precision: Precision, factor: Array) -> tuple[Array | float | None, Array | None]:
    """Weight and bias shaped to broadcast against what the weight multiplies, with its offset in the wide type."""
    xp, weight, bias = call.library.namespace, call.weight, call.bias
    if weight is not None and type(weight) is not float:
        weight = _aligned(call, weight)
        # The multiplication would widen it too, but automatic differentiation would then narrow before it sums.
        if call.weight_offset or precision.digits:
            weight = xp.astype(weight, precision.dtype, copy=False)
        if call.weight_offset:
            weight = _plus(weight, call.weight_offset, precision.digits)
    if call.library.refuses_to_fill:
        weight = sparse.at_stored(xp, factor, weight)
    if bias is not None and precision.digits:
        bias = xp.astype(bias, precision.dtype, copy=False)
    return weight, None if bias is None else _aligned(call, bias)


def _plus(weight: Array, offset: float, digits: int) -> Array:
    """Return weight + offset rounded once, also where float32 cannot hold the offset and the two cancel."""
    if digits != 24:
        return weight + offset
    high = float(numpy.float32(offset))
    if high == offset:
        return weight + high
    rounded, error = two_sum(weight, high)
    return rounded + (error + (offset - high))


def _aligned(call: Call, parameter: Array) -> Array:
    """Give a parameter length 1 on the axes that are not normalized; trailing axes broadcast as they are.

    Not in JAX, which may be told to refuse that (jax_numpy_rank_promotion).
    """
    ndim = len(call.x.shape)
    if not parameter.shape or (call.axes[0] == ndim - len(call.axes) and call.library.name != "jax"):
        return parameter
    return parameter[tuple(slice(None) if axis in call.axes else None for axis in range(ndim))]


def _no_moments(call: Call) -> Moments:
    """Moments of rows without elements: count 0, everything else 0."""
    xp, x, dtype = call.library.namespace, call.x, call.precision.dtype
    zeros = xp.sum(xp.astype(x, dtype), axis=call.axes, keepdims=True)  # on x's device, and where lengths are unknown
    low = zeros if call.precision.digits else None
    count: Any = count_along(x, call.axes)
    if call.skip_nan:
        count = xp.astype(zeros, dtype_of_counts(xp))
    rest = low if call.skip_nan else None
    return of_arrays(count, [zeros, low, rest, zeros, low, None if low is None else zeros + 1.0], xp)
