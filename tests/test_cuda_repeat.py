"""Calls like one before, on CuPy's arrays and CUDA tensors: what the full way gives, or the full way itself."""

import contextlib
import ctypes
import threading
from unittest import mock

import numpy as np
import pytest
import torch

import anynorm
from anynorm import _norms
from anynorm._check import check
from anynorm._definition.norms import LAYER_NORM
from anynorm._kernels import cuda
from anynorm._kernels.cuda import arrays, device, repeat, run
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
    """CuPy's stand-in, and the CUDA kernels switched on, on the emulator."""
    monkeypatch.setenv(cuda.SWITCH, "1")
    monkeypatch.setattr(cuda, "_MISSING", None)
    with strict_cupy.installed() as found, emulation(), mock.patch.dict(repeat._by_library, clear=True):
        yield found


@pytest.fixture
def full():
    """What has gone the full way."""
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
    # Under their own keys, or the full way each time.
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
    with mock.patch.dict("os.environ", {cuda.SWITCH: "0"}):
        full.reset_mock()
        anynorm.layer_norm(x, weight)
        assert full.called
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


class OnCPU(arrays.Tensors):
    """CPU tensors, whose device has the number -1, as if it were the current one of CUDA's."""

    @staticmethod
    def current_ordinal():
        return -1

    @staticmethod
    def current(tensor):
        return contextlib.nullcontext()

    @staticmethod
    def streams():
        return lambda ordinal: 0

    @staticmethod
    def stream(tensor):
        return 0


@pytest.fixture
def ask(monkeypatch):
    """What torch is asked before a call is repeated."""
    monkeypatch.setattr(repeat, "ACCESS", {"torch": OnCPU})
    found = repeat._by_torch().ask
    return lambda x, weight=None, bias=None, out=None: found("layer_norm", x, weight, bias, 1e-5, 0.0, out)


def test_tensors_have_keys(ask):
    x, weight = torch.zeros(8, 8), torch.zeros(8)
    key, *places = ask(x, weight, None, x)
    assert places == [x.data_ptr(), weight.data_ptr(), 0, x.data_ptr()]
    assert ask(torch.ones(8, 8), weight, None, x)[0] == key
    halves = weight.half(), weight.bfloat16()
    others = [ask(x), ask(x.T), ask(x[:4]), ask(x.double()), *[ask(x, None, None, out) for out in (x, x.T, x.int())]]
    others += [given for one in (weight, *halves) for given in (ask(x, one), ask(x, None, one))]
    assert len({key, *(other[0] for other in others)}) == 1 + len(others) == 14


def test_what_torch_follows_goes_the_full_way(ask):
    x, weight = torch.zeros(4, 8), torch.zeros(8)
    wanted = torch.nn.Parameter(weight.clone())
    assert ask(x, wanted) is None
    assert ask(wanted[None]) is None
    with torch.no_grad():
        assert ask(x, wanted)[0] == ask(x, weight)[0]
        assert ask(x, weight, None, torch.nn.Parameter(x.clone())) is None
    for odd in (torch._neg_view(weight), weight.to("meta"), torch._efficientzerotensor(8), weight.to_sparse(), 1):
        assert ask(x, odd) is None
        assert ask(x, None, odd) is None
    assert ask(torch.nested.nested_tensor([weight, weight], layout=torch.jagged)) is None
    assert torch.func.vmap(lambda row: torch.tensor(ask(x) is None))(x).all()
    with torch.autograd.forward_ad.dual_level():
        assert ask(x) is None
    with torch.utils._python_dispatch.TorchDispatchMode():
        assert ask(x) is None
    with torch.profiler.profile():
        assert ask(x) is None
    assert ask(x) is not None


@needs_compiler
def test_tensors_are_normalized_as_before(monkeypatch):
    monkeypatch.setenv(cuda.SWITCH, "1")
    with emulation(), mock.patch.dict(repeat._by_library, clear=True), torch.no_grad():
        monkeypatch.setitem(run.ACCESS, "torch", OnCPU)
        monkeypatch.setattr(repeat, "ACCESS", {"torch": OnCPU})
        x, other, weight = map(torch.from_numpy, (X, OTHER, WEIGHT))
        for out in (None, torch.zeros(4, 8)):
            first = run.run(check(LAYER_NORM, x, weight, None, -1, 1e-5, out=out)).clone()
            given = weight, None, 1e-5, 0.0, out
            again = repeat._by_library["torch"].run
            version = None if out is None else out._version
            assert not torch.equal(again(LAYER_NORM, other, *given), first)
            y = again(LAYER_NORM, x, *given)
            assert torch.equal(y, first)
            assert out is None or (y is out and out._version == version + 2)
            assert again(LAYER_NORM, x, weight, None, 0.5, 0.0, out) is None
        assert set(repeat.REPEATS) == {torch.Tensor}


def test_the_stream_of_torch(monkeypatch):
    monkeypatch.setattr(torch._C, "_cuda_getCurrentRawStream", lambda ordinal: 70 + ordinal, raising=False)
    assert arrays.Tensors.streams()(3) == 73
    monkeypatch.delattr(torch._C, "_cuda_getCurrentRawStream")
    monkeypatch.setattr(torch.cuda, "current_stream", lambda ordinal: mock.Mock(cuda_stream=80 + ordinal))
    assert arrays.Tensors.streams()(3) == 83


def test_tensors_on_the_cpu_are_no_matter_of_cuda(ask):
    x = torch.randn(4, 8)
    expected = anynorm.layer_norm(x)
    with mock.patch.dict(repeat.REPEATS, {torch.Tensor: repeat._by_device(repeat._by_torch().run)}):
        with mock.patch.object(repeat, "repeat_on_cpu", return_value="repeated") as on_cpu:
            assert anynorm.layer_norm(x) == "repeated"
        assert on_cpu.called
        assert torch.equal(anynorm.layer_norm(x), expected)
        traced = torch.compile(anynorm.layer_norm, fullgraph=True, backend="eager")(x)
    torch.testing.assert_close(traced, expected)
