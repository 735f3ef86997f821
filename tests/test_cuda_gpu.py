"""What only a GPU can show of the CUDA kernels: streams, devices, graphs, threads, the same bits in both libraries."""

import threading
from unittest import mock

import numpy as np
import pytest

import anynorm
from anynorm import _norms
from anynorm._kernels.cuda import device, repeat
from tests.backends import CUPY, TORCH_CUDA, needs_cupy, needs_gpu
from tests.emulated import needs_compiler, normalize

pytestmark = pytest.mark.gpu
SHAPES = ((3, 1), (5, 33), (64, 1024), (4, 4096), (3, 16384), (2, 70000), (1, 262144))


def inputs(shape, dtype="float32"):
    rng = np.random.default_rng(shape[1])
    return [rng.standard_normal(one).astype(dtype) for one in (shape, shape[-1:], shape[-1:])]


@pytest.mark.parametrize(
    "backend", [pytest.param(TORCH_CUDA, marks=needs_gpu), pytest.param(CUPY, marks=needs_cupy)], ids=str
)
def test_the_backends_of_other_tests_run_the_kernels(backend):
    with backend.context():
        assert anynorm.explain(backend.make(np.ones((2, 3), np.float32))).kernel == "cuda"
        assert anynorm.explain(backend.make(np.ones((0, 3), np.float32))).kernel == "definition"


@needs_gpu
@needs_compiler
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
@pytest.mark.parametrize("shape", SHAPES)
def test_the_bits_are_those_of_the_emulator(shape, dtype):
    import torch

    given = inputs(shape, dtype)
    with anynorm.use_kernel("cuda"):
        y = anynorm.layer_norm(*(torch.from_numpy(one).cuda() for one in given))
    paired = device.device(0).slow_float64
    assert y.cpu().numpy().tobytes() == normalize("layer_norm", *given, paired=paired).tobytes()


@needs_cupy
@pytest.mark.parametrize("shape", SHAPES)
def test_both_libraries_give_the_same_bits(shape):
    import cupy
    import torch

    given = inputs(shape)
    with anynorm.use_kernel("cuda"):
        of_torch = anynorm.layer_norm(*(torch.from_numpy(one).cuda() for one in given)).cpu().numpy()
        of_cupy = anynorm.layer_norm(*map(cupy.asarray, given)).get()
    assert of_torch.tobytes() == of_cupy.tobytes()


@needs_gpu
def test_a_graph_and_another_stream():
    import torch

    x, weight, bias = (torch.from_numpy(one).cuda() for one in inputs((64, 1024)))
    out, graph = torch.empty_like(x), torch.cuda.CUDAGraph()
    with anynorm.use_kernel("cuda"):
        expected = anynorm.layer_norm(x, weight, bias)
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            on_stream = anynorm.layer_norm(x, weight, bias)
        torch.cuda.current_stream().wait_stream(stream)
        with torch.cuda.graph(graph):
            anynorm.layer_norm(x, weight, bias, out=out)
    assert torch.equal(on_stream, expected)
    x.mul_(2.0)
    graph.replay()
    with anynorm.use_kernel("cuda"):
        assert torch.equal(out, anynorm.layer_norm(x, weight, bias))


