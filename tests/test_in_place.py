"""In place means the same memory, whatever object it is: on each side of streaming, for each dtype, in any piece."""

import numpy as np
import pytest
import torch

import anynorm
from tests import reference
from tests.backends import ALL, TORCH, as_dtype, needs_llvmlite
from tests.fast_path import shared_from
from tests.kernel_rows import placed
from tests.tolerances import assert_exact

pytestmark = needs_llvmlite
SHAPE = 4, 70  # more than two cache lines a row in each dtype, and no row but the first begins where a line does
RANDOM = np.random.default_rng(0).standard_normal((2, *SHAPE))


@pytest.fixture(params=[0, 1], ids=["stored", "streamed"])
def streaming(request, monkeypatch):
    """The last cache is as large as it may just be for results to be streamed, or one byte larger."""
    from anynorm._kernels.cpu.launch import tasks

    def set_for(array):
        monkeypatch.setattr(tasks, "last_cache_nbytes", lambda: 4 * array.nbytes + 1 - request.param)

    return set_for


@pytest.fixture(params=[1, 3], ids=["one thread", "three threads"], autouse=True)
def threads(request):
    anynorm.set_threads(request.param)
    with shared_from(1):
        yield
    anynorm.set_threads(None)


def in_numpy(values, dtype, at):
    """Values at so many elements behind the beginning of a cache line."""
    array = placed(SHAPE, dtype, at)
    array[...] = values
    return array


def in_torch(values, dtype, at):
    array = in_numpy(values, dtype, at)
    if dtype == "bfloat16":
        return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(array)


VIEWS = {
    "numpy itself": (in_numpy, lambda a: a),
    "numpy view": (in_numpy, lambda a: a[:]),
    "numpy reshaped": (in_numpy, lambda a: a.reshape(-1).reshape(a.shape)),
    "torch detached": (in_torch, lambda a: a.detach()),
    "torch view": (in_torch, lambda a: a.view(-1).view(a.shape)),
}
every_view = pytest.mark.parametrize("view", VIEWS)
two_views = pytest.mark.parametrize("view", ["numpy view", "torch detached"])
every_place = pytest.mark.parametrize("at", [0, 1])


def read(array):
    return TORCH.read(array) if isinstance(array, torch.Tensor) else np.asarray(array)


def assert_is_norm(y, x, norm, dtype):
    expected = [getattr(reference, norm)(row) for row in x]
    assert_exact(read(y), expected, backend="cpu, in place", dtype=dtype, norm=norm)


@every_place
@every_view
@pytest.mark.parametrize("dtype", ALL)
def test_the_same_memory_is_in_place(dtype, view, at, streaming):
    make, view = VIEWS[view]
    values = as_dtype(RANDOM[0], dtype)
    x = make(values, dtype, at)
    streaming(x)
    out = view(x)
    assert anynorm.layer_norm(x, out=out) is out
    assert_is_norm(x, values, "layer_norm", dtype)


@every_place
@two_views
def test_with_given_moments(view, at, streaming):
    make, view = VIEWS[view]
    values = as_dtype(RANDOM[0], "float32")
    x = make(values, "float32", at)
    streaming(x)
    anynorm.layer_norm(x, moments=anynorm.moments(x), out=view(x))
    assert_is_norm(x, values, "layer_norm", "float32")


@every_place
def test_columns(at, streaming):
    values = as_dtype(RANDOM[0], "float32")
    x = placed(SHAPE[::-1], "float32", at)
    x[...] = values.T
    streaming(x)
    anynorm.layer_norm(x, axis=0, out=x[:])
    assert_is_norm(x.T, values, "layer_norm", "float32")


@every_place
@two_views
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("outs", ["y is x", "y is residual", "total is x", "total is residual", "both"])
def test_sums_in_place_of_what_is_added(outs, dtype, view, at, streaming):
    make, view = VIEWS[view]
    x, residual, fresh = (make(as_dtype(one, dtype), dtype, at) for one in (*RANDOM, RANDOM[0]))
    total = as_dtype(read(x) + read(residual), dtype)
    streaming(x)
    out = {
        "y is x": (view(x), fresh),
        "y is residual": (view(residual), fresh),
        "total is x": (fresh, view(x)),
        "total is residual": (fresh, view(residual)),
        "both": (view(residual), view(x)),
    }[outs]
    y, added = anynorm.add_rms_norm(x, residual, out=out)
    assert (read(added) == total).all()
    assert_is_norm(y, total, "rms_norm", dtype)


def test_an_axis_of_one_may_have_any_stride(streaming):
    values = as_dtype(RANDOM[0], "float32")
    memory = torch.from_numpy(in_numpy(values, "float32", 1))
    x = memory.as_strided((4, 1, 70), (70, 70, 1))
    streaming(x)
    anynorm.rms_norm(x, out=memory.as_strided((4, 1, 70), (70, 1, 1)))
    assert_is_norm(memory, values, "rms_norm", "float32")


@two_views
def test_memory_that_is_shared_in_part_is_refused(view, streaming):
    make, view = VIEWS[view]
    x = make(RANDOM[0], "float32", 1)
    streaming(x)
    before = read(x).copy()
    for wrong in (x[1:], x.reshape(-1)[1:211].reshape(3, 70)):
        with pytest.raises(ValueError, match="share no memory with x"):
            anynorm.layer_norm(x[:-1], out=view(wrong))
    assert (read(x) == before).all()


def test_a_large_array():
    """With the cache that there is."""
    from anynorm._kernels.cpu.launch.machine import last_cache_nbytes

    rows = last_cache_nbytes() // 4 // 4000 + 1  # of 1000 float32
    x = placed((rows, 1000), "float32", 1)
    x[...] = np.random.default_rng(1).standard_normal((rows, 1000))
    ends, expected = x[[0, -1]], anynorm.rms_norm(x)
    anynorm.rms_norm(x, out=x[:])
    assert (x == expected).all()
    assert_is_norm(x[[0, -1]], ends, "rms_norm", "float32")
