"""Kernels in threads with a small stack, of which one that calls another takes the most."""

import pytest

from tests.backends import needs_llvmlite, thorough_but
from tests.processes import script

pytestmark = needs_llvmlite

# Rows that lie one after the other, side by side, and apart, so that they are packed; long ones, and some shorter than
# lanes. Of none, some and all of them the magnitude is one that another kernel is called for.
_ARRAYS = """
import threading
import numpy, anynorm
from tests.kernel_rows import LARGEST, numbers

def arrays():
    for n, features in ((300, 64), (300, 2)):
        for which in (slice(0), slice(None, None, 7), slice(None)):
            x = numbers((n, features), dtype, features)
            x[which] *= numpy.asarray(LARGEST[dtype] / 8, x.dtype)
            apart = numpy.empty((features, n, 2), x.dtype)
            apart[:, :, 0] = x.T
            yield from (x, numpy.ascontiguousarray(x.T).T, apart[:, :, 0].T)
"""
_IN_A_SMALL_THREAD = """
anynorm.set_threads(1)
found = []
def work():
    with numpy.errstate(all="ignore"):
        found.append([call(x, numbers(x.shape[1], dtype, 1)).tobytes() for x in arrays()])
work()  # compiles
threading.stack_size(256 << 10)
thread = threading.Thread(target=work)
thread.start()
thread.join()
print(len(found[0]), found[0] == found[1])
"""
_CALLS = {
    "norm": "anynorm.layer_norm(x, weight)",
    "sum": "anynorm.add_rms_norm(x, x, weight)[0]",
    "given": "anynorm.layer_norm(x, weight, moments=anynorm.moments(x))",
    "derivative": "anynorm.layer_norm_vjp(x, weight)[1](x)[0]",
    "derivative of given": "anynorm.rms_norm_vjp(x, weight, moments=anynorm.moments(x))[1](x)[0]",
}


@pytest.mark.parametrize("call", thorough_but("norm", of=_CALLS))
@pytest.mark.parametrize("dtype", thorough_but("float32", of=["float16", "bfloat16", "float32", "float64"]))
def test_kernels_work_in_256_kilobytes(dtype, call):
    calls = f"dtype = {dtype!r}\ndef call(x, weight): return {_CALLS[call]}\n"
    assert script(_ARRAYS + calls + _IN_A_SMALL_THREAD) == ["18", "True"]
