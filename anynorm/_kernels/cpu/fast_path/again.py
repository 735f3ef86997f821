"""The kernel for calls like one before: six arguments, one of which stands for all that is as it was then.

Numba takes half a microsecond to unpack the 22 arguments of a kernel, as long as the kernel takes for 768 numbers. And
what Python would take a microsecond to ask about three NumPy arrays is read here in nanoseconds, from where NumPy keeps
it (see memory.py).
"""

from __future__ import annotations

from anynorm._kernels.cpu.compiler.jit import locked
from anynorm._kernels.cpu.fast_path import recipe as at
from anynorm._kernels.cpu.fast_path.objects import integer_of, is_apart, jump, lock, misfits, place_of, unlock
from anynorm._kernels.cpu.language.dtypes import TAGS, WIDE32
from anynorm._kernels.cpu.language.lanes import integer, real
from anynorm._kernels.cpu.launch import memory

_HALF, _BFLOAT, _SINGLE = TAGS["float16"], TAGS["bfloat16"], TAGS["float32"]
# To release Python's lock and take it again costs 0.07 microseconds, and a wait where another thread has taken it.
# Such work takes 4 (float32).
_FEW_ELEMENTS = 1 << 13


# In one piece, and out of instructions where there would be loops: in functions it took twice as long to compile.
@locked
def normalize_again(recipe, size, x, y, weight, bias):
    """Normalize all rows, or up to one that float32 cannot hold; return DONE, or what `recipe` says.

    ``size`` is how many elements x has. The others are addresses, or NumPy arrays where the recipe names a dtype for x.
    """
    features, of_weight, of_bias = integer(recipe + at.FEATURES), 0, 0
    if integer(recipe + at.X):
        dtype, shape = integer(recipe + at.X), integer(place_of(x) + memory.SHAPE)
        ndim = integer(place_of(x) + memory.NDIM) & memory.INT
        row = shape + 8 * ndim - 8
        if ndim == 0 or integer(row) != features or misfits(place_of(x), dtype, memory.C_CONTIGUOUS, ndim, shape):
            return at.MISFIT
        if misfits(place_of(y), dtype, memory.C_CONTIGUOUS | memory.WRITEABLE, ndim, shape):
            return at.MISFIT
        of_x, of_y = integer(place_of(x) + memory.DATA), integer(place_of(y) + memory.DATA)
        if integer(recipe + at.WEIGHT):
            if misfits(place_of(weight), integer(recipe + at.WEIGHT), memory.C_CONTIGUOUS, 1, row):
                return at.MISFIT
            of_weight = integer(place_of(weight) + memory.DATA)
        if integer(recipe + at.BIAS):
            if misfits(place_of(bias), integer(recipe + at.BIAS), memory.C_CONTIGUOUS, 1, row):
                return at.MISFIT
            of_bias = integer(place_of(bias) + memory.DATA)
        nbytes = size * integer(recipe + at.ITEMSIZE)
        if of_x != of_y and not is_apart(of_y, nbytes, of_x, nbytes):
            return at.OVERLAP
        if not is_apart(of_y, nbytes, of_weight, integer(recipe + at.WEIGHT_SIZE)):
            return at.OVERLAP
        if not is_apart(of_y, nbytes, of_bias, integer(recipe + at.BIAS_SIZE)):
            return at.OVERLAP
    else:
        of_x, of_y, of_weight, of_bias = integer_of(x), integer_of(y), integer_of(weight), integer_of(bias)
    tag = integer(recipe + at.TAG)
    arguments = (
        0, size // features, integer(recipe + at.RULE), real(recipe + at.EPS),
        real(recipe + at.SCALE), features, of_x, None, of_y, None, None,
        of_weight, integer(recipe + at.WEIGHT_CODE), of_bias, integer(recipe + at.BIAS_CODE),
        real(recipe + at.WEIGHT_OFFSET), integer(recipe + at.DIRECT) != 0, False, 0, 0,
    )  # fmt: skip
    state = unlock() if size > _FEW_ELEMENTS else 0
    if tag == 2:
        done = jump(integer(recipe), _SINGLE, WIDE32, arguments)
    elif tag == 1:
        done = jump(integer(recipe), _BFLOAT, WIDE32, arguments)
    else:
        done = jump(integer(recipe), _HALF, WIDE32, arguments)
    if state:
        lock(state)
    return at.DONE if done == size // features else done
