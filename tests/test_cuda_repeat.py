"""Calls like one before, on CuPy's arrays: what the slow path gives, or the slow path itself."""

import ctypes
import threading
from unittest import mock

import numpy as np
import pytest

import anynorm
from anynorm import _norms
from anynorm._kernels import cuda
from anynorm._kernels.cuda import device, repeat
from anynorm._kernels.cuda.task import Task
from tests import strict_cupy
from tests.emulated import emulation, needs_compiler
from tests.recorded import INVALID_CONTEXT, Driver

RNG = np.random.default_rng(0)
X, OTHER = (RNG.standard_normal((4, 8)).astype("float32") for _ in range(2))
WEIGHT, BIAS = (RNG.standard_normal(8).astype("float32") for _ in range(2))
TWICE = np.tile(X, 2)


@pytest.fixture
def cupy(monkeypatch):
    """CuPy's stand-in, and the CUDA kernels on the emulator."""
    monkeypatch.setattr(cuda, "_MISSING", None)
    with strict_cupy.installed() as found, emulation(), mock.patch.dict(repeat._by_library, clear=True):
        yield found


@pytest.fixture
def full():
    """What has gone the slow path."""
    with mock.patch.object(_norms, "check", wraps=_norms.check) as check:
        yield check


def placed(cupy, values, offset):
    """A copy that begins so many bytes behind a multiple of 16."""
    memory = cupy.asarray(np.zeros(values.nbytes + 32, np.uint8))
    start = -memory.data.ptr % 16 + offset
    copy = strict_cupy._made(memory._host[start : start + values.nbytes].view(values.dtype).reshape(values.shape))
    copy[...] = cupy.asarray(values)
    assert copy.data.ptr % 16 == offset
    return copy


def calls(cupy):
    """Calls by name, all of which differ in something that a plan hangs on."""
    x, other, weight, bias = (placed(cupy, one, 0) for one in (X, OTHER, WEIGHT, BIAS))
    wide, tall, far = placed(cupy, TWICE, 0), cupy.asarray(np.asfortranarray(X)), placed(cupy, X, 4)
    half = cupy.asarray(WEIGHT.astype("float16"))
    given = {
        "plain": lambda: anynorm.layer_norm(x, weight, bias),
        "other numbers": lambda: anynorm.layer_norm(other, weight, bias),
        "another norm": lambda: anynorm.rms_norm(x, weight, bias, eps=1e-5),
        "another eps": lambda: anynorm.layer_norm(x, weight, bias, eps=0.5),
        "an offset": lambda: anynorm.layer_norm(x, weight, bias, weight_offset=1.0),
        "a weight of another dtype": lambda: anynorm.layer_norm(x, half, bias),
        "a bias of another dtype": lambda: anynorm.layer_norm(x, weight, half),
        "no bias": lambda: anynorm.layer_norm(x, weight),
        "no weight": lambda: anynorm.layer_norm(x, None, bias),
        "another dtype": lambda: anynorm.layer_norm(cupy.asarray(X.astype("float16")), weight, bias),
        "other strides": lambda: anynorm.layer_norm(wide[:, :8], weight, bias),
        "columns": lambda: anynorm.layer_norm(tall, weight, bias),
        "reversed": lambda: anynorm.layer_norm(x[:, ::-1], weight, bias),
        "other rows": lambda: anynorm.layer_norm(x[:3], weight, bias),
        "another alignment": lambda: anynorm.layer_norm(far, weight, bias),
        "a weight of another alignment": lambda: anynorm.layer_norm(x, placed(cupy, WEIGHT, 8), bias),
        "more axes": lambda: anynorm.layer_norm(x.reshape(2, 2, 8), weight, bias),
        "a scale": lambda: anynorm.scale_norm(x, 2.0),
        "another scale": lambda: anynorm.scale_norm(x, 3.0),
        "a scale on the device": lambda: anynorm.scale_norm(x, weight[1]),
        "another one": lambda: anynorm.scale_norm(x, weight[2]),
        "out": lambda: anynorm.layer_norm(x, weight, bias, out=placed(cupy, X, 0)),
        "out of another alignment": lambda: anynorm.layer_norm(x, weight, bias, out=placed(cupy, X, 4)),
        "out with other strides": lambda: anynorm.layer_norm(
            x, weight, bias, out=placed(cupy, np.tile(X, 2), 0)[:, :8]
        ),
    }
    # Under their own keys, or the slow path each time.
    odd = {
        "a weight with strides": lambda: anynorm.layer_norm(x, cupy.asarray(np.repeat(WEIGHT, 2))[::2], bias),
        "another axis": lambda: anynorm.layer_norm(x, axis=0),
        "no scale to speak of": lambda: anynorm.scale_norm(x, 0.0),
        "nor this": lambda: anynorm.scale_norm(x, -0.0),
        "an int for eps": lambda: anynorm.layer_norm(x, weight, bias, eps=1),
        "no rows": lambda: anynorm.layer_norm(x[:0], weight, bias),
    }
    return given, odd


