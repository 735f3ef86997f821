"""Neither the number of threads nor stores past the caches change a bit, or write what is not theirs."""

import gc
import threading
import time
import weakref

import numpy as np
import pytest

import anynorm
from anynorm import _threads
from tests.backends import ALL, TORCH, as_dtype, needs_llvmlite, thorough_but
from tests.fast_path import shared_from
from tests.test_kernels_layout import assert_bits, normalize, parameters_of, rows_of

pytestmark = [needs_llvmlite, pytest.mark.usefixtures("cpu_kernels")]
NORMS = ("layer_norm", "rms_norm", "scale_norm")
GUARD = 0xA5

every_dtype = pytest.mark.parametrize("dtype", ALL)
every_norm = pytest.mark.parametrize("norm", NORMS)


@pytest.fixture
def shared():
    """Arrays of any size are shared among threads."""
    with shared_from(1):
        yield
    anynorm.set_threads(None)


@pytest.fixture
def streamed(monkeypatch):
    """Results of any size are stored past the caches."""
    from anynorm._kernels.cpu.launch import tasks

    monkeypatch.setattr(tasks, "last_cache_nbytes", lambda: 1)


def guarded(shape, dtype, offset):
    """An array at an address of ``offset`` modulo a cache line, and a check that nothing around it was written."""
    itemsize = as_dtype(0, dtype).itemsize
    nbytes = int(np.prod(shape)) * itemsize
    memory = np.full(nbytes + 4 * 64, GUARD, np.uint8)
    start = -memory.ctypes.data % 64 + 64 + offset
    array = np.frombuffer(memory.data, as_dtype(0, dtype).dtype, nbytes // itemsize, offset=start).reshape(shape)

    def assert_untouched():
        assert (memory[:start] == GUARD).all()
        assert (memory[start + nbytes :] == GUARD).all()

    return array, assert_untouched


LAYOUTS = {"rows": lambda x: x, "columns": np.asfortranarray, "scattered": lambda x: np.repeat(x, 2, axis=1)[:, ::2]}


@every_dtype
@every_norm
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shape", [(1, 33), (2, 5000), (7, 64), (1000, 33), (2000, 3)], ids=str)
def test_the_number_of_threads_does_not_matter(shape, layout, norm, dtype, shared):
    x = rows_of(dtype, shape[1], shape[0])
    parameters = parameters_of(norm, dtype, shape[1])
    anynorm.set_threads(1)
    expected = normalize(norm, x, *parameters)
    for threads in (1, 2, 5):
        anynorm.set_threads(threads)
        assert_bits(normalize(norm, LAYOUTS[layout](x), *parameters), expected)
        out = LAYOUTS[layout](np.zeros_like(x))
        normalize(norm, x, *parameters, out=out)
        assert_bits(out, expected)


@pytest.mark.parametrize("dtype", thorough_but("float32", of=ALL))
@pytest.mark.parametrize("norm", ["layer_norm", "rms_norm"])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shape", [(1, 33), (2, 5000), (1000, 33)], ids=str)
def test_the_number_of_threads_does_not_matter_to_sums(shape, layout, norm, dtype, shared):
    x = rows_of(dtype, shape[1], shape[0])
    parameters = parameters_of(norm, dtype, shape[1])
    anynorm.set_threads(1)
    expected = normalize(norm, x, *parameters)
    for threads in (1, 2, 5):
        anynorm.set_threads(threads)
        zeros = np.full_like(x, -0.0)
        y, total = getattr(anynorm, f"add_{norm}")(LAYOUTS[layout](x), zeros, *parameters, eps=1e-5)
        assert_bits(y, expected)
        assert_bits(total, x)


@every_dtype
@every_norm
@pytest.mark.parametrize("features", [1, 7, 33, 100, 1030])
def test_streaming_to_any_address(features, norm, dtype, streamed):
    x = rows_of(dtype, features, 5)
    parameters = parameters_of(norm, dtype, features)
    expected = normalize(norm, x.repeat(2, axis=1)[:, ::2], *parameters)  # scattered rows are never streamed
    for offset in range(64):
        out, assert_untouched = guarded(x.shape, dtype, offset)
        normalize(norm, x, *parameters, out=out)
        assert_bits(out, expected)
        assert_untouched()


@every_dtype
@every_norm
@pytest.mark.parametrize(("columns", "features"), [(16, 9), (31, 9), (64, 9), (300, 9), (40, 35)])
def test_streaming_columns_to_any_address(columns, features, norm, dtype, streamed):
    x = rows_of(dtype, features, columns)
    parameters = parameters_of(norm, dtype, features)
    expected = normalize(norm, x, *parameters)
    itemsize = x.itemsize
    for offset in [*range(0, 64, itemsize), 1, 33, 63]:
        # The features of a column begin a cache line each where that is a multiple of one, and elsewhere do not.
        for width in (columns, -(-columns * itemsize // 64) * 64 // itemsize):
            memory, assert_untouched = guarded((features, width), dtype, offset)
            memory[:, columns:] = 1
            out = memory[:, :columns]
            normalize(norm, np.ascontiguousarray(x.T), *parameters, axis=0, out=out)
            assert_bits(np.ascontiguousarray(out.T), expected)
            assert (memory[:, columns:] == 1).all()
            assert_untouched()


@every_dtype
@every_norm
@pytest.mark.parametrize("gap", [1, 2, 5, 64])
def test_streaming_leaves_the_gaps_between_rows_alone(gap, norm, dtype, streamed):
    x = rows_of(dtype, 100, 6)
    parameters = parameters_of(norm, dtype, 100)
    expected = normalize(norm, x, *parameters)
    for offset in (0, 1, 4, 32, 60):
        memory, assert_untouched = guarded((6, 100 + gap), dtype, offset)
        memory[:, 100:] = 1
        normalize(norm, x, *parameters, out=memory[:, :100])
        assert_bits(memory[:, :100], expected)
        assert (memory[:, 100:] == 1).all()
        assert_untouched()


@every_dtype
@pytest.mark.parametrize("first", [True, False])
def test_streaming_rows_at_odd_distances(first, dtype, streamed):
    # A byte before or after each row; in the latter case the first row is aligned, and the next is not.
    x = rows_of(dtype, 100, 6)
    parameters = parameters_of("layer_norm", dtype, 100)
    fields = [("flag", np.int8), ("row", x.dtype, 100)]
    records = np.zeros(6, fields if first else fields[::-1])
    records["flag"] = 7
    normalize("layer_norm", x, *parameters, out=records["row"])
    assert_bits(records["row"], normalize("layer_norm", x, *parameters))
    assert (records["flag"] == 7).all()


@pytest.mark.parametrize("dtype", thorough_but("float32", "bfloat16", of=ALL))
@pytest.mark.parametrize("norm", ["layer_norm", "rms_norm"])
def test_streaming_with_a_residual(norm, dtype, streamed):
    x, residual = rows_of(dtype, 100, 6), np.flip(rows_of(dtype, 100, 6)).copy()
    parameters = parameters_of(norm, dtype, 100)
    function = getattr(anynorm, f"add_{norm}")
    expected = function(x, residual, *parameters, eps=1e-5)
    for y_offset, total_offset in ((0, 0), (4, 8), (1, 3), (60, 0)):
        (y, y_untouched), (total, total_untouched) = (
            guarded(x.shape, dtype, offset) for offset in (y_offset, total_offset)
        )
        function(x, residual, *parameters, eps=1e-5, out=(y, total))
        for got, exact in zip((y, total), expected, strict=True):
            assert_bits(got, exact)
        y_untouched()
        total_untouched()


@every_dtype
@every_norm
def test_streaming_and_threads_and_torch_at_once(norm, dtype, streamed, shared):
    x = rows_of(dtype, 257, 200)
    parameters = parameters_of(norm, dtype, 257)
    expected = np.concatenate([normalize(norm, row[None], *parameters) for row in x])
    anynorm.set_threads(3)
    assert_bits(normalize(norm, x, *parameters), expected)
    tensors = [p if norm == "scale_norm" else TORCH.make(p) for p in parameters]
    assert_bits(TORCH.read(normalize(norm, TORCH.make(x), *tensors)), expected)
    in_place = x.copy()
    normalize(norm, in_place, *parameters, out=in_place)
    assert_bits(in_place, expected)


@every_dtype
@pytest.mark.parametrize("norm", ["layer_norm", "rms_norm"])
@pytest.mark.parametrize("features", [7, 96, 100, 2080])
def test_streaming_a_derivative_to_any_address(features, norm, dtype, monkeypatch):
    from anynorm._kernels.cpu.launch import tasks, vjp

    x, parameters = rows_of(dtype, features, 19), parameters_of(norm, dtype, features)
    x[11], dy = x[11, 0], np.flip(x, 1).copy()
    dy[3] = x[3]  # such rows float32 does not hold: all that there is of the gradient lies along x_hat, or is 0
    pullback = getattr(anynorm, f"{norm}_vjp")(x, *parameters)[1]
    expected = pullback(dy)
    monkeypatch.setattr(tasks, "last_cache_nbytes", lambda: 1)
    for offset in (0, 1, 2, 4, 8, 16, 24, 32, 56, 62, 63):
        dx, assert_untouched = guarded(x.shape, dtype, offset)
        with monkeypatch.context() as patch:
            patch.setattr(vjp, "empty_like", lambda memory, array, dx=dx: dx)
            found = pullback(dy)
        assert found[0] is dx
        for got, stored in zip(found, expected, strict=True):
            assert (got is None) == (stored is None)
            if got is not None:
                assert_bits(got, stored)
        assert_untouched()


@pytest.mark.parametrize("streamed", [False, True])
def test_derivatives_are_streamed_from_a_size_on(streamed, monkeypatch):
    from anynorm._kernels.cpu.launch import tasks, vjp

    tasks_made, task_of = [], vjp.task_of
    monkeypatch.setattr(vjp, "task_of", lambda *args, **how: tasks_made.append(task_of(*args, **how)) or tasks_made[-1])
    x = rows_of("float32", 96, 5)
    monkeypatch.setattr(tasks, "last_cache_nbytes", lambda: 4 * x.nbytes + (not streamed))
    for of_rows in (x, np.stack([x, x], 1)[:, 0]):  # one after the other, and with gaps
        anynorm.layer_norm_vjp(of_rows)[1](x)
    assert [task.streaming for task, _ in tasks_made] == [streamed, streamed]


def test_an_interrupted_call_leaves_the_memory_to_those_still_at_work(shared, monkeypatch):
    from anynorm._kernels.cpu.launch import norm
    from anynorm._libraries.numpy_arrays import NumPy

    at_work, results = [], []

    def interrupted(kernel, task, units, nbytes, keepalive, resume):
        at_work.append((kernel, task, keepalive))
        raise KeyboardInterrupt

    def remembered(x):
        y = np.empty_like(x)
        results.append(weakref.ref(y))
        return y

    monkeypatch.setattr(norm, "launch", interrupted)
    monkeypatch.setattr(NumPy, "empty_like", staticmethod(remembered))
    anynorm.set_threads(2)
    with pytest.raises(KeyboardInterrupt) as caught:
        anynorm.layer_norm(np.ones((20, 33), np.float32), np.ones(66, np.float32)[::2])
    del caught
    gc.collect()
    assert results[0]() is not None
    kernel, task, keepalive = at_work.pop()
    assert kernel.run(task, 0, 20) == 20
    assert (results[0]() == 0).all()
    del keepalive
    gc.collect()
    assert results[0]() is None


@every_norm
def test_large_arrays_as_they_are(norm):
    # Beyond the last cache of most machines and the share of one thread, and nothing is patched.
    x = np.random.default_rng(0).standard_normal((20_000, 1024)).astype(np.float32)
    parameters = parameters_of(norm, "float32", 1024)
    out = np.empty_like(x)
    normalize(norm, x, *parameters, out=out)
    for first in range(0, len(x), 999):
        assert_bits(out[first : first + 3], normalize(norm, x[first : first + 3], *parameters))
    y = normalize(norm, x, *parameters)
    assert y.tobytes() == out.tobytes()


def test_a_thread_that_cannot_be_started_leaves_no_work_undone(monkeypatch):
    start, started, begun, done = threading.Thread.start, [], threading.Event(), []

    def start_one(thread):
        started.append(thread)
        if len(started) == 2:
            raise RuntimeError("can't start new thread")
        start(thread)

    def work(first, last):
        if threading.current_thread() is not threading.main_thread():
            begun.set()
            time.sleep(0.2)
        else:
            begun.wait(2)
        done.extend(range(first, last))

    monkeypatch.setattr(_threads, "_helpers", None)
    monkeypatch.setattr(threading.Thread, "start", start_one)
    _threads.share(work, 12, 3)
    assert sorted(done) == list(range(12))
