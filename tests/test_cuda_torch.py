"""The CUDA kernels under torch's autograd: emulated with tensors that are taken to be on a GPU."""

import contextlib
import threading
from unittest import mock

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

import anynorm
import anynorm.torch as norms
from anynorm._kernels import cuda, fast_paths
from anynorm._kernels.cuda import autograd, run
from anynorm._libraries import library_of
from anynorm._libraries.torch_tensors import Torch
from tests.emulated import emulation, needs_compiler
from tests.tolerances import CUDA_GRADIENT_BOUNDS, assert_exact, gradient_of_bias, gradient_of_rows

pytestmark = needs_compiler
NORMS = ("layer_norm", "rms_norm", "scale_norm")
every_norm = pytest.mark.parametrize("norm", NORMS)
EPS = 1e-3


class OnGPU(Torch):
    """CPU tensors as if they lay on a GPU."""

    @staticmethod
    def ordinal(tensor):
        return 0

    @staticmethod
    def current(tensor):
        return contextlib.nullcontext()

    @staticmethod
    def stream(tensor):
        return 0

    @staticmethod
    def float64s(tensor, count):
        return torch.full((count,), torch.nan, dtype=torch.float64)


@pytest.fixture
def pulled():
    """The derivatives that the kernels form; each CPU tensor says that it is on a GPU."""
    found = []

    def pull(gradient):
        found.append(gradient)
        return pull_by_kernels(gradient)

    pull_by_kernels = autograd.vjp
    with (
        emulation(),
        mock.patch.dict(fast_paths._by_type, clear=True),  # they go by where tensors are
        mock.patch.object(library_of(torch.zeros(1)), "memory", OnGPU),
        mock.patch.object(run, "remember"),
        mock.patch.object(autograd, "vjp", pull),
        mock.patch.object(cuda, "_MISSING", None),
        mock.patch.object(torch.Tensor, "is_cuda", True),
        mock.patch.object(torch.Tensor, "is_cpu", False),
    ):
        yield found


def tensors(norm, dtype=torch.float32, shape=(3, 33)):
    """x, the parameters and dy; all but dy want a gradient."""
    generator = torch.Generator().manual_seed(0)
    shapes = (shape, *([()] if norm == "scale_norm" else [shape[-1:]] * 2), shape)
    *given, dy = (torch.randn(one, generator=generator).to(dtype) for one in shapes)
    return [one.requires_grad_() for one in given], dy


def call(norm, *given, where=anynorm):
    return getattr(where, norm)(*given, eps=EPS)


def gradients_by_definition(norm, given, dy):
    with anynorm.use_kernel("definition"):
        return torch.autograd.grad(call(norm, *given), given, dy)


def assert_gradients(norm, given, dy, got, backend):
    """Within the bounds of what is exact; None is left out."""
    x, *parameters = (one.detach().cpu().numpy() for one in given)
    options = {"scale": float(parameters[0])} if norm == "scale_norm" else {"weight": parameters[0]}
    dtype, dy = x.dtype.name, dy.cpu().numpy()
    exact = (*gradient_of_rows(norm, x, dy, dtype, eps=EPS, **options), gradient_of_bias(dy))
    for name, one, expected in zip(("dx", "dw", "db"), got, exact, strict=False):
        if one is not None:
            values = one.cpu().numpy().reshape(len(expected), -1)
            said = {"backend": backend, "dtype": dtype, "norm": f"{norm} {name}", "bounds": CUDA_GRADIENT_BOUNDS}
            assert_exact(values, expected, **said)


@every_norm
def test_gradients_of_what_wants_one(pulled, norm):
    given, dy = tensors(norm)
    with anynorm.use_kernel("cuda"), torch.no_grad():
        expected = call(norm, *given)
    for wanted in range(1, 2 ** len(given)):
        held = [one.detach().requires_grad_(bool(wanted >> i & 1)) for i, one in enumerate(given)]
        y = call(norm, *held)
        assert torch.equal(y, expected)
        y.backward(dy)
        assert [one.grad is not None for one in held] == [one.requires_grad for one in held]
        assert_gradients(norm, given, dy, [one.grad for one in held], "torch-cuda, emulated")
        assert [one.parameters for one in pulled] == [wanted > 1]  # no sums where no parameter wants a gradient
        pulled.clear()


@pytest.mark.parametrize("where", [anynorm, norms])
@pytest.mark.parametrize("norm", NORMS[:2])
def test_a_sum_with_a_residual(pulled, norm, where):
    given, dy = tensors(norm, torch.float64)
    (x, *parameters), residual = given, dy.flip(0).requires_grad_()
    held, dtotal = (x, residual, *parameters), dy.flip(1)
    y, total = getattr(where, f"add_{norm}")(x, residual, *parameters, eps=EPS)
    expected = gradients_by_definition(norm, [(x + residual).detach().requires_grad_(), *parameters], dy)
    got = torch.autograd.grad((y, total), held, (dy, dtotal), retain_graph=True)
    for one, other in zip(got, (expected[0] + dtotal, expected[0] + dtotal, *expected[1:]), strict=True):
        torch.testing.assert_close(one, other, rtol=2.0**-42, atol=2.0**-42)
    assert torch.equal(torch.autograd.grad(total, x, dtotal, retain_graph=True)[0], dtotal)
    for held in (x, residual):  # one of the two alone, by y alone
        (one,) = torch.autograd.grad(y, held, dy, retain_graph=True)
        torch.testing.assert_close(one, expected[0], rtol=2.0**-42, atol=2.0**-42)
    assert len(pulled) == 3


