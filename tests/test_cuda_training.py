"""Training on a GPU through the CUDA kernels: what only a card can show of autograd, streams, graphs and threads."""

import contextlib
import threading

import numpy as np
import pytest
import torch
from torch.profiler import ProfilerActivity, profile
from torch.utils.checkpoint import checkpoint

import anynorm
import anynorm.torch as norms
from tests.backends import needs_cupy, needs_gpu
from tests.test_cuda_torch import EPS, NORMS, assert_gradients, call, every_norm, tensors

pytestmark = pytest.mark.gpu


def on_gpu(norm, dtype=torch.float32, shape=(3, 33)):
    given, dy = tensors(norm, dtype, shape)
    return [one.detach().cuda().requires_grad_() for one in given], dy.cuda()


@contextlib.contextmanager
def without_waiting():
    """Within it torch raises an error where the host waits for the GPU."""
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def names(function):
    with profile(activities=[ProfilerActivity.CPU]) as profiled:
        function()
    return [event.name for event in profiled.events() if event.name.startswith("anynorm::")]


@needs_gpu
@pytest.mark.parametrize("where", [anynorm, norms])
@pytest.mark.parametrize("shape", [(70, 33), (2, 4096)])
@every_norm
def test_gradients(norm, shape, where):
    given, dy = on_gpu(norm, shape=shape)
    expected = torch.autograd.grad(call(norm, *given, where=where), given, dy)
    with without_waiting():
        got = torch.autograd.grad(call(norm, *given, where=where), given, dy)
    assert all(map(torch.equal, got, expected))
    assert_gradients(norm, given, dy, got, "torch-cuda")


@needs_gpu
@every_norm
def test_the_kernels_run(norm):
    given, dy = on_gpu(norm, torch.bfloat16)
    for where in (anynorm, norms):
        seen = names(lambda where=where: call(norm, *given, where=where).backward(dy))
        assert seen == [f"anynorm::{norm} (cuda)", f"anynorm::{norm}_backward (cuda)"]
    if norm != "scale_norm":
        seen = names(lambda: getattr(norms, f"add_{norm}")(given[0], given[0], *given[1:])[0].backward(dy))
        assert seen == [f"anynorm::add_{norm} (cuda)", f"anynorm::{norm}_backward (cuda)"]
    given = [one.detach() for one in given]
    assert names(lambda: torch.func.vmap(lambda row: call(norm, row, where=norms))(given[0])) == [
        f"anynorm::{norm} (torch)"
    ]


@needs_gpu
@every_norm
def test_gradients_of_what_wants_one(norm):
    given, dy = on_gpu(norm)
    expected = torch.autograd.grad(call(norm, *given), given, dy)
    for wanted in range(1, 2 ** len(given)):
        held = [one.detach().requires_grad_(bool(wanted >> i & 1)) for i, one in enumerate(given)]
        call(norm, *held).backward(dy)
        for one, exact in zip(held, expected, strict=True):
            assert (one.grad is not None) == one.requires_grad
            assert one.grad is None or torch.equal(one.grad, exact)


@needs_gpu
@every_norm
def test_the_derivative_of_the_derivative(norm):
    given, dy = on_gpu(norm, torch.float64)

    def twice():
        (first,) = torch.autograd.grad(call(norm, *given), given[0], dy, create_graph=True)
        return torch.autograd.grad(first.pow(2).sum(), given[0])[0]

    got = twice()
    with anynorm.use_kernel("definition"):
        torch.testing.assert_close(got, twice(), rtol=2.0**-40, atol=2.0**-40)


@needs_gpu
def test_what_is_forced_holds_in_the_thread_that_goes_back():
    class Subclass(torch.Tensor):
        pass

    given, dy = on_gpu("layer_norm")
    with anynorm.use_kernel("cuda"):
        y = call("layer_norm", *given)
    with pytest.raises(RuntimeError, match="kernel cuda was asked for and refuses this call"):
        torch.autograd.grad(y, given, dy.as_subclass(Subclass))


def model():
    torch.manual_seed(0)
    first, last = torch.nn.Linear(16, 64), torch.nn.Linear(64, 1)
    return torch.nn.Sequential(first, norms.LayerNorm(64), norms.RMSNorm(64), norms.ScaleNorm(64), last).cuda()


def repeat(step, count):
    for _ in range(count):
        step()


