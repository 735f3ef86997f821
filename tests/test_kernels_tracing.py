"""What observes torch's operations, to differentiate, batch, record or compile them, gets those of the definition."""

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd import forward_ad
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils._python_dispatch import TorchDispatchMode

import anynorm
from tests import backends
from tests.backends import needs_llvmlite
from tests.test_kernels_refusals import (
    assert_exact_gradient,
    assert_right,
    call,
    call_definition,
    every_norm,
    reasons_while,
    tensors,
)

pytestmark = needs_llvmlite
# Torch compiles derivatives of its own by what it has deprecated.
forward_mode = pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")


@every_norm
def test_torch_compile(norm):
    x, weight = tensors()
    torch.compiler.reset()
    compiled = torch.compile(lambda x, weight: call(norm, x, weight), fullgraph=True, backend="aot_eager")
    call(norm, x, weight)  # what calls before have left behind is not to be found by the compiler
    y = compiled(x, weight)
    assert_right(norm, y)
    x.requires_grad_()
    y = compiled(x, weight)
    assert_right(norm, y)
    (got,) = torch.autograd.grad(y.sum(), x)
    (expected,) = torch.autograd.grad(call_definition(norm, x, weight).sum(), x)
    assert torch.equal(got, expected)


@every_norm
@forward_mode
def test_torch_func(norm):
    x, weight = tensors()
    reasons = []

    def normalize(x):
        return reasons_while(norm, x, weight, reasons)

    assert_right(norm, torch.func.vmap(normalize)(x))
    assert_right(norm, torch.func.functionalize(normalize)(x))
    y, _ = torch.func.jvp(normalize, (x,), (torch.ones_like(x),))
    assert_right(norm, y)
    gradient = torch.func.grad(lambda x: (normalize(x) ** 2).sum())(x)
    y, pullback = torch.func.vjp(normalize, x)
    (pulled,) = pullback(2 * y)
    assert_right(norm, y)
    assert len(reasons) == 5
    assert all("torch.func" in reason or "a gradient" in reason or "forward" in reason for reason in reasons)
    for got in (gradient, pulled):
        assert_exact_gradient(norm, got, 2 * y)


@every_norm
@forward_mode
def test_forward_mode_derivatives(norm):
    x, weight = tensors()
    reasons = []
    with forward_ad.dual_level():
        y = reasons_while(norm, forward_ad.make_dual(x, torch.ones_like(x)), weight, reasons)
        primal, tangent = forward_ad.unpack_dual(y)
        assert_right(norm, primal.clone())
        tangent = tangent.clone()
    assert "forward-mode" in reasons[0]
    _, expected = torch.func.jvp(lambda x: call(norm, x, weight), (x,), (torch.ones_like(x),))
    assert torch.equal(tangent, expected)
    wide = [t.requires_grad_() for t in tensors(torch.float64)]
    how = {"fast_mode": backends.turn is not None}  # by one random direction, unless all is to be run
    assert torch.autograd.gradcheck(lambda x, w: call(norm, x[:2, :5], w[:5]), wide, check_forward_ad=True, **how)


@every_norm
def test_what_records_the_operations_of_torch(norm):
    x, weight = tensors()
    reasons, seen = [], []

    class Mode(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            seen.append(str(function))
            return function(*args, **(kwargs or {}))

    graph = make_fx(lambda x: reasons_while(norm, x, weight, reasons))(x)
    assert_right(norm, graph(x))
    assert torch.equal(graph(x + 1), call_definition(norm, x + 1, weight))
    with Mode():
        y = reasons_while(norm, x, weight, reasons)
    assert_right(norm, y)
    assert any("sqrt" in name or "norm" in name for name in seen)
    assert len(reasons) == 2
    assert all("torch follows each operation" in reason for reason in reasons)


@every_norm
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::torch.jit.TracerWarning")  # torch's own
def test_torch_jit_trace(norm):
    x, weight = tensors()
    traced = torch.jit.trace(lambda x: call(norm, x, weight), x)
    assert_right(norm, traced(x))
    assert torch.equal(traced(x + 1), call_definition(norm, x + 1, weight))


@every_norm
def test_tensors_without_numbers(norm):
    x, weight = tensors()
    reasons = []
    with FakeTensorMode() as mode:
        fakes = [mode.from_tensor(t) for t in (x, weight)]
        y = reasons_while(norm, *fakes, reasons)
        assert (y.shape, y.dtype, type(y)) == (x.shape, x.dtype, type(fakes[0]))
    reasons.append(anynorm.explain(*fakes).refused["cpu"])  # torch itself computes little with them out here
    y = reasons_while(norm, x.to("meta"), weight.to("meta"), reasons)
    assert (y.shape, y.device.type) == (x.shape, "meta")
    assert ["plain tensors" in reason for reason in reasons] == [True, True, False]
    assert "x is on meta" in reasons[2]
