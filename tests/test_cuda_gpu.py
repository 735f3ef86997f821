"""What only a GPU can show of the CUDA kernels: streams, devices, graphs, threads, the same bits in both libraries."""

import threading

import numpy as np
import pytest

import anynorm
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
    assert y.cpu().numpy().tobytes() == normalize("layer_norm", *given).tobytes()


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