@pytest.fixture
def nothing_compiled(tmp_path, monkeypatch):
    """No kernel has been used in this process, nor compiled in another."""
    monkeypatch.setenv("ANYNORM_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(device, "_kernels", {})


@needs_gpu
def test_a_graph_of_a_kernel_that_was_never_used(nothing_compiled):
    import torch

    x, weight, bias = (torch.from_numpy(one).cuda() for one in inputs((64, 1024)))
    out, graph = torch.zeros_like(x), torch.cuda.CUDAGraph()
    with anynorm.use_kernel("cuda"):
        with torch.cuda.graph(graph):
            anynorm.layer_norm(x, weight, bias, out=out)
        assert not out.any()
        graph.replay()
        assert torch.equal(out, anynorm.layer_norm(x, weight, bias))


@needs_cupy
def test_a_graph_of_cupy_of_a_kernel_that_was_never_used(nothing_compiled):
    import cupy

    x, weight, bias = map(cupy.asarray, inputs((64, 1024)))
    out = cupy.zeros_like(x)
    cupy.cuda.Device().synchronize()
    with anynorm.use_kernel("cuda"):
        with cupy.cuda.Stream(non_blocking=True) as stream:
            stream.begin_capture(cupy.cuda.runtime.streamCaptureModeGlobal)
            anynorm.layer_norm(x, weight, bias, out=out)
            graph = stream.end_capture()
            graph.launch(stream)
            stream.synchronize()
        assert out.get().tobytes() == anynorm.layer_norm(x, weight, bias).get().tobytes()


def in_a_new_thread(x, weight, bias, out):
    """Normalize in a thread that has called nothing of CUDA's."""
    failures = []

    def work():
        try:
            anynorm.layer_norm(x, weight, bias, out=out)
        except Exception as error:
            failures.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert not failures


@needs_gpu
def test_a_new_thread(monkeypatch):
    import torch

    monkeypatch.setattr("anynorm._forced._forced_everywhere", "cuda")  # in each thread
    given = [torch.from_numpy(one).cuda() for one in inputs((64, 1024))]
    expected, out = anynorm.layer_norm(*given), torch.empty_like(given[0])
    torch.cuda.synchronize()
    in_a_new_thread(*given, out)
    torch.cuda.synchronize()
    assert torch.equal(out, expected)


@needs_cupy
def test_a_new_thread_of_cupy(monkeypatch):
    import cupy

    monkeypatch.setattr("anynorm._forced._forced_everywhere", "cuda")
    given = list(map(cupy.asarray, inputs((64, 1024))))
    expected, out = anynorm.layer_norm(*given), cupy.empty_like(given[0])
    cupy.cuda.Device().synchronize()
    in_a_new_thread(*given, out)
    cupy.cuda.Device().synchronize()
    assert out.get().tobytes() == expected.get().tobytes()


@pytest.fixture
def repeated():
    """What is called in a `with` block of this must be a call like one before."""
    repeat.forget()
    return mock.patch.object(_norms, "check", side_effect=AssertionError("the slow path"))


@needs_gpu
def test_calls_like_one_before(repeated):
    import torch

    x, weight, bias = (torch.from_numpy(one).cuda() for one in inputs((64, 1024)))
    out, odd = torch.empty_like(x), torch.empty(x.numel() + 1, device="cuda")[1:].view(x.shape).copy_(x)
    given = ((x, weight, bias), (odd, weight, bias), (x[:, ::2], weight[::2].contiguous()))
    expected = [anynorm.layer_norm(*one) for one in given]
    anynorm.layer_norm(*given[0], out=out)
    with repeated, torch.cuda.stream(torch.cuda.Stream()):
        torch.cuda.current_stream().wait_stream(torch.cuda.default_stream())
        assert all(torch.equal(anynorm.layer_norm(*one), y) for one, y in zip(given, expected, strict=True))
        assert torch.equal(anynorm.layer_norm(*given[0], out=out.zero_()), expected[0])
        torch.cuda.current_stream().synchronize()
    in_a_new_thread(*given[0], out.zero_())
    torch.cuda.synchronize()
    assert torch.equal(out, expected[0])


@needs_cupy
def test_calls_of_cupy_like_one_before(repeated):
    import cupy

    x, weight, bias = map(cupy.asarray, inputs((64, 1024)))
    out, odd = cupy.empty_like(x), cupy.empty(x.size + 1, x.dtype)[1:].reshape(x.shape)
    odd[...] = x
    given = ((x, weight, bias), (odd, weight, bias), (x[:, ::2], weight[::2].copy()))
    expected = [anynorm.layer_norm(*one).get().tobytes() for one in given]
    anynorm.layer_norm(*given[0], out=out)
    cupy.cuda.Device().synchronize()
    with repeated, cupy.cuda.Stream(non_blocking=True) as stream:
        assert [anynorm.layer_norm(*one).get().tobytes() for one in given] == expected
        out.fill(0)
        assert anynorm.layer_norm(*given[0], out=out).get().tobytes() == expected[0]
        out.fill(0)
        stream.synchronize()
    in_a_new_thread(*given[0], out)
    cupy.cuda.Device().synchronize()
    assert out.get().tobytes() == expected[0]


@needs_gpu
def test_several_devices_from_several_threads():
    import torch

    given, results = inputs((64, 1000)), {}

    def work(index):
        tensors = [torch.from_numpy(one).to(f"cuda:{index % torch.cuda.device_count()}") for one in given]
        with anynorm.use_kernel("cuda"):
            results[index] = anynorm.layer_norm(*tensors).cpu().numpy().tobytes()

    threads = [threading.Thread(target=work, args=(index,)) for index in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 8
    assert len(set(results.values())) == 1
