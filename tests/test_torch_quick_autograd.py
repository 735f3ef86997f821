"""When torch's autograd takes the quick derivative, and what a call and its derivative pass on the way."""

import sys
import weakref
from pathlib import Path

import pytest
import torch
from torch.autograd import forward_ad
from torch.utils._python_dispatch import TorchDispatchMode

import anynorm
import anynorm.torch
from anynorm._choose import choose_vjp
from anynorm._definition.norms import LAYER_NORM
from anynorm._kernels import autograd
from anynorm._kernels.cpu.fast_path import kept
from tests.backends import needs_llvmlite
from tests.test_fast_path_torch import HAS_EXCHANGE
from tests.test_torch_quick import assert_same, by_any_way, tensor

pytestmark = needs_llvmlite


def recorded():
    """A norm by the kernels of the CPU as `follow` has it, and the names of the ways that its derivatives take."""
    from anynorm._kernels.cpu.launch.autograd import _kernels

    ways, kernels = [], _kernels(choose_vjp)

    def record(name, function):
        def way(*given):
            result = function(*given)
            ways.append(name if result is not None else f"not {name}")
            return result

        return way

    kernels = kernels._replace(
        vjp=record("vjp", kernels.vjp),
        quick_vjp=record("quick", kernels.quick_vjp),
        choose_vjp=record("table", kernels.choose_vjp),
    )

    def norm(x, weight, bias):
        with torch.no_grad():
            y = anynorm.layer_norm(x, weight, bias, eps=1e-3)
        return autograd.follow(kernels, LAYER_NORM, x, None, weight, bias, -1, 1e-3, 0.0, y)

    return norm, ways


class Mode(TorchDispatchMode):
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return func(*args, **kwargs or {})


@pytest.mark.skipif(not HAS_EXCHANGE, reason="torch has no DLPack exchange interface, so all go another way")
@pytest.mark.filterwarnings("ignore:.*torch.jit.script:DeprecationWarning")  # what torch itself makes duals with
def test_it_is_taken_where_torch_only_goes_back():
    norm, ways = recorded()
    given = [one.requires_grad_() for one in (tensor(2, 33), tensor(33, seed=1), tensor(33, seed=2))]
    dy, y = tensor(2, 33, seed=3), norm(*given)

    def back(dy=dy, **options):
        ways.clear()
        return torch.autograd.grad(y, given, dy, retain_graph=True, **options)

    expected = by_any_way(LAYER_NORM, *given, dy)
    kept.table.clear()
    assert_same(back(), expected)
    assert ways == ["not quick", "vjp"]  # the first
    assert_same(back(), expected)
    assert ways == ["quick"]
    repeated = dy[:1].expand(2, 33)
    first = back(repeated)
    assert ways == ["not quick", "vjp"]  # nor was one like this
    assert_same(first, by_any_way(LAYER_NORM, *given, repeated))
    assert_same(back(repeated), first)
    assert ways == ["quick"]
    for one, other in zip(back(torch._neg_view(dy)), by_any_way(LAYER_NORM, *given, -dy), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=4 * 2.0**-21)  # as below
    assert ways == ["table"]  # the memory holds other numbers
    back(create_graph=True)
    assert ways == []
    for one, other in zip(back(dy[None], is_grads_batched=True), expected, strict=True):
        # Both are within 2 units of what is exact, which is below 8.
        torch.testing.assert_close(one[0], other, rtol=0, atol=4 * 2.0**-21)
    assert ways == ["not quick"]
    with anynorm.use_kernel("definition"):
        back()
        assert ways == ["table"]
    with Mode():
        back()
        assert ways == ["table"]
    with forward_ad.dual_level():
        back()
        assert ways == ["table"]
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]):
        assert_same(back(), expected)
        assert ways == ["table"]  # which sees to the name
    assert_same(back(), expected)
    assert ways == ["quick"]


@pytest.mark.skipif(not HAS_EXCHANGE, reason="torch has no DLPack exchange interface, so calls take the slow path")
@pytest.mark.parametrize("norm", ["LayerNorm", "RMSNorm"])
def test_a_call_passes_few_functions(norm):
    """Each takes a tenth of a microsecond, of some 28 for one row of 768, forward and backward."""
    module, x, dy = getattr(anynorm.torch, norm)(768), tensor(1, 768).requires_grad_(), tensor(1, 768)
    for _ in range(3):
        module(x).backward(dy)
    passed, package = [], str(Path(anynorm.__file__).parent)

    def profile(frame, event, argument):
        if event == "call" and frame.f_code.co_filename.startswith(package):
            passed.append(frame.f_code.co_name)

    sys.setprofile(profile)
    try:
        module(x).backward(dy)
    finally:
        sys.setprofile(None)
    assert len(passed) <= 21, passed


def test_no_more_lives_on_than_the_derivative_needs():
    x, residual, weight = tensor(4, 6), tensor(4, 6, seed=1), tensor(6, seed=2).requires_grad_()
    y, total = anynorm.torch.add_rms_norm(x, residual, weight)
    held = [weakref.ref(one) for one in (x, residual, total)]
    del x, residual, total
    assert [one() is None for one in held] == [True, True, True]  # the sum lives on as torch's own tensor
    assert y.grad_fn.saved_tensors[0].shape == (4, 6)
    assert torch.equal(y.grad_fn.saved_tensors[1], weight)