@needs_gpu
def test_a_captured_training_step():
    generator = torch.Generator("cuda").manual_seed(0)
    x = torch.randn(32, 16, generator=generator, device="cuda")
    trained, captured = model(), model()

    def step_of(module):
        optimizer = torch.optim.SGD(module.parameters(), lr=0.01)

        def step():
            optimizer.zero_grad(set_to_none=False)
            module(x).pow(2).mean().backward()
            optimizer.step()

        return step

    eager, to_capture = step_of(trained), step_of(captured)
    stream, graph = torch.cuda.Stream(), torch.cuda.CUDAGraph()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        repeat(to_capture, 3)
    torch.cuda.current_stream().wait_stream(stream)
    with torch.cuda.graph(graph):
        to_capture()
    repeat(graph.replay, 4)
    repeat(eager, 7)
    for one, other in zip(captured.parameters(), trained.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=2.0**-16)  # matrix products may be other ones
        assert torch.isfinite(one).all()


@needs_gpu
@every_norm
def test_a_capture_without_a_call_before(norm):
    """Kernels are compiled and loaded while a graph is captured, in the thread that goes back as well."""
    given, dy = on_gpu(norm, torch.float16, (5, {"layer_norm": 1016, "rms_norm": 1032, "scale_norm": 1048}[norm]))
    torch.autograd.grad(given[0] * 2, given[0], dy)  # that thread is there
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        got = torch.autograd.grad(call(norm, *given), given, dy)
    with torch.no_grad():
        given[0].mul_(2)
    graph.replay()
    assert all(map(torch.equal, got, torch.autograd.grad(call(norm, *given), given, dy)))


@needs_gpu
@every_norm
def test_another_stream(norm):
    given, dy = on_gpu(norm, shape=(512, 4096))
    expected = torch.autograd.grad(call(norm, *given), given, dy)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        torch.cuda._sleep(10_000_000)
        later = [(one * 1).detach().requires_grad_() for one in given]  # written behind the wait
        y = call(norm, *later)
    y.backward(dy)  # which runs where the norm has run
    torch.cuda.current_stream().wait_stream(stream)
    assert all(map(torch.equal, [one.grad for one in later], expected))


@needs_gpu
def test_threads():
    cases = [(norm, *on_gpu(norm, shape=shape)) for norm in NORMS for shape in ((2, 33), (900, 130))]
    expected = [torch.autograd.grad(call(norm, *given), given, dy) for norm, given, dy in cases]
    torch.cuda.synchronize()
    wrong = []

    def work(first):
        with torch.cuda.stream(torch.cuda.Stream()):
            for i in range(first, first + 24):
                norm, given, dy = cases[i % len(cases)]
                held = [one.detach().clone().requires_grad_() for one in given]
                got = torch.autograd.grad(call(norm, *held), held, dy)
                if not all(map(torch.equal, got, expected[i % len(cases)])):
                    wrong.append(i)

    threads = [threading.Thread(target=work, args=(first,)) for first in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


@needs_gpu
@pytest.mark.parametrize("name", ["LayerNorm", "RMSNorm", "ScaleNorm"])
def test_autocast(name):
    """The result has x's dtype, and the bits of a call without it; gradients of float32 parameters are float32."""
    linear, norm = torch.nn.Linear(16, 64).cuda(), getattr(norms, name)(64).cuda()
    x = torch.randn(8, 16, device="cuda")
    with torch.autocast("cuda", torch.bfloat16):
        hidden = linear(x)
        y = norm(hidden)
    assert y.dtype == hidden.dtype == torch.bfloat16
    assert torch.equal(y, norm(hidden))
    y.float().square().mean().backward()
    for parameter in (*linear.parameters(), *norm.parameters()):
        assert parameter.grad.dtype == torch.float32
        assert torch.isfinite(parameter.grad).all()


@needs_gpu
def test_a_checkpoint():
    given, dy = on_gpu("layer_norm")
    expected = torch.autograd.grad(call("layer_norm", *given), given, dy)
    y = checkpoint(lambda *held: call("layer_norm", *held), *given, use_reentrant=False)
    assert all(map(torch.equal, torch.autograd.grad(y, given, dy), expected))


@needs_cupy
def test_a_graph_of_cupy():
    import cupy

    x = cupy.asarray(np.random.default_rng(0).standard_normal((64, 1000)), dtype=cupy.float32)
    y, stream = cupy.empty_like(x), cupy.cuda.Stream(non_blocking=True)
    cupy.cuda.Device().synchronize()
    with stream:
        stream.begin_capture()
        anynorm.rms_norm(x, out=y, eps=EPS)
        graph = stream.end_capture()
    x *= 2
    cupy.cuda.Device().synchronize()
    graph.launch(stream)
    stream.synchronize()
    assert (y == anynorm.rms_norm(x, eps=EPS)).all()
