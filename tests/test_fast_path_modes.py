"""Gradients, and what observes torch, are right, though calls like these took the fast path before."""

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd import forward_ad
from torch.utils._python_dispatch import TorchDispatchMode

import anynorm
from tests.backends import needs_llvmlite
from tests.test_fast_path_torch import HAS_EXCHANGE, takes_fast_path, tensors

pytestmark = needs_llvmlite


@pytest.mark.parametrize("place", [0, 1, 2])
def test_a_gradient_is_given_where_one_is_wanted(place):
    arguments = tensors()
    anynorm.layer_norm(*arguments)
    arguments[place].requires_grad_()
    assert anynorm.layer_norm(*arguments).requires_grad
    with torch.no_grad():
        assert not anynorm.layer_norm(*arguments).requires_grad
    assert anynorm.layer_norm(*arguments).requires_grad
    with torch.no_grad(), torch.enable_grad():
        assert anynorm.layer_norm(*arguments).requires_grad


def test_inference_tensors():
    arguments = tensors()
    plain = anynorm.layer_norm(*arguments)
    with torch.inference_mode():
        inner = anynorm.layer_norm(*arguments)
        assert takes_fast_path(*arguments) == HAS_EXCHANGE
        made = anynorm.layer_norm(*tensors())
    assert [y.is_inference() for y in (plain, inner, made, anynorm.layer_norm(*arguments))] == [
        False, True, True, False,
    ]  # fmt: skip
    assert torch.equal(plain, inner)


# Torch compiles derivatives of its own by what it has deprecated.
@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")
def test_what_observes_torch_still_does():
    x, weight, bias = tensors()
    expected = anynorm.layer_norm(x, weight, bias)
    short = []

    def normalize(x):
        short.append(takes_fast_path(x, weight, bias))
        return anynorm.layer_norm(x, weight, bias)

    class Mode(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            return function(*args, **(kwargs or {}))

    with Mode():
        torch.testing.assert_close(normalize(x), expected)
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(x, torch.ones_like(x))
        assert forward_ad.unpack_dual(normalize(dual)).tangent is not None
        normalize(x)
    torch.testing.assert_close(torch.func.functionalize(normalize)(x), expected)
    torch.func.vmap(lambda _: normalize(x))(x)  # not even what is not mapped
    torch.func.grad(lambda x: normalize(x).sum())(x)
    assert short == [False] * len(short)
    assert len(short) == 6


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::torch.jit.TracerWarning")  # torch's own
def test_graphs_hold_the_norm():
    x, weight, bias = tensors()
    anynorm.layer_norm(x, weight, bias)
    traced = torch.jit.trace(lambda x: anynorm.layer_norm(x, weight, bias), x)
    torch.testing.assert_close(traced(x + x.abs()), anynorm.layer_norm(x + x.abs(), weight, bias))
    torch.compiler.reset()
    compiled = torch.compile(lambda x: anynorm.layer_norm(x, weight, bias), fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(x), anynorm.layer_norm(x, weight, bias))


def test_fake_tensors():
    arguments = tensors()
    anynorm.layer_norm(*arguments)
    with FakeTensorMode(allow_non_fake_inputs=True):
        assert not takes_fast_path(*arguments)
    with FakeTensorMode() as mode:
        fakes = [mode.from_tensor(t) for t in arguments]
        assert type(anynorm.layer_norm(*fakes)) is type(fakes[0])