@needs_compiler
def test_calls_are_repeated_and_give_what_the_full_way_gives(cupy, full):
    given, odd = calls(cupy)
    expected = {}
    for name, call in (given | odd).items():
        repeat.forget()
        expected[name] = call().get().tobytes()
    repeat.forget()
    for name, call in (given | odd).items():
        assert call().get().tobytes() == expected[name], name
    for name, call in reversed(given.items()):
        full.reset_mock()
        assert call().get().tobytes() == expected[name], name
        assert not full.called, name
    for name, call in odd.items():
        full.reset_mock()
        assert call().get().tobytes() == expected[name], name
        assert full.called, name


@needs_compiler
def test_a_result_is_laid_out_as_on_the_full_way(cupy):
    for x in (cupy.asarray(np.asfortranarray(X)), cupy.asarray(X), cupy.asarray(TWICE)[:, :8]):
        assert len({anynorm.layer_norm(x).strides for _ in range(3)}) == 1


@needs_compiler
def test_out(cupy, full):
    both, weight = cupy.asarray(np.concatenate([X, X])), cupy.asarray(WEIGHT)
    expected = anynorm.layer_norm(both[:4], weight).get().tobytes()
    for _ in range(3):
        x, out = both[:4], both[4:]
        assert anynorm.layer_norm(x, weight, out=out) is out
        assert out.get().tobytes() == expected
    assert full.call_count == 2
    for _ in range(2):
        with pytest.raises(ValueError, match="out must be x itself or share no memory with x"):
            anynorm.layer_norm(both[:4], weight, out=both[1:5])
    with pytest.raises(ValueError, match="out must share no memory with weight"):
        anynorm.layer_norm(both[:4], both[5], out=both[4:])
    full.reset_mock()
    x, same = both[:4], both[:4]
    assert anynorm.layer_norm(x, weight, out=same) is same  # x under another name
    assert x.get().tobytes() == expected
    assert not full.called


@needs_compiler
def test_what_is_not_as_it_was_goes_the_full_way(cupy, full):
    x, weight = cupy.asarray(X), cupy.asarray(WEIGHT)
    expected = anynorm.layer_norm(x, weight).get().tobytes()

    def is_repeated(call=lambda: anynorm.layer_norm(x, weight)):
        full.reset_mock()
        y = call()
        assert (y.get().tobytes(), y.device.id) == (expected, 0)
        return not full.called

    assert is_repeated()
    with cupy.cuda.Device(1):
        assert not is_repeated()
        assert cupy.cuda.Device().id == 1
    with anynorm.use_kernel("cuda"):
        assert not is_repeated()
    assert is_repeated()
    moved = cupy.cuda.Device(1), cupy.asarray(X)
    with moved[0]:
        there = cupy.asarray(WEIGHT)
    with pytest.raises(ValueError, match="weight must be on x's device"):
        anynorm.layer_norm(moved[1], there)
    with pytest.raises(TypeError, match="weight must be a CuPy array"):
        anynorm.layer_norm(x, WEIGHT)
    integers = cupy.asarray(np.ones(8, "int32"))
    anynorm.layer_norm(x, None, weight)
    for given in ((integers,), (None, integers)):
        with pytest.raises(TypeError, match="real floating dtype"):
            anynorm.layer_norm(x, *given)