@every_norm
def test_what_torch_follows_goes_through_the_definition(pulled, norm):
    given, dy = tensors(norm, torch.float64)

    def twice(kernel):
        with anynorm.use_kernel(kernel):
            (first,) = torch.autograd.grad(call(norm, *given), given[0], dy, create_graph=True)
            return torch.autograd.grad(first.pow(2).sum(), given[0])[0]

    torch.testing.assert_close(twice(None), twice("definition"), rtol=2.0**-40, atol=2.0**-40)
    x = given[0].detach()
    matrix = torch.func.vmap(torch.func.grad(lambda row: call(norm, row).pow(3).sum()))(x)
    with anynorm.use_kernel("definition"):
        y = call(norm, x.requires_grad_())
        torch.testing.assert_close(matrix, torch.autograd.grad(y.pow(3).sum(), x)[0])
    assert pulled == []


@every_norm
def test_gradients_laid_out_otherwise(pulled, norm):
    given, dy = tensors(norm, torch.float64, (6, 4))
    layouts = (dy.t().contiguous().t(), dy.repeat_interleave(2, -1)[..., ::2], dy[:1, :1].expand(6, 4))
    for one in layouts:
        got = torch.autograd.grad(call(norm, *given), given, one)
        for value, expected in zip(got, gradients_by_definition(norm, given, one.clone()), strict=True):
            torch.testing.assert_close(value, expected, rtol=2.0**-42, atol=2.0**-42)
    assert pulled == []  # the table is asked about these, which has the kernels themselves


class Subclass(torch.Tensor):
    """Changes nothing, but might."""


def test_what_was_forced_holds_in_the_thread_that_goes_back(pulled):
    given, dy = tensors("layer_norm")
    with anynorm.use_kernel("cuda"):
        y = call("layer_norm", *given)
    free = call("layer_norm", *given)
    raised = []

    def go_back(result):
        try:
            torch.autograd.grad(result, given, dy.as_subclass(Subclass))
        except RuntimeError as error:
            raised.append(str(error))

    for result, count in ((free, 0), (y, 1)):
        thread = threading.Thread(target=go_back, args=(result,))
        thread.start()
        thread.join()
        assert len(raised) == count
    assert "kernel cuda was asked for and refuses this call: it takes plain tensors, got Subclass" in raised[0]


@every_norm
def test_functions_and_modules_for_torch(pulled, norm):
    """They have the kernels where these take a call, else torch's own operators; a forced kernel is what runs."""
    given, dy = tensors(norm)
    y = call(norm, *given)
    assert torch.equal(call(norm, *given, where=norms), y)
    made = {
        "layer_norm": norms.LayerNorm(33),
        "rms_norm": norms.RMSNorm(33, bias=True),
        "scale_norm": norms.ScaleNorm(33),
    }
    module = made[norm]
    module.eps = EPS
    for parameter, value in zip(module.parameters(), given[1:], strict=True):
        parameter.data.copy_(value)
    assert torch.equal(module(given[0]), y)
    module(given[0]).backward(dy)
    assert_gradients(
        norm, given, dy, [given[0].grad, *[one.grad for one in module.parameters()]], "torch-cuda, emulated"
    )
    assert len(pulled) == 1
    with profile(activities=[ProfilerActivity.CPU]) as profiled:
        call(norm, *given, where=norms)
        call(norm, given[0].as_subclass(Subclass), *given[1:], where=norms)
        with anynorm.use_kernel("definition"):
            call(norm, *given, where=norms)
    seen = [event.name for event in profiled.events()]
    assert [name for name in seen if name.startswith("anynorm::")] == [
        f"anynorm::{norm} ({kernel})" for kernel in ("cuda", "torch", "definition")
    ]
    own = "aten::linalg_vector_norm" if norm == "scale_norm" else f"aten::{norm}"
    assert seen.count(own) == 1


def test_what_is_written_in_place_is_not_followed_back(pulled):
    (x, weight, bias), _ = tensors("layer_norm")
    out = torch.empty_like(x)
    reason = anynorm.explain(x, weight, bias, out=out).refused["cuda"]
    assert "a gradient is wanted of what is written in place" in reason
    assert anynorm.explain(x, weight, bias).kernel == "cuda"
    assert anynorm.explain(x.detach(), out=out).kernel == "cuda"


def test_results_that_are_laid_out_otherwise(pulled):
    """Of a broadcast tensor a new one is not: a single stride leads through the normalized axes of x alone."""
    x = torch.arange(8.0).reshape(2, 1, 4).expand(2, 3, 4).requires_grad_()
    assert "no single stride" in anynorm.explain(x, axis=(0, 2)).refused["cuda"]
    assert anynorm.explain(x, axis=2).kernel == "cuda"
    y = anynorm.layer_norm(x, axis=(0, 2), eps=0.0)
    torch.testing.assert_close(y[:, 0], ((x[:, 0] - 3.5) / 5.25**0.5), rtol=2.0**-22, atol=0)


@every_norm
def test_operators_of_graphs(pulled, norm):
    """As a graph that was exported on the CPU calls them on a GPU."""
    given, dy = tensors(norm)
    arguments = [*given, None][:3]
    y = getattr(torch.ops.anynorm, norm)(*arguments, [-1], EPS, 0.0)
    assert torch.equal(y, call(norm, *given))
    got = torch.autograd.grad(y, given, dy)
    expected = torch.autograd.grad(call(norm, *given), given, dy)
    assert all(map(torch.equal, got, expected))
