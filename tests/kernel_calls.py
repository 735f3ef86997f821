"""Calls that between them run every line of the CPU kernels, and digests of what they return."""

import contextlib
import hashlib
import importlib.util
import itertools

import numpy as np

import anynorm
from tests import kernel_calls_derivative as derivative
from tests import kernel_calls_forward as forward
from tests.kernel_rows import DTYPES

KINDS = (
    derivative.broadcast,
    forward.moments,
    forward.rows,
    forward.repeated,
    *((forward.tensors,) if importlib.util.find_spec("torch") else ()),
    forward.residuals,
    forward.scattered,
    forward.columns,
    forward.packed,
    forward.outs,
    forward.extremes,
    forward.extreme_weights,
    forward.moments_formed,
    forward.conventions,
    derivative.pullbacks,
    derivative.pullbacks_side_by_side,
    derivative.pullbacks_by_moments,
    derivative.pullbacks_by_moments_side_by_side,
    derivative.extreme_pullbacks_side_by_side,
)


def digest(array):
    """Of the bits; but a NaN is a NaN, for its own bits depend on which operand an instruction names first."""
    array = np.array(array)
    array[np.isnan(array)] = np.nan
    return hashlib.blake2b(array.tobytes(), digest_size=8).hexdigest()


def by_kind(found):
    """Digests of digests, by dtype and kind of call."""
    kinds = {dtype: {} for dtype in DTYPES if any(name.startswith(f"{dtype} ") for name in found)}
    for name, digest in found.items():
        dtype, kind = name.partition(":")[0].split()
        kinds[dtype].setdefault(kind, hashlib.blake2b(digest_size=8)).update(f"{name} {digest}\n".encode())
    return {dtype: {kind: one.hexdigest() for kind, one in of.items()} for dtype, of in kinds.items()}


def digests(dtypes):
    """Of the results of all calls with such elements, by name."""
    found = {}
    for dtype, kind in itertools.product(dtypes, KINDS):
        if kind in (forward.columns, forward.packed, forward.moments_formed) and dtype in forward.ROWS_ONLY:
            continue
        # A forced kernel cannot refuse a call unseen, but no call goes the shorter way then.
        with contextlib.nullcontext() if kind in (forward.repeated, forward.tensors) else anynorm.use_kernel("cpu"):
            for name, result in kind(dtype):
                name = f"{dtype} {kind.__name__}: {name}"
                assert name not in found, f"two calls are named {name}"
                found[name] = " ".join(map(digest, result if isinstance(result, tuple) else (result,)))
    return found