@needs_compiler
def test_the_stream_is_that_of_the_device(cupy, monkeypatch):
    stream = mock.Mock(return_value=mock.Mock(ptr=70))
    monkeypatch.setattr(cupy.cuda, "get_current_stream", stream)
    x = cupy.asarray(X)
    anynorm.rms_norm(x)
    (key,) = repeat._plans
    start = mock.Mock(return_value=None)
    repeat._plans[key] = repeat._plans[key]._replace(start=start)
    stream.reset_mock()
    anynorm.rms_norm(x)
    stream.assert_called_once_with(0)  # asked of no device, CuPy asks the driver which one is current
    assert start.call_args.args[-1] == 70


@needs_compiler
def test_a_call_by_a_convention_is_not_one_without(cupy):
    x, weight = cupy.asarray(X), cupy.asarray(WEIGHT)
    by = {"llama": anynorm.CONVENTIONS["llama"], "outside": anynorm.Convention(eps=0.5, eps_place="outside")}
    root = np.sqrt((X.astype(float) ** 2).mean(-1, keepdims=True))
    expected = {"llama": X / np.sqrt(root**2 + 0.5) * WEIGHT, "outside": X / (root + 0.5) * WEIGHT}
    for _ in range(3):
        anynorm.rms_norm(x, weight, eps=0.5)
        for name, convention in by.items():
            y = anynorm.rms_norm(x, weight, eps=0.5, convention=convention).get()
            np.testing.assert_allclose(y, expected[name], rtol=1e-6)
    assert len(repeat._plans) == 1


@needs_compiler
def test_plans_are_bounded(cupy, monkeypatch):
    monkeypatch.setattr(repeat, "_MOST_PLANS", 3)
    x = cupy.asarray(X)
    for scale in range(1, 10):
        anynorm.scale_norm(x, float(scale))
        assert 1 <= len(repeat._plans) <= 3


@needs_compiler
def test_a_kernel_that_cannot_be_started_goes_the_full_way(cupy, full):
    x = cupy.asarray(X)
    expected = anynorm.rms_norm(x).get().tobytes()
    (key,) = repeat._plans
    repeat._plans[key] = repeat._plans[key]._replace(start=lambda *given: "failed")
    full.reset_mock()
    assert anynorm.rms_norm(x).get().tobytes() == expected
    assert full.called
    full.reset_mock()
    assert anynorm.rms_norm(x).get().tobytes() == expected
    assert not full.called


def test_the_driver_is_given_the_task():
    driver, template = Driver(), Task(rows=5, eps=0.25)
    with mock.patch.dict("sys.modules", {"cuda.bindings": mock.Mock(driver=driver)}):
        start = device.starter(device.Loaded(7, 0, 64), (3, 2), 128)
    seen = []

    def watch(self, name, given):
        task = Task.from_address(ctypes.c_void_p.from_address(given[9]).value)
        seen.append((task.rows, task.eps, list(task.arrays), task.weight, task.bias))
        return answer(self, name, given)

    answer = Driver._answer
    with mock.patch.object(Driver, "_answer", watch):
        assert repeat._filled(start, template)(1, 2, 3, 0, 0) is None
    assert seen == [(5, 0.25, [1, 1, 2, 2], 3, None)]
    ((*given, _, extra),) = driver.named("cuLaunchKernel")
    assert (given, extra) == ([7, 3, 2, 1, 128, 1, 1, 64, 1], 0)
    driver.context = 0
    assert repeat._filled(start, template)(1, 2, 3, 0, 0) is INVALID_CONTEXT


def test_threads_fill_in_tasks_of_their_own():
    both, seen = threading.Barrier(2), set()

    def start(argument, stream):
        task = Task.from_address(ctypes.c_void_p.from_address(argument).value)
        both.wait(timeout=60)  # until the other thread is here too
        seen.add((stream, *task.arrays, task.weight, task.bias))

    fill_in = repeat._filled(start, Task())

    def work(one):
        for _ in range(2):  # the second time there are tasks to be taken
            fill_in(one, one, one, one, one)
            both.wait(timeout=60)

    threads = [threading.Thread(target=work, args=(one,)) for one in (3, 5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert seen == {(one,) * 7 for one in (3, 5)}
