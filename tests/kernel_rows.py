"""Rows of all kinds for the CPU kernels, and arrays that begin at each place of a cache line."""

import ml_dtypes
import numpy as np

DTYPES = {"float16": np.float16, "bfloat16": ml_dtypes.bfloat16, "float32": np.float32, "float64": np.float64}
OTHER = {"float16": "float32", "bfloat16": "float64", "float32": "float16", "float64": "bfloat16"}
LARGEST = {"float16": 6e4, "bfloat16": 1e30, "float32": 1e30, "float64": 1e300}
SMALLEST = {"float16": 1e-7, "bfloat16": 1e-39, "float32": 1e-45, "float64": 1e-323}


def numbers(shape, dtype, seed, mean=0.5):
    """Numbers of one sign, mostly, so that sums do not depend on luck: near normal, with a deviation of 1.

    Sums of four integers, of bits that NumPy promises for all releases, unlike those of `standard_normal`; there every
    machine has its own logarithm, too.
    """
    bits = np.random.PCG64(seed).random_raw(np.empty(shape).size).astype("<u8").view("<u2")
    sums = bits.reshape(-1, 4).sum(axis=1, dtype=np.int64).reshape(shape)
    return ((sums - 131_070) / 37_837 + mean).astype(DTYPES[dtype])


@np.errstate(all="ignore")
def extreme_rows(n, dtype):
    x = numbers((8, n), dtype, n)
    x[0], x[1], x[2, n // 2], x[3, n - 1] = 0, 3, np.nan, np.inf
    x[4] *= np.asarray(LARGEST[dtype] / 8, x.dtype)
    x[5], x[6] = LARGEST[dtype], SMALLEST[dtype]
    return x


def placed(shape, dtype, elements_from_line):
    """An array to write to that begins so many elements behind the beginning of a cache line."""
    nbytes = int(np.prod(shape)) * np.dtype(DTYPES[dtype]).itemsize
    memory = np.zeros(nbytes + 192, np.uint8)
    start = -memory.ctypes.data % 64 + elements_from_line * np.dtype(DTYPES[dtype]).itemsize
    return memory[start : start + nbytes].view(DTYPES[dtype]).reshape(shape)


def far_rows(n, dtype):
    """Rows whose first elements tell little of the mean of all."""
    x = numbers((5, n), dtype, n)
    x[1, :33], x[2, 0], x[3] = 20, 200, x[3] + np.asarray(8, x.dtype)
    return x
