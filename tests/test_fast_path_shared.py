"""After calls that took the fast path, larger arrays are shared among threads, with the same bits and checks."""

import numpy as np
import pytest

import anynorm
from tests.backends import NUMPY, TORCH, as_dtype, needs_llvmlite
from tests.fast_path import shared_from, takes_fast_path
from tests.test_fast_path import forced

pytestmark = needs_llvmlite


@pytest.fixture
def shared():
    """Arrays of 1 KB and more are shared among three threads."""
    anynorm.set_threads(3)
    with shared_from(1024):
        yield
    anynorm.set_threads(None)


@pytest.mark.parametrize("backend", [NUMPY, TORCH], ids=str)
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_larger_arrays_than_take_the_fast_path_are_shared(dtype, backend, shared):
    small = as_dtype(np.random.default_rng(0).standard_normal((3, 33)), dtype)
    x = as_dtype(np.random.default_rng(1).standard_normal((100, 33)), dtype)
    # Such rows the kernel leaves to others, in the middle and at the ends of pieces.
    x[[0, 24, 25, 49, 50, 60, 99]] *= as_dtype(1e4 if dtype == "float16" else 1e30, dtype)
    for weight in (None, small[0], np.full_like(small[0], 1e-30 if dtype == "bfloat16" else 6e4)):
        expected = [forced("layer_norm", row[None], weight) for row in x]
        held = weight if weight is None else backend.make(weight)
        for _ in range(3):
            for rows, among in ((small, expected[:0]), (x, expected)):
                y = backend.read(anynorm.layer_norm(backend.make(rows), held))
                assert b"".join(row.tobytes() for row in y[: len(among)]) == b"".join(row.tobytes() for row in among)
        assert takes_fast_path(anynorm.layer_norm, backend.make(small), held)
        assert not takes_fast_path(anynorm.layer_norm, backend.make(x), held)


def test_sharing_writes_where_it_may(shared):
    x, weight = np.random.default_rng(0).standard_normal((100, 33)).astype(np.float32), np.ones(33, np.float32)
    expected = anynorm.layer_norm(x, weight)
    memory = np.concatenate([x.ravel(), weight])
    for begin, factors in ((33, weight), (0, memory[-40:-7])):
        source = memory[: x.size].reshape(x.shape)
        out = memory[begin:][: x.size].reshape(x.shape)
        given = source if begin else x
        with pytest.raises(ValueError, match="overlap"):
            anynorm.layer_norm(given, factors, out=out)
        assert memory[: x.size].tobytes() == x.tobytes()
    again = x.copy()
    assert anynorm.layer_norm(again, weight, out=again) is again
    assert again.tobytes() == expected.tobytes()
